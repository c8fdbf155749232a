"""Properties of word-frame similarity: masks, order, memory, gradients, and a plain loop that says what it is."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import cosine_similarity

from structalign.losses.similarity import fuse, word_frame_similarity
from structalign.util.errors import UserError

POOLINGS = pytest.mark.parametrize("pooling", ["max", "soft"])


def features(
    videos: int = 4, texts: int = 5, frames: int = 3, words: int = 6, width: int = 8, seed: int = 0
) -> tuple[Tensor, Tensor, Tensor]:
    """Random features whose masks have holes and differ in length; every text has a word."""
    source = torch.Generator().manual_seed(seed)
    mask = torch.rand(texts, words, generator=source) < 0.6
    mask[torch.arange(texts), torch.randint(words, (texts,), generator=source)] = True
    return (
        torch.randn(videos, frames, width, generator=source, dtype=torch.float64),
        torch.randn(texts, words, width, generator=source, dtype=torch.float64),
        mask,
    )


def pool(values: list[Tensor], pooling: str) -> Tensor:
    stacked = torch.stack(values)
    return stacked.max() if pooling == "max" else (stacked.softmax(0) * stacked).sum()


def plain(frames: Tensor, words: Tensor, mask: Tensor, pooling: str) -> Tensor:
    """METHOD.md, section 3, pair by pair and word by word."""
    result = torch.zeros(len(frames), len(words), dtype=frames.dtype)
    for i, video in enumerate(frames):
        for j, text in enumerate(words):
            kept = [word for word, real in zip(text, mask[j], strict=True) if real]
            if not kept:
                continue
            cosine = [[cosine_similarity(frame, word, dim=0) for frame in video] for word in kept]
            by_word = [pool(row, pooling) for row in cosine]
            by_frame = [pool(list(column), pooling) for column in zip(*cosine, strict=True)]
            result[i, j] = (torch.stack(by_word).mean() + torch.stack(by_frame).mean()) / 2
    return result


@POOLINGS
@settings(max_examples=25, deadline=None)
@given(
    sizes=st.tuples(*[st.integers(1, 5)] * 5),
    max_elements=st.one_of(st.none(), st.integers(1, 200)),
    seed=st.integers(0, 2**16),
    empty=st.booleans(),
)
def test_equals_the_plain_loop(
    pooling: str, sizes: tuple[int, ...], max_elements: int | None, seed: int, empty: bool
) -> None:
    inputs = features(*sizes, seed=seed)
    if empty:
        inputs[2][0] = False
    ours = word_frame_similarity(*inputs, pooling=pooling, max_elements=max_elements)
    torch.testing.assert_close(ours, plain(*inputs, pooling), rtol=0, atol=1e-12)


@POOLINGS
def test_permuting_the_batch_permutes_the_similarities(pooling: str) -> None:
    frames, words, mask = features()
    rows, columns = torch.tensor([2, 0, 3, 1]), torch.tensor([4, 1, 0, 3, 2])
    straight = word_frame_similarity(frames, words, mask, pooling)
    permuted = word_frame_similarity(frames[rows], words[columns], mask[columns], pooling)
    torch.testing.assert_close(permuted, straight[rows][:, columns])


@POOLINGS
@pytest.mark.parametrize("filler", [0.0, 7.0, float("nan"), float("inf")])
def test_padding_changes_nothing(pooling: str, filler: float) -> None:
    frames, words, mask = features()
    padded = torch.cat([words.masked_fill(~mask[..., None], filler), torch.full((5, 3, 8), filler)], dim=1)
    wider = torch.cat([mask, torch.zeros(5, 3, dtype=torch.bool)], dim=1)
    padded.requires_grad_()
    ours = word_frame_similarity(frames, padded, wider, pooling)
    torch.testing.assert_close(ours, word_frame_similarity(frames, words, mask, pooling))
    ours.sum().backward()
    assert padded.grad.isfinite().all()
    assert not padded.grad[~wider].any()


@POOLINGS
def test_an_empty_caption_scores_zero_and_takes_no_gradient(pooling: str) -> None:
    frames, words, mask = features()
    mask[2] = False
    frames.requires_grad_()
    words.requires_grad_()
    ours = word_frame_similarity(frames, words, mask, pooling)
    assert not ours[:, 2].any()
    assert ours[:, [0, 1, 3, 4]].all()
    ours.sum().backward()
    assert frames.grad.isfinite().all()
    assert not words.grad[2].any()


@POOLINGS
@pytest.mark.parametrize(("videos", "texts", "words"), [(0, 5, 6), (4, 0, 6), (4, 5, 0)])
def test_nothing_to_compare(pooling: str, videos: int, texts: int, words: int) -> None:
    mask = torch.ones(texts, words, dtype=torch.bool)
    ours = word_frame_similarity(torch.randn(videos, 3, 8), torch.randn(texts, words, 8), mask, pooling)
    assert ours.shape == (videos, texts)
    assert not ours.any()


@POOLINGS
@pytest.mark.parametrize("max_elements", [None, 1, 60])
def test_gradients_are_right_in_one_block_and_in_many(pooling: str, max_elements: int | None) -> None:
    frames, words, mask = features(2, 3, 2, 3, 3)
    mask[1] = False
    frames.requires_grad_()
    words.requires_grad_()

    def score(frames: Tensor, words: Tensor) -> Tensor:
        return word_frame_similarity(frames, words, mask, pooling, max_elements)

    assert torch.autograd.gradcheck(score, (frames, words))


def saved_elements(max_elements: int | None) -> int:
    """Elements of all tensors that the forward pass keeps for the backward pass."""
    saved: dict[int, Tensor] = {}

    def note(tensor: Tensor) -> Tensor:
        saved[tensor.untyped_storage().data_ptr()] = tensor  # views of one tensor count once
        return tensor

    frames, words, mask = features(20, 20, 6, 6, 4)
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        word_frame_similarity(frames.requires_grad_(), words, mask, "max", max_elements)
    return sum(tensor.untyped_storage().size() // tensor.element_size() for tensor in saved.values())


def test_the_bound_on_memory_holds_in_training() -> None:
    block = 20 * 20 * 6 * 6
    assert saved_elements(block) >= block
    assert saved_elements(block // 10) < block // 5  # the features themselves, and no block


def test_half_precision_gives_full_precision_scores() -> None:
    frames, words, mask = features()
    frames, words = frames.bfloat16(), words.bfloat16()
    ours = word_frame_similarity(frames, words, mask)
    assert ours.dtype == torch.float32
    exact = word_frame_similarity(frames.double(), words.double(), mask)
    torch.testing.assert_close(ours.double(), exact, rtol=0, atol=1e-5)


def test_the_best_frame_is_found_in_full_precision_under_autocast() -> None:
    frames, words, mask = (part.float() if part.is_floating_point() else part for part in features())
    frames = frames[:, :1] + 0.01 * frames  # neighbouring frames: closer than half precision tells apart
    expected = word_frame_similarity(frames, words, mask)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(word_frame_similarity(frames, words, mask), expected, rtol=0, atol=1e-6)


def test_unknown_pooling_is_named() -> None:
    with pytest.raises(UserError, match=r"similarity.pooling = 'mean'"):
        word_frame_similarity(*features(), pooling="mean")


def test_fusion_depends_on_neither_shift_nor_scale() -> None:
    word_frame, global_ = torch.randn(2, 3, 9, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    fused = fuse(word_frame, global_, 0.3)
    torch.testing.assert_close(fuse(5 * word_frame - 2, 0.1 * global_ + 7, 0.3), fused)
    torch.testing.assert_close(fused.mean(1), torch.zeros(3, dtype=torch.float64))


def test_fusion_of_equal_scores_is_zero() -> None:
    assert not fuse(torch.full((2, 5), 0.3), torch.zeros(2, 5), 0.5).isnan().any()
    assert fuse(torch.ones(2, 5), torch.zeros(2, 5), 0.5).abs().max() == 0
