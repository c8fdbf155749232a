"""How alike a video and a text are: word-frame similarity, and its fusion with the global cosine."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import normalize

from structalign.errors import UserError

Pooling = Literal["max", "soft"]

MAX_ELEMENTS = 2**25
"""Cosines held at a time, V x N x T x L: 128 MB in float32."""


def word_frame_similarity(
    frames: Tensor,
    words: Tensor,
    mask: Tensor,
    pooling: Pooling = "max",
    max_elements: int = MAX_ELEMENTS,
) -> Tensor:
    """Score every video against every text by their best-matching frames and words.

    Half the mean over words of the best frame's cosine, plus half the mean over frames of the best word's
    (METHOD.md, section 3). `soft` takes softmax-weighted sums in place of the best.

    Parameters
    ----------
    frames : Tensor, shape (V, N, D)
        Frame features; they need not be normalised.
    words : Tensor, shape (T, L, D)
        Word features, padded to L.
    mask : Tensor, shape (T, L), bool
        True where there is a word.
    pooling : {"max", "soft"}
    max_elements : int
        Bound on the cosines held at a time. Videos are taken in chunks that respect it; the result is the same.

    Returns
    -------
    Tensor, shape (V, T)
        A text without words has similarity 0 with every video.
    """
    if pooling not in ("max", "soft"):
        raise UserError(f"similarity.pooling = {pooling!r}: must be max or soft")
    frames, words = normalize(frames, dim=-1), normalize(words, dim=-1)
    per_video = frames.shape[1] * words.shape[0] * words.shape[1]
    chunk = max(1, max_elements // max(1, per_video))
    parts = [_similarity(part, words, mask, pooling) for part in frames.split(chunk)]
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _similarity(frames: Tensor, words: Tensor, mask: Tensor, pooling: Pooling) -> Tensor:
    """Score normalised frames (V, N, D) against normalised words (T, L, D): (V, T)."""
    (videos, num_frames, width), (texts, length, _) = frames.shape, words.shape
    cosine = frames.reshape(-1, width) @ words.reshape(-1, width).T
    cosine = cosine.view(videos, num_frames, texts, length)  # [V,N,T,L]
    # One masked copy serves both directions: a padded word must never be a frame's best match, and what the best
    # frame of a padded word is does not matter, because its share in the mean over words is 0.
    masked = cosine.masked_fill(~mask, torch.finfo(cosine.dtype).min)
    per_frame, per_word = (_best(masked, -1, pooling), _best(cosine, 1, pooling))  # [V,N,T], [V,T,L]
    count = mask.sum(dim=-1)  # [T]
    over_words = (per_word * mask).sum(dim=-1) / count.clamp_min(1)  # [V,T]
    over_frames = per_frame.mean(dim=1)  # [V,T]
    return (0.5 * (over_words + over_frames)).masked_fill(count == 0, 0.0)


def _best(cosine: Tensor, dim: int, pooling: Pooling) -> Tensor:
    """Maximum along `dim`, or the sum weighted by the softmax along it."""
    if pooling == "max":
        return cosine.amax(dim=dim)
    return (cosine.softmax(dim=dim) * cosine).sum(dim=dim)


def fuse(word_frame: Tensor, global_: Tensor, alpha: float) -> Tensor:
    """Mix two scores, each standardised per query over the whole gallery (METHOD.md, section 3).

    Parameters
    ----------
    word_frame, global_ : Tensor, shape (Q, V)
        Scores of every query against every gallery video.
    alpha : float in [0, 1]
        Share of the word-frame score.

    Returns
    -------
    Tensor, shape (Q, V)
    """
    return alpha * _standardise(word_frame) + (1 - alpha) * _standardise(global_)


def _standardise(scores: Tensor) -> Tensor:
    """z-scores of each row, by its biased standard deviation, clamped so that a constant row gives zeros."""
    deviation = scores.std(dim=1, keepdim=True, correction=0).clamp_min(1e-6)
    return (scores - scores.mean(dim=1, keepdim=True)) / deviation
