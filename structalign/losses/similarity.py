"""How alike a text and a video are: word-frame similarity, and its fusion with the global cosine at test time.

Everything is one matrix product of all frames with all words, followed by reductions (METHOD.md, section 3).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from structalign.util.errors import UserError

Pooling = Literal["max", "soft"]

_ROOMY, _CACHED = 2**26, 2**20
"""Cosines held at a time: what a GPU fills its cores with, and what stays in a CPU's caches."""

_SMALLEST_STD = 1e-6


def word_frame_similarity(
    frames: Tensor,
    words: Tensor,
    mask: Tensor,
    pooling: Pooling = "max",
    max_elements: int | None = None,
) -> Tensor:
    """Score every text against every video by how well its words and the video's frames find each other.

    Half the mean over words of the best frame's cosine, plus half the mean over frames of the best word's.

    Parameters
    ----------
    frames : Tensor, shape (V, N, D)
        Frame features; they need not be normalised.
    words : Tensor, shape (T, L, D)
        Word features, padded; they need not be normalised.
    mask : Tensor of bool, shape (T, L)
        True at words, False at padding. A text without words scores 0.
    pooling : {"max", "soft"}
        `max` takes the best cosine, `soft` the sum of the cosines weighted by their own softmax.
    max_elements : int, optional
        How many of the V * N * T * L cosines may be held at a time (never less than one pair's). If they
        do not fit at once, gradients are computed from recomputed blocks, so that memory stays bounded in
        training as well. By default, a number that suits the device.

    Returns
    -------
    Tensor, shape (V, T)
        Similarities between -1 and 1, in float32 or better.

    Raises
    ------
    UserError
        If `pooling` has an unknown value.

    Notes
    -----
    Source: METHOD.md, section 3.
    """
    if pooling not in _POOLED:
        raise UserError(f"similarity.pooling = {pooling!r}: must be one of {', '.join(_POOLED)}")
    (videos, num_frames, _), (texts, num_words, _) = frames.shape, words.shape
    if 0 in (videos, texts, num_words):
        return frames.new_zeros(videos, texts)
    # Cosines of neighbouring frames differ by less than half precision tells apart, and a maximum picks one of them.
    dtype = torch.promote_types(frames.dtype, torch.float32)
    frames = F.normalize(frames.to(dtype), dim=-1)
    words = F.normalize(_repeat_first_word(words.to(dtype), mask), dim=-1)
    block = partial(_block, pool=_POOLED[pooling])

    needs_gradient = torch.is_grad_enabled() and (frames.requires_grad or words.requires_grad)
    # With gradients a second block costs recomputation, so small blocks pay only without.
    limit = max_elements or (_ROOMY if needs_gradient or frames.is_cuda else _CACHED)
    video_step, text_step = _block_size(videos, texts, limit // (num_frames * num_words))
    if video_step == videos and text_step == texts:
        return block(frames, words, mask)
    if needs_gradient:
        block = partial(checkpoint, block, use_reentrant=False, preserve_rng_state=False)
    text_blocks = list(zip(words.split(text_step), mask.split(text_step), strict=True))
    rows = [
        torch.cat([block(some, *texts_of_block) for texts_of_block in text_blocks], dim=1)  # [v,T]
        for some in frames.split(video_step)
    ]
    return torch.cat(rows)


def full_precision(device: torch.device) -> torch.autocast:
    """Leave mixed precision for products that are small and whose results must not be rounded.

    Logits reach hundreds, where bfloat16 counts in whole numbers.
    """
    return torch.autocast(device.type, enabled=False)


def fuse(word_frame: Tensor, global_: Tensor, alpha: float, over: tuple[Tensor, Tensor] | None = None) -> Tensor:
    """Combine two kinds of scores, each standardised per query, into the one that ranks.

    Parameters
    ----------
    word_frame, global_ : Tensor, shape (Q, V)
        Word-frame similarities and global cosines of each query with the whole seen gallery.
    alpha : float
        Share of the word-frame scores, between 0 and 1.
    over : pair of Tensor, shapes (..., S) and (..., S'), optional
        If `word_frame` and `global_` are a part of each query's scores: those that mean and standard deviation
        are taken over.

    Returns
    -------
    Tensor, shape (Q, V)

    Notes
    -----
    Source: METHOD.md, section 3. The standard deviation is the biased one and at least 1e-6.
    """
    words, whole = over or (word_frame, global_)
    return alpha * standardise(word_frame, words) + (1 - alpha) * standardise(global_, whole)


def standardise(scores: Tensor, over: Tensor) -> Tensor:
    """Shift and scale scores (..., V) by mean and (biased) standard deviation of each row of `over` (..., S)."""
    std, mean = torch.std_mean(over, dim=-1, correction=0, keepdim=True)
    return (scores - mean) / std.clamp(min=_SMALLEST_STD)


def _repeat_first_word(words: Tensor, mask: Tensor) -> Tensor:
    """Overwrite padding with the text's own first word, which no maximum notices; zeros for a text without words.

    So the block of cosines, by far the largest array, needs no masking.
    """
    words = words.masked_fill(~mask[..., None], 0)  # [T,L,D]
    first = mask.to(torch.uint8).argmax(dim=1)  # [T]
    return torch.where(mask[..., None], words, words[torch.arange(len(words), device=words.device), first, None])


def _block_size(videos: int, texts: int, pairs: int) -> tuple[int, int]:
    """Choose how many videos and texts meet at a time: about `pairs` pairs, as square as their numbers allow."""
    pairs = max(pairs, 1)
    text_step = min(texts, math.isqrt(pairs))
    video_step = min(videos, pairs // text_step)
    return video_step, min(texts, pairs // video_step)


def _block(frames: Tensor, words: Tensor, mask: Tensor, pool: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    # Texts come last, so that both reductions run over outer dimensions and the inner one stays contiguous.
    flat_words = words.transpose(0, 1).flatten(0, 1)  # [L*T,D]
    with full_precision(frames.device):
        cosine = (frames.flatten(0, 1) @ flat_words.T).view(*frames.shape[:2], *mask.T.shape)  # [V,N,L,T]
    return pool(cosine, mask.T)


def _pool_max(cosine: Tensor, mask: Tensor) -> Tensor:
    by_word, by_frame = cosine.amax(1), cosine.amax(2)  # [V,L,T], [V,N,T]
    return _mean_of_both(by_word, by_frame, mask)


def _pool_soft(cosine: Tensor, mask: Tensor) -> Tensor:
    by_word = (cosine.softmax(1) * cosine).sum(1)  # [V,L,T]
    # A text without words keeps all of its (zero) words, because a softmax over nothing is no number.
    kept = mask | ~mask.any(0)  # [L,T]
    by_frame = (cosine.masked_fill(~kept, -math.inf).softmax(2) * cosine).sum(2)  # [V,N,T]
    return _mean_of_both(by_word, by_frame, mask)


def _mean_of_both(by_word: Tensor, by_frame: Tensor, mask: Tensor) -> Tensor:
    """Average over the words of each text and over the frames of each video; half precision ends here."""
    dtype = torch.promote_types(by_word.dtype, torch.float32)
    share = mask.to(dtype) / mask.sum(0).clamp(min=1)  # [L,T]
    return ((by_word * share).sum(1) + by_frame.mean(1, dtype=dtype)) / 2  # [V,T]


_POOLED = {"max": _pool_max, "soft": _pool_soft}
