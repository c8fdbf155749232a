"""Adapters: untouched they are CLIP, trained they get gradients and nothing else does, stored they come back."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from open_clip.model import CLIP
from torch import Tensor, nn

from structalign.config.schema import ModelConfig
from structalign.model.adapters import Context, FrameFusionAttention, LoRAExperts, mixed_gates, mixed_updates
from structalign.model.clip import ClipInfo
from structalign.model.mlp_moe import RoutedExperts
from structalign.model.retriever import Retriever
from structalign.util.checkpoint import load_tensors, save_tensors
from structalign.util.errors import UserError

SMALL = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 4, "width": 32, "patch_size": 16, "head_width": 8},
    "text_cfg": {"context_length": 12, "vocab_size": 100, "width": 32, "heads": 4, "layers": 2},
}
INFO = ClipInfo("small", SMALL, [0.5] * 3, [0.5] * 3)
TASKS = 3
CHOICES = [
    *((vision, text) for vision in ("frame_fusion", "lora", "none") for text in ("lora_moe", "lora", "none")),
    *(("mlp_moe", "mlp_moe"), ("mlp_moe", "lora_moe"), ("none", "mlp_moe")),
]
PAIRS = [("frame_fusion", "lora_moe"), ("lora", "lora"), ("mlp_moe", "mlp_moe")]


def options(vision: str = "frame_fusion", text: str = "lora_moe", **changes: object) -> ModelConfig:
    values = {
        "vision_adapter": vision,
        "adapter_layers": 3,
        "vision_rank": 4,
        "text_adapter": text,
        "experts": 5,
        "top_k": 2,
        "rank": 3,
        "lora_alpha": 12.0,
        "dropout": 0.1,
    }
    return ModelConfig(**{**values, **changes})


def small_clip() -> CLIP:
    torch.manual_seed(0)
    return CLIP(**SMALL).eval()


def small_retriever(vision: str = "frame_fusion", text: str = "lora_moe", **changes: object) -> Retriever:
    return Retriever(small_clip(), INFO, options(vision, text, **changes), num_tasks=TASKS, seed=0).eval()


def trained_retriever(**choices: object) -> Retriever:
    """One whose adapters have moved away from their neutral start, each by other numbers."""
    retriever = small_retriever(**choices)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in retriever.trained_state().values():
            weight.add_(0.3 * torch.randn(weight.shape, generator=generator))
    return retriever


def batch(seed: int = 0) -> tuple[Tensor, Tensor]:
    """Videos (4, 3, 3, 32, 32), and tokens (4, 12) of texts of 1 to 10 words."""
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randn(4, 3, 3, 32, 32, generator=generator)
    tokens = torch.zeros(4, 12, dtype=torch.long)
    for row, words in enumerate((3, 10, 1, 6)):
        tokens[row, 0], tokens[row, words + 1] = 98, 99
        tokens[row, 1 : words + 1] = torch.randint(1, 98, (words,), generator=generator)
    return pixels, tokens


def backward(retriever: Retriever, task: int) -> dict[str, Tensor]:
    """Gradients of everything that has one, after a pass in training mode."""
    pixels, tokens = batch()
    retriever.train()
    words, mask, text = retriever.encode_text(tokens, task)
    frames, video = retriever.encode_video(pixels)
    generator = torch.Generator().manual_seed(2)
    loss = sum(
        (part * torch.randn(part.shape, generator=generator)).sum() for part in (words[mask], text, frames, video)
    )
    retriever.zero_grad()
    loss.backward()
    return {name: weight.grad for name, weight in retriever.named_parameters() if weight.grad is not None}


# Untouched adapters


@pytest.mark.parametrize("task", [1, 2])
@pytest.mark.parametrize(("vision", "text"), CHOICES)
def test_untouched_adapters_are_clip_bit_for_bit(vision: str, text: str, task: int) -> None:
    pixels, tokens = batch()
    retriever, clip = small_retriever(vision, text), small_clip()
    del retriever.clip.visual.transformer.resblocks[-1].forward  # all tokens, as CLIP computes them
    torch.backends.mha.set_fastpath_enabled(False)  # nn.MultiheadAttention's shortcut rounds in another order
    try:
        with torch.no_grad():
            assert torch.equal(
                retriever.encode_video(pixels)[0].flatten(0, 1), clip.encode_image(pixels.flatten(0, 1))
            )
            assert torch.equal(retriever.encode_text(tokens, task)[2], clip.encode_text(tokens))
    finally:
        torch.backends.mha.set_fastpath_enabled(True)


def test_same_seed_same_adapters() -> None:
    first, second = small_retriever().trained_state(), small_retriever().trained_state()
    assert all(torch.equal(first[name], second[name]) for name in first)
    other = Retriever(small_clip(), INFO, options(), num_tasks=TASKS, seed=1).trained_state()
    assert any(not torch.equal(first[name], other[name]) for name in first)


def test_building_a_retriever_draws_from_no_global_generator() -> None:
    clip = small_clip()
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    Retriever(clip, INFO, options(), num_tasks=TASKS, seed=0)
    assert torch.equal(torch.rand(1), expected)


# Frame fusion


@pytest.mark.parametrize(("block", "neighbour"), [(0, [0, 0, 1]), (1, [1, 2, 2])])
def test_frames_ask_their_neighbour(block: int, neighbour: list[int]) -> None:
    """Against the plain definition, frame by frame, with nn.MultiheadAttention itself."""
    torch.manual_seed(3)
    attention = FrameFusionAttention(nn.MultiheadAttention(8, 2, batch_first=True), block, Context(num_frames=3))
    with torch.no_grad():
        attention.gate.fill_(0.3)
        attention.cross.in_proj_weight.normal_()
    tokens = torch.randn(2 * 3, 5, 8)  # two videos of three frames
    with torch.no_grad():
        mixed = attention(tokens, tokens, tokens)[0].view(2, 3, 5, 8)
        videos = tokens.view(2, 3, 5, 8)
        for frame in range(3):
            states, asking = videos[:, frame], videos[:, neighbour[frame]]
            own = attention.base(states, states, states, need_weights=False)[0]
            cross = attention.cross(asking, states, states, need_weights=False)[0]
            torch.testing.assert_close(mixed[:, frame], 0.7 * own + 0.3 * cross, atol=1e-6, rtol=1e-5)


def test_videos_do_not_mix() -> None:
    retriever = trained_retriever()
    pixels, _ = batch()
    other = pixels.clone()
    other[1] = 0
    with torch.no_grad():
        before, after = retriever.encode_video(pixels)[0], retriever.encode_video(other)[0]
    changed = (before - after).abs().amax(dim=(1, 2)) > 1e-5
    assert changed.tolist() == [False, True, False, False]


# Low rank


@pytest.mark.parametrize(("tower", "names"), [("visual.transformer", "q k v"), ("transformer", "q k v out")])
def test_low_rank_updates_are_attention_with_merged_weights(tower: str, names: str) -> None:
    attention = trained_retriever(vision="lora", text="lora").clip.get_submodule(f"{tower}.resblocks.1.attn")
    assert set(attention.updates) == set(names.split())
    merged = copy.deepcopy(attention.base)
    states = torch.randn(2, 5, 32)
    with torch.no_grad():
        for place, name in enumerate("qkv"):
            update = attention.updates[name]
            merged.in_proj_weight[32 * place : 32 * (place + 1)] += 12.0 / len(update.A) * update.B @ update.A
        if "out" in attention.updates:
            update = attention.updates["out"]
            merged.out_proj.weight += 12.0 / len(update.A) * update.B @ update.A
        expected = merged(states, states, states, need_weights=False)[0]
        torch.testing.assert_close(attention(states, states, states)[0], expected, atol=1e-4, rtol=1e-4)


# Experts


@pytest.fixture
def experts() -> LoRAExperts:
    torch.manual_seed(4)
    made = LoRAExperts(
        8, 6, rank=3, alpha=12.0, dropout=0.0, experts=5, top_k=2, context=Context(end=torch.tensor([2, 3]))
    )
    nn.init.normal_(made.B)
    nn.init.normal_(made.noise.weight)
    return made


@given(top_k=st.integers(1, 5), training=st.booleans(), seed=st.integers(0, 99))
@settings(max_examples=30, deadline=None)
def test_gates_are_k_positive_numbers_that_sum_to_1(top_k: int, training: bool, seed: int) -> None:
    torch.manual_seed(seed)
    context = Context(end=torch.tensor([0, 1, 1, 0]))
    made = LoRAExperts(8, 8, 3, 12.0, 0.1, experts=5, top_k=top_k, context=context).train(training)
    gates = mixed_gates([made], torch.randn(4, 2, 8), torch.randn(8))[0]
    assert ((gates > 0).sum(dim=1) == top_k).all()
    torch.testing.assert_close(gates.sum(dim=1), torch.ones(4))


def test_noise_sways_the_router_in_training_only(experts: LoRAExperts) -> None:
    states, prototype = torch.randn(2, 4, 8), torch.randn(8)
    experts.eval()
    assert torch.equal(mixed_gates([experts], states, prototype), mixed_gates([experts], states, prototype))
    experts.train()
    assert not torch.equal(mixed_gates([experts], states, prototype), mixed_gates([experts], states, prototype))


def test_mixture_against_a_loop_over_experts(experts: LoRAExperts) -> None:
    experts.eval()
    states = torch.randn(2, 4, 8)
    prototype = experts.context.prototype = torch.randn(8)
    with torch.no_grad():
        mixed = experts(states)
        for row, end in enumerate((2, 3)):
            logits = experts.router(states[row, end] + prototype)
            best = logits.topk(2).indices
            gates = logits[best].softmax(dim=0)
            expected = sum(
                gate * 4.0 * states[row] @ experts.A.T @ experts.B[e].T for gate, e in zip(gates, best, strict=True)
            )
            torch.testing.assert_close(mixed[row], expected, atol=1e-4, rtol=1e-5)
        experts.context.prototype = None
        torch.testing.assert_close(experts(states), 4.0 * states @ experts.A.T @ experts.B[0].T, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("prototype", [None, torch.linspace(-1, 1, 8)])
def test_several_mixtures_together_give_what_each_gives_alone(experts: LoRAExperts, prototype: Tensor | None) -> None:
    other = copy.deepcopy(experts)
    for weight in other.parameters():
        nn.init.normal_(weight)
    experts.eval(), other.eval()
    experts.context.prototype = other.context.prototype = prototype
    states = torch.randn(2, 4, 8)
    with torch.no_grad():
        together = mixed_updates([experts, other], states)
        torch.testing.assert_close(together, torch.stack([experts(states), other(states)]), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("dropout", "prototype"),
    [(0.0, torch.linspace(-1, 1, 8)), (0.5, None)],  # without a prototype there is no router, and so no noise
    ids=["noise alone", "dropout alone"],
)
def test_mixtures_draw_dropout_and_noise_of_their_own(
    experts: LoRAExperts, dropout: float, prototype: Tensor | None
) -> None:
    experts.dropout = dropout
    experts.context.prototype = prototype
    first, second = mixed_updates([experts.train(), experts], torch.randn(2, 4, 8))
    assert not torch.equal(first, second)


def test_after_task_1_every_prototype_reads_as_task_1_did() -> None:
    retriever = trained_retriever()
    _, tokens = batch()
    with torch.no_grad():
        expected = retriever.encode_text(tokens, 1)
        assert (retriever.encode_text(tokens, 2)[2] - expected[2]).abs().max() > 1e-2
        retriever.finish_task(1)
        for task in (1, 2, 3):
            found = retriever.encode_text(tokens, task)
            torch.testing.assert_close(found[0], expected[0], atol=1e-4, rtol=0)  # gates sum to 1 within rounding
            torch.testing.assert_close(found[2], expected[2], atol=1e-4, rtol=0)


def test_later_tasks_do_not_copy_experts() -> None:
    retriever = trained_retriever()
    before = copy.deepcopy(retriever.trained_state())
    retriever.finish_task(2)
    assert all(torch.equal(weight, before[name]) for name, weight in retriever.trained_state().items())


def test_queries_may_change_task_from_call_to_call() -> None:
    retriever = trained_retriever()
    _, tokens = batch()
    with torch.no_grad():
        first = [retriever.encode_text(tokens, task)[2] for task in (1, 2, 3)]
        again = [retriever.encode_text(tokens, task)[2] for task in (3, 1, 2)]
    for before, after in zip(first, (again[1], again[2], again[0]), strict=True):
        assert torch.equal(before, after)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(("vision", "text"), PAIRS)
def test_nothing_waits_for_the_device(vision: str, text: str, training: bool) -> None:
    """Tensors on the meta device have no values, so any step that would read one fails."""
    retriever = small_retriever(vision, text).train(training).to("meta")
    words, mask, end = retriever.encode_text(torch.zeros(4, 12, dtype=torch.long, device="meta"), 2)
    frames, video = retriever.encode_video(torch.zeros(4, 3, 3, 32, 32, dtype=torch.uint8, device="meta"))
    assert [tuple(part.shape) for part in (words, mask, end, frames, video)] == [
        (4, 12, 16),
        (4, 12),
        (4, 16),
        (4, 3, 16),
        (4, 16),
    ]


@pytest.mark.parametrize(("vision", "text"), PAIRS)
def test_bfloat16_trains_and_stays_close(vision: str, text: str) -> None:
    retriever = small_retriever(vision, text)
    pixels, tokens = batch()
    with torch.no_grad():
        exact = retriever.encode_video(pixels)[0], retriever.encode_text(tokens, 2)[2]
    with torch.autocast("cpu", torch.bfloat16):
        with torch.no_grad():
            rough = retriever.encode_video(pixels)[0], retriever.encode_text(tokens, 2)[2]
        retriever.prepare_task(2)
        gradients = backward(retriever, 2)
    for one, other in zip(exact, rough, strict=True):
        assert torch.cosine_similarity(one, other.float(), dim=-1).min() > 0.999
    assert all(gradient.isfinite().all() for gradient in gradients.values())


@pytest.mark.parametrize("vision", ["none", "lora", "frame_fusion", "mlp_moe"])
def test_the_residual_stream_of_every_method_is_in_full_precision(vision: str) -> None:
    retriever = small_retriever(vision, "none")
    kept = []
    for block in retriever.clip.visual.transformer.resblocks:
        block.register_forward_hook(lambda _module, _inputs, states: kept.append(states.dtype))
    with torch.autocast("cpu", torch.bfloat16):
        retriever.encode_video(batch()[0])
    assert set(kept) == {torch.float32}


def test_a_small_share_of_the_neighbours_survives_half_precision() -> None:
    retriever = small_retriever("frame_fusion", "none")
    fusions = [module for module in retriever.modules() if isinstance(module, FrameFusionAttention)]
    pixels, _ = batch()

    def effect(precise: bool) -> Tensor:
        results = []
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=not precise):
            for gate in (0.0, 1e-3):
                for fusion in fusions:
                    fusion.gate.fill_(gate)
                results.append(attention_of(fusions[0], pixels))
        return results[1] - results[0]

    exact, rough = effect(precise=True), effect(precise=False)
    assert torch.cosine_similarity(exact.flatten(), rough.flatten(), dim=0) > 0.95
    assert rough.norm() / exact.norm() == pytest.approx(1, abs=0.1)


def attention_of(fusion: FrameFusionAttention, pixels: Tensor) -> Tensor:
    """What a block's attention gives for some tokens of neighbouring frames."""
    fusion.context.num_frames = pixels.shape[1]
    source = torch.Generator().manual_seed(1)
    tokens = torch.randn(pixels.shape[0] * pixels.shape[1], 5, fusion.base.embed_dim, generator=source)
    return fusion(tokens, tokens, tokens)[0].float()


@pytest.mark.parametrize(("vision", "text"), PAIRS)
def test_permuting_a_batch_permutes_its_features(vision: str, text: str) -> None:
    retriever = trained_retriever(vision=vision, text=text)
    pixels, tokens = batch()
    order = torch.tensor([2, 0, 3, 1])
    with torch.no_grad():
        frames, words = retriever.encode_video(pixels)[0], retriever.encode_text(tokens, 2)[0]
        torch.testing.assert_close(retriever.encode_video(pixels[order])[0], frames[order], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(retriever.encode_text(tokens[order], 2)[0], words[order], atol=1e-5, rtol=1e-5)


# Routed experts


def routed_experts(**changes: object) -> RoutedExperts:
    torch.manual_seed(4)
    context = Context(end=torch.tensor([2, 3]))
    sizes = {"rank": 3, "alpha": 6.0, "dropout": 0.0, "experts": 5, "top_k": 2, "num_tasks": TASKS, "at_end": True}
    made = RoutedExperts(nn.Linear(8, 8), width=8, context=context, **{**sizes, **changes})
    for weight in (made.up, *made.routers, *made.noises):
        nn.init.normal_(weight)
    return made.eval()


@pytest.mark.parametrize("task", [1, 3])
@pytest.mark.parametrize("at_end", [True, False])
def test_routed_experts_against_a_loop(at_end: bool, task: int) -> None:
    made = routed_experts(at_end=at_end)
    made.context.task = task
    states = torch.randn(2, 4, 8)
    with torch.no_grad():
        mixed = made(states)
        for row, end in enumerate((2, 3)):
            logits = made.routers[task - 1] @ states[row, end if at_end else 0]
            best = logits.topk(2).indices
            expected = made.base(states[row])
            for gate, e in zip(logits[best].softmax(dim=0), best, strict=True):
                expected += gate * 2.0 * (states[row] @ made.down[e].T).relu() @ made.up[e]
            torch.testing.assert_close(mixed[row], expected, atol=1e-4, rtol=1e-5)


def test_each_task_reads_with_its_own_router_and_changes_no_other() -> None:
    retriever = trained_retriever(vision="mlp_moe", text="mlp_moe")
    pixels, tokens = batch()

    def features() -> list[tuple[Tensor, Tensor]]:
        return [(retriever.encode_video(pixels, task)[0], retriever.encode_text(tokens, task)[2]) for task in (1, 2)]

    with torch.no_grad():
        before = features()
        assert all((one - other).abs().max() > 1e-3 for one, other in zip(*before, strict=True))
        retriever.prepare_task(2)
        assert torch.equal(retriever.encode_video(pixels)[0], before[1][0])  # the present task, unless told otherwise
        for name, weight in retriever.named_parameters():
            if weight.requires_grad and ".routers." in name:
                weight.neg_()
        after = features()
    assert all(torch.equal(one, other) for one, other in zip(before[0], after[0], strict=True))
    assert all((one - other).abs().max() > 1e-3 for one, other in zip(before[1], after[1], strict=True))


def test_use_is_counted_in_training_alone_and_decides_what_is_frozen() -> None:
    made = routed_experts()
    states = torch.randn(2, 4, 8)
    made(states)
    assert not made.usage.any()
    made.train()
    for _ in range(10):
        made(states)
    assert made.usage.sum() == 10 * 2 * 2
    made.usage.copy_(torch.tensor([3, 9, 1, 7, 0]))
    made.freeze_most_used()
    assert made.frozen.tolist() == [False, True, False, True, False]
    assert not made.usage.any()
    made(states).sum().backward()
    assert not made.up.grad[made.frozen].any()
    assert not made.down.grad[made.frozen].any()
    made.usage.copy_(torch.tensor([5, 9, 5, 9, 0]))
    made.freeze_most_used()  # of three free experts one would stay, too few for a task
    assert made.frozen.sum() == 2
    assert made.frozen_parameters() == 2 * (3 * 8 + 8 * 3)


def test_adapters_in_all_blocks() -> None:
    assert len(small_retriever("mlp_moe", "mlp_moe", adapter_layers="all").routed_experts()) == 4 + 2
    assert len(small_retriever("mlp_moe", "none").routed_experts()) == 3


# Gradients


@pytest.mark.parametrize("task", [1, 2, 3])
@pytest.mark.parametrize(("vision", "text"), [choice for choice in CHOICES if choice != ("none", "none")])
def test_gradients_reach_what_trains_and_nothing_else(vision: str, text: str, task: int) -> None:
    retriever = trained_retriever(vision=vision, text=text)
    retriever.prepare_task(task)
    gradients = backward(retriever, task)
    kinds, other_tasks = ("prototypes", "routers", "noises"), set(range(TASKS)) - {task - 1}
    others = tuple(f"{kind}.{other}" for kind in kinds for other in other_tasks)
    expected = {name for name in retriever.trained_state() if not name.endswith(others)}
    if task == 1:  # bypasses the router
        expected = {name for name in expected if not name.endswith(("router.weight", "noise.weight"))}
        expected.discard("prototypes.0")
    assert set(gradients) == expected
    assert all(gradient.abs().max() > 0 for gradient in gradients.values())
    groups = [weight for group in retriever.parameter_groups() for weight in group]
    assert {id(weight) for weight in groups} == {
        id(weight) for name, weight in retriever.named_parameters() if name in expected
    }


def test_untouched_fusion_still_learns_its_share() -> None:
    retriever = small_retriever()
    retriever.prepare_task(1)
    gradients = backward(retriever, 1)
    shares = [gradient for name, gradient in gradients.items() if name.endswith("gate")]
    assert len(shares) == 3
    assert all(share.abs() > 0 for share in shares)


def test_task_1_moves_the_first_expert_alone() -> None:
    retriever = small_retriever()
    retriever.prepare_task(1)
    optimizer = torch.optim.AdamW([weight for group in retriever.parameter_groups() for weight in group], lr=0.1)
    for _ in range(2):
        backward(retriever, 1)
        optimizer.step()
    for name, weight in retriever.trained_state().items():
        if name.endswith(".B"):
            assert weight[0].abs().max() > 0
            assert not weight[1:].any()


def test_scalars_have_a_group_of_their_own() -> None:
    retriever = small_retriever()
    for task, scalars in ((1, 3), (2, 4)):  # a in 3 blocks, and p_t from task 2 on
        retriever.prepare_task(task)
        attention, few = retriever.parameter_groups()
        assert len(few) == scalars
        assert {weight.ndim for weight in few} == {1}
        assert len(attention) > 20


def test_a_step_moves_all_that_trains_and_nothing_frozen() -> None:
    retriever = trained_retriever()
    before = copy.deepcopy(dict(retriever.named_parameters()))
    retriever.prepare_task(2)
    optimizer = torch.optim.AdamW([weight for group in retriever.parameter_groups() for weight in group], lr=0.1)
    backward(retriever, 2)
    optimizer.step()
    moved = {name for name, weight in retriever.named_parameters() if not torch.equal(weight, before[name])}
    assert moved == {name for name, weight in retriever.named_parameters() if weight.requires_grad}


def test_fine_tuning_trains_all_but_the_logit_scale() -> None:
    retriever = Retriever(small_clip(), INFO, options("none", "none"), num_tasks=1, seed=0, trainable="all")
    retriever.prepare_task(1)
    still = {name for name, weight in retriever.named_parameters() if not weight.requires_grad}
    assert still == {"clip.logit_scale"}
    assert set(backward(retriever, 1)) == set(retriever.trained_state()) - still


def test_parameter_count_is_what_can_move() -> None:
    retriever = small_retriever()
    counts = []
    for task in (1, 2):
        retriever.prepare_task(task)
        counts.append(retriever.trained_parameters(task))
    cross = 3 * (4 * 32 * 32 + 4 * 32 + 1)
    assert counts[0] == cross + 2 * 4 * (3 * 32 + 32 * 3)
    assert counts[1] == cross + 2 * 4 * (3 * 32 + 5 * 32 * 3 + 2 * 5 * 32) + 32


# State


@pytest.mark.parametrize(("vision", "text"), PAIRS)
def test_state_comes_back_bit_for_bit(vision: str, text: str, tmp_path: Path) -> None:
    retriever = trained_retriever(vision=vision, text=text)
    save_tensors(retriever.trained_state(), tmp_path / "adapters.safetensors")
    other = small_retriever(vision, text)
    other.load_trained_state(load_tensors(tmp_path / "adapters.safetensors"))
    pixels, tokens = batch()
    with torch.no_grad():
        assert torch.equal(other.encode_video(pixels)[0], retriever.encode_video(pixels)[0])
        assert torch.equal(other.encode_text(tokens, 2)[0], retriever.encode_text(tokens, 2)[0])


def test_state_holds_no_frozen_weight_but_all_of_a_fine_tuned_clip() -> None:
    frozen = {f"clip.{name}" for name in small_clip().state_dict()}
    assert not frozen & set(small_retriever().trained_state())
    tuned = Retriever(small_clip(), INFO, options("none", "none"), num_tasks=1, seed=0, trainable="all")
    assert set(tuned.trained_state()) == frozen


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"rank": 4}, r"another shape, such as .*\.A is \(3, 32\), expected \(4, 32\)"),
        ({"experts": 4}, r"another shape, such as .*\.B is \(5, 32, 3\), expected \(4, 32, 3\)"),
        ({"adapter_layers": 4}, "missing, such as .*resblocks.0.attn"),
        ({"adapter_layers": 2}, "unknown, such as .*resblocks.1.attn"),
        ({"text": "lora"}, "unknown"),
    ],
)
def test_checkpoint_of_another_size_is_refused_and_changes_nothing(changes: dict, said: str) -> None:
    state = trained_retriever().trained_state()
    other = small_retriever(**changes)
    before = copy.deepcopy(other.trained_state())
    with pytest.raises(UserError, match=said):
        other.load_trained_state(state)
    assert all(torch.equal(weight, before[name]) for name, weight in other.trained_state().items())


def test_a_copy_shares_nothing() -> None:
    """A teacher is a deep copy: what the model learns later, and what it is fed, must not reach it."""
    retriever = trained_retriever()
    pixels, tokens = batch()
    with torch.inference_mode():
        expected = retriever.encode_video(pixels)[0], retriever.encode_text(tokens, 2)[0]
    teacher = copy.deepcopy(retriever)
    with torch.no_grad():
        for weight in retriever.trained_state().values():
            weight.add_(1.0)
        teacher.encode_video(pixels[:, :2])
        retriever.encode_text(tokens[:2], 3)
        found = teacher.encode_video(pixels)[0], teacher.encode_text(tokens, 2)[0]
    assert all(torch.equal(one, other) for one, other in zip(expected, found, strict=True))


# Options that do not go


def test_more_adapters_than_blocks() -> None:
    with pytest.raises(UserError, match=r"model\.adapter_layers = 5: small has 4 vision blocks"):
        small_retriever(adapter_layers=5)


def test_blocks_with_another_attention() -> None:
    vision = {**SMALL["vision_cfg"], "block_type": "custom"}  # type: ignore[dict-item]
    clip = CLIP(SMALL["embed_dim"], vision, SMALL["text_cfg"])  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"model\.vision_adapter = 'frame_fusion': small has no such blocks"):
        Retriever(clip, INFO, options(), num_tasks=TASKS, seed=0)
