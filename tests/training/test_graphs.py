"""Encoders as CUDA graphs: which graph encodes what, and on a GPU, that nothing changes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from structalign.methods.base import Batch, Method, total
from structalign.training.graphs import GraphedEncoders, graphed_encoders, replaying
from structalign.training.trainer import autocast
from tests.training.test_trainer import config_for, start

pytestmark = pytest.mark.slow
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


class Recorder:
    """Stands in for PyTorch's recording: runs what it was given, on inputs of the recorded shape alone."""

    def __init__(self) -> None:
        self.shapes: list[torch.Size] = []
        self.leaves: list[bool] = []
        self.uses = 0

    def __call__(self, run: Callable[..., Any], sample: tuple[Tensor, ...], **_named: Any) -> Callable[..., Any]:
        self.shapes.append(sample[0].shape)
        self.leaves.append(len(sample) > 1)
        assert all(leaf.is_leaf and leaf.requires_grad for leaf in sample[1:])
        torch.rand(())  # trial runs draw dropout

        def replay(*inputs: Tensor) -> Any:
            assert [part.shape for part in inputs] == [part.shape for part in sample]
            # What is recorded of a parameter is where it lies.
            assert all(
                one.data_ptr() == other.data_ptr() and one is not other
                for one, other in zip(inputs[1:], sample[1:], strict=True)
            )
            self.uses += 1
            return run(*inputs)

        return replay


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    recorder = Recorder()
    monkeypatch.setattr(torch.cuda, "make_graphed_callables", recorder)
    return recorder


def texts(length: int, count: int = 3) -> Tensor:
    """Start token, words, end token."""
    words = torch.arange(1, length - 1).expand(count, -1)
    return torch.cat([torch.full((count, 1), 49406), words, torch.full((count, 1), 49407)], dim=1)


def test_one_graph_serves_lengths_alike_and_changes_nothing(recorder: Recorder) -> None:
    method, _ = start(config_for("structalign"), 2)
    retriever = method.retriever.eval()
    reading = GraphedEncoders(retriever)
    for length in (5, 8, 7, 9, 12):
        tokens = texts(length)
        wanted = retriever.encode_text(tokens, 2)
        with replaying([reading]):
            found = retriever.encode_text(tokens, 2)
        assert [part.shape for part in found] == [part.shape for part in wanted]
        for one, other in zip(found, wanted, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)
    assert recorder.shapes == [(3, 8), (3, 16)]
    assert recorder.uses == 5
    assert retriever.graphed is None


def test_texts_are_never_padded_beyond_the_context(recorder: Recorder) -> None:
    method, _ = start(config_for("structalign"), 2)
    context = method.retriever.info.context_length
    with replaying([GraphedEncoders(method.retriever)]):
        method.retriever.encode_text(texts(context), 2)
    assert recorder.shapes == [(3, context)]


def test_a_graph_is_used_once_in_a_step(recorder: Recorder) -> None:
    """Its second use would overwrite what the gradients of the first need."""
    method, _ = start(config_for("structalign"), 2)
    reading = GraphedEncoders(method.retriever)
    for step in (1, 2):
        with replaying([reading]):
            method.retriever.encode_text(texts(6), 2)
            method.retriever.encode_text(texts(6), 2)
            assert recorder.uses == step


def test_each_number_of_texts_and_each_task_has_its_own(recorder: Recorder) -> None:
    method, _ = start(config_for("structalign"), 2)
    with replaying([GraphedEncoders(method.retriever)]):
        for count, task in ((3, 1), (2, 1), (3, 2)):
            method.retriever.encode_text(texts(6, count), task)
    assert recorder.uses == 3


def test_recording_draws_nothing_from_the_steps_random_numbers(recorder: Recorder) -> None:
    method, _ = start(config_for("structalign"), 2)
    method.retriever.train()
    read = []
    for graph in (GraphedEncoders(method.retriever), None):
        torch.manual_seed(0)
        with replaying([graph] if graph else []):
            read.append(method.retriever.encode_text(texts(8), 2)[0])
    assert recorder.uses == 1
    assert torch.equal(*read)


@pytest.mark.parametrize("wanted", [True, False])
def test_a_cpu_has_no_graphs(wanted: bool) -> None:
    config = config_for("structalign", train={"cuda_graphs": wanted})
    assert graphed_encoders(start(config, 2)[0], config) == []


@pytest.mark.parametrize(
    ("name", "model", "count"),
    [
        ("structalign", {}, 2),
        ("structalign", {"checkpoint_vision": True}, 0),
        ("structalign", {"text_adapter": "mlp_moe"}, 0),
        ("finetune", {}, 0),
        ("moe_adapter", {}, 0),
    ],
)
def test_a_model_and_its_teacher_have_graphs_if_they_can(
    monkeypatch: pytest.MonkeyPatch, name: str, model: dict[str, Any], count: int
) -> None:
    config = config_for(name, train={"cuda_graphs": True}, model=model)
    method, _ = start(config, 2)
    monkeypatch.setattr("structalign.model.retriever.Retriever.device", torch.device("cuda", 0))
    assert [part.retriever for part in graphed_encoders(method, config)] == [method.retriever, method.teacher][:count]


def test_videos_of_a_shape_share_a_graph_and_nothing_changes(recorder: Recorder) -> None:
    method, data = start(config_for("structalign"), 2)
    retriever = method.retriever.eval()
    reading = GraphedEncoders(retriever)
    for pixels in data.eval_batches(3):
        wanted = retriever.encode_video(pixels)
        with replaying([reading]):
            found = retriever.encode_video(pixels)
        assert all(torch.equal(one, other) for one, other in zip(found, wanted, strict=True))
    assert len(recorder.shapes) == len({len(pixels) for pixels in data.eval_batches(3)}) < recorder.uses


def test_a_pass_without_gradients_has_a_graph_of_its_own(recorder: Recorder) -> None:
    """One that was recorded without them could give none."""
    method, _ = start(config_for("structalign"), 2)
    with replaying([GraphedEncoders(method.retriever)]):
        with torch.no_grad():
            method.retriever.encode_text(texts(6), 2)
        assert method.retriever.encode_text(texts(6), 2)[0].requires_grad
    assert recorder.uses == 2


def test_training_and_judging_have_graphs_of_their_own(recorder: Recorder) -> None:
    """One that was recorded with dropout would go on to drop."""
    method, _ = start(config_for("structalign"), 2)
    reading = GraphedEncoders(method.retriever)
    for mode in (method.retriever.train, method.retriever.eval):
        mode()
        with replaying([reading]):
            method.retriever.encode_text(texts(6), 2)
    assert len(recorder.shapes) == 2


@pytest.mark.parametrize(("text", "vision"), [("none", "frame_fusion"), ("lora_moe", "none")])
def test_a_tower_without_adapters_has_no_way_back(recorder: Recorder, text: str, vision: str) -> None:
    method, data = start(config_for("structalign", model={"text_adapter": text, "vision_adapter": vision}), 2)
    method.retriever.train()
    with replaying([GraphedEncoders(method.retriever)]):
        words, _, _ = method.retriever.encode_text(texts(6), 2)
        frames, _ = method.retriever.encode_video(next(data.eval_batches(2)))
    assert recorder.leaves == ([0, 1] if text == "none" else [1, 0])
    assert (words.requires_grad, frames.requires_grad) == (text != "none", vision != "none")


def test_a_whole_step_uses_each_graph_once(recorder: Recorder, monkeypatch: pytest.MonkeyPatch) -> None:
    """Text and video, of the model and of its teacher."""
    config = config_for("structalign", train={"cuda_graphs": True})
    method, data = start(config, 2)
    (batch, *_) = data.batches(config.train, torch.Generator().manual_seed(0), torch.device("cpu"))
    encoders = [GraphedEncoders(part) for part in (method.retriever, method.teacher) if part is not None]
    method.start_epoch(torch.Generator().manual_seed(0))
    with replaying(encoders):
        total(method.loss(batch)).backward()
    assert recorder.uses == len(recorder.shapes) == 4
    assert all(weight.grad is not None for weight in method.retriever.parameters() if weight.requires_grad)


def to_gpu(method: Method, batch: Batch) -> Batch:
    for model in (method.retriever, method.teacher, method):
        for part in vars(model).values() if model is method else (model,):
            if isinstance(part, torch.nn.Module):
                part.cuda()
    method.prototypes = method.prototypes.cuda()  # type: ignore[attr-defined]
    return Batch(*(part.cuda() for part in (batch.pixels, batch.tokens, batch.category, batch.video)))


def loss_and_gradients(
    method: Method, batch: Batch, precision: str, used: list[GraphedEncoders], seed: int
) -> list[Tensor]:
    weights = [weight for group in method.parameter_groups() for weight in group["params"]]
    torch.manual_seed(seed)
    batch.stem = None
    method.start_epoch(torch.Generator().manual_seed(0))
    with autocast(precision, batch.tokens.device), replaying(used):
        loss = total(method.loss(batch))
    gradients = torch.autograd.grad(loss, weights, allow_unused=True)
    return [loss.detach(), *(grad.clone() for grad in gradients if grad is not None)]


@needs_gpu
@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-4), ("bf16", 3e-2)])
def test_a_gpu_gets_the_same_loss_and_gradients(precision: str, tolerance: float) -> None:
    config = config_for("structalign", train={"cuda_graphs": True})
    method, data = start(config, 2)
    (batch, *_) = data.batches(config.train, torch.Generator().manual_seed(0), torch.device("cpu"))
    batch = to_gpu(method, batch)
    recorded = graphed_encoders(method, config)
    for name, weight in method.retriever.named_parameters():
        if name.endswith(".B"):
            torch.nn.init.normal_(weight, std=0.1)  # untouched updates are 0, whatever is dropped

    method.retriever.eval()  # dropout is drawn for padding as well, so that draws differ
    plain, *rest = (loss_and_gradients(method, batch, precision, used, 0) for used in ([], recorded, recorded))
    for other in rest:
        assert len(plain) == len(other)
        for one, two in zip(plain, other, strict=True):
            assert (one - two).norm() <= tolerance * one.norm() + 1e-7

    method.retriever.train()
    first, again, different = (loss_and_gradients(method, batch, precision, recorded, seed) for seed in (1, 1, 2))
    assert torch.equal(first[0], again[0])
    assert not torch.equal(first[0], different[0])


@needs_gpu
def test_shapes_that_come_later_are_recorded_then() -> None:
    config = config_for("structalign", train={"cuda_graphs": True})
    method, data = start(config, 2)
    (batch, *_) = data.batches(config.train, torch.Generator().manual_seed(0), torch.device("cpu"))
    batch = to_gpu(method, batch)
    recorded = graphed_encoders(method, config)
    terms = []
    for length in (0, 8):
        tokens = torch.nn.functional.pad(batch.tokens, (0, length))
        shown = Batch(batch.pixels, tokens, batch.category, batch.video)
        method.start_epoch(torch.Generator().manual_seed(0))
        with replaying(recorded):
            terms.append(total(method.loss(shown)))  # kept, with all that autograd knows of it
        terms[-1].backward()
    assert len(recorded[0].graphs) == 3  # two lengths of texts, one shape of videos
