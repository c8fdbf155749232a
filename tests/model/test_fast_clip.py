"""What the model leaves out, fuses, shares or computes twice changes features and gradients by rounding alone."""

from __future__ import annotations

import copy

import pytest
import torch
from open_clip.transformer import QuickGELU as PlainQuickGELU
from torch import nn

from structalign.methods.base.batch import Batch, joint_video
from structalign.model.fast_clip import QuickGELU, fuse_quick_gelu, patch_product
from structalign.model.retriever import Retriever
from tests.model.test_adapters import (
    INFO,
    PAIRS,
    TASKS,
    backward,
    batch,
    small_clip,
    small_retriever,
    trained_retriever,
)


def test_quick_gelu_is_open_clips() -> None:
    states = torch.linspace(-12, 12, 4001, dtype=torch.float64, requires_grad=True)
    values, expected = QuickGELU()(states), PlainQuickGELU()(states)
    torch.testing.assert_close(values, expected)
    weight = torch.randn(4001, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    gradients = (torch.autograd.grad(result @ weight, states)[0] for result in (values, expected))
    torch.testing.assert_close(*gradients)


def test_quick_gelu_is_replaced_wherever_it_is() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Sequential(PlainQuickGELU(), nn.GELU()))
    fuse_quick_gelu(model)
    assert [type(module) for module in model[1]] == [QuickGELU, nn.GELU]


@pytest.mark.parametrize("bias", [False, True])
def test_patches_as_a_product_are_the_convolution(bias: bool) -> None:
    conv = nn.Conv2d(3, 8, kernel_size=4, stride=4, bias=bias)
    images = torch.randn(2, 3, 12, 8)
    torch.testing.assert_close(patch_product(conv, images), conv(images), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("vision", "text"), [*PAIRS, ("none", "none")])
def test_the_last_block_needs_no_patches_of_its_own(vision: str, text: str) -> None:
    retriever = trained_retriever(vision=vision, text=text, dropout=0.0)
    whole = copy.deepcopy(retriever)
    del whole.clip.visual.transformer.resblocks[-1].forward
    pixels, _ = batch()
    sizes = []
    retriever.clip.visual.transformer.resblocks[-1].mlp.register_forward_hook(
        lambda _module, inputs, _output: sizes.append(inputs[0].shape[1])
    )
    with torch.no_grad():
        torch.testing.assert_close(retriever.encode_video(pixels), whole.encode_video(pixels), rtol=1e-5, atol=1e-5)
    assert sizes == [1]


def assert_same_gradients(first: Retriever, second: Retriever) -> None:
    pair = []
    for retriever in (first, second):
        retriever.prepare_task(2)
        torch.manual_seed(3)
        pair.append(backward(retriever, 2))
    assert pair[0].keys() == pair[1].keys()
    assert pair[0]
    for name, gradient in pair[0].items():
        torch.testing.assert_close(pair[1][name], gradient, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("vision", ["frame_fusion", "lora"])
def test_gradients_without_the_last_patches(vision: str) -> None:
    retriever = trained_retriever(vision=vision, dropout=0.0)
    whole = copy.deepcopy(retriever)
    del whole.clip.visual.transformer.resblocks[-1].forward
    assert_same_gradients(retriever, whole)


@pytest.mark.parametrize(("vision", "text"), PAIRS)
def test_checkpointing_changes_no_gradient(vision: str, text: str) -> None:
    plain = trained_retriever(vision=vision, text=text)
    checkpointed = copy.deepcopy(plain)
    checkpointed.model = plain.model.model_copy(update={"checkpoint_vision": True})
    starts: dict[str, list[int]] = {"plain": [], "checkpointed": []}
    for retriever, noted in zip((plain, checkpointed), starts.values(), strict=True):
        # Before the block, because PyTorch breaks off what it computes again as soon as it has what it needs.
        retriever.clip.visual.transformer.resblocks[-1].register_forward_pre_hook(
            lambda *_, noted=noted: noted.append(1)
        )
    assert_same_gradients(plain, checkpointed)
    assert len(starts["checkpointed"]) > len(starts["plain"]) > 0


@pytest.mark.parametrize("layers", [0, 2, 4])
def test_a_teacher_starts_from_the_students_frozen_blocks(layers: int) -> None:
    student = trained_retriever(adapter_layers=layers)
    teacher = copy.deepcopy(student)
    with torch.no_grad():
        for weight in teacher.trained_state().values():
            weight.mul_(0.5)
    pixels, tokens = batch()
    shared = Batch(pixels, tokens, torch.zeros(4), torch.arange(4))
    joint_video(student, shared)
    calls = []
    teacher.clip.visual.conv1.register_forward_hook(lambda *_: calls.append(1))
    frames, _ = joint_video(teacher, shared)
    assert not calls
    assert torch.equal(frames, teacher.encode_video(pixels)[0])


def test_a_model_with_weights_of_its_own_shares_no_blocks() -> None:
    frozen = small_retriever()
    other = Retriever(small_clip(), INFO, frozen.model, num_tasks=TASKS, seed=0, trainable="all")
    assert frozen.shares_stem(copy.deepcopy(frozen))
    assert not frozen.shares_stem(other)
    assert not other.shares_stem(other)
