"""The losses, one small function a term (METHOD.md, sections 4 and 7).

Shapes: B pairs of a video and a text, N frames, L words, D features, C prototypes, P pseudo pairs.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity, cross_entropy, kl_div, log_softmax, normalize, pad

from structalign.losses.etf import Projection, pool_to_prototype, projection_weight
from structalign.losses.similarity import full_precision

SameVideo = Literal["negative", "masked", "positive"]


def pool_words(words: Tensor, mask: Tensor) -> Tensor:
    """Average words (B, L, D) under their mask (B, L) and L2-normalise: (B, D); no words give zeros."""
    total = words.masked_fill(~mask[..., None], 0).sum(dim=1)  # [B,D]
    return normalize(total / mask.sum(dim=1, keepdim=True).clamp_min(1), dim=-1)


def pool_frames(frames: Tensor) -> Tensor:
    """Average frames (B, N, D) and L2-normalise: (B, D)."""
    return normalize(frames.mean(dim=1), dim=-1)


def scl(
    similarity: Tensor,
    log_scale: Tensor | float,
    same_video: SameVideo = "negative",
    video: Tensor | None = None,
) -> Tensor:
    """Symmetric contrastive loss: cross-entropy over rows plus cross-entropy over columns.

    Parameters
    ----------
    similarity : Tensor, shape (B, B)
        Entry (i, j): video i against text j; pairs lie on the diagonal.
    log_scale : float
        Logits are similarity * exp(log_scale) / sqrt(B).
    same_video : {"negative", "masked", "positive"}
        What another caption of the same video is: a negative (the released code), masked (left out of the
        softmax), or a positive of equal standing.
    video : Tensor, shape (B,), optional
        Which video each pair shows; needed unless `same_video` is "negative".

    Raises
    ------
    ValueError
        If `video` is missing, or `same_video` has an unknown value.
    """
    logits = similarity * (_scale(log_scale) / len(similarity) ** 0.5)  # [B,B]
    return symmetric(logits, same_video, video)


def crp(
    student: Tensor,
    teacher: Tensor,
    log_scale: Tensor | float,
    teacher_log_scale: Tensor | float,
    temperature: float = 2.0,
) -> Tensor:
    """Cross-modal relation preserving: KL(teacher || student) over rows and over columns, averaged.

    Parameters
    ----------
    student, teacher : Tensor, shape (B, B)
        Similarities, both scaled into logits as in `scl`. No gradient reaches the teacher's, which may come from
        inference mode.
    log_scale, teacher_log_scale : float
    temperature : float
        Softens both; the result is multiplied by its square.
    """
    root = len(student) ** 0.5
    student_logits = student * _scale(log_scale) / (root * temperature)
    teacher_logits = (teacher * _scale(teacher_log_scale) / (root * temperature)).detach()
    divergence = _divergence(student_logits, teacher_logits) + _divergence(student_logits.T, teacher_logits.T)
    return temperature**2 * divergence / 2


def _divergence(student: Tensor, teacher: Tensor) -> Tensor:
    """KL(teacher || student) of row-wise softmaxes, averaged over rows."""
    return kl_div(log_softmax(student, 1), log_softmax(teacher, 1), reduction="batchmean", log_target=True)


def etf_alignment(
    words: Tensor,
    mask: Tensor,
    frames: Tensor,
    category: Tensor,
    prototypes: Tensor,
    text_proj: Projection,
    video_proj: Projection,
) -> Tensor:
    """Pull each sample's text and video to its class prototype.

    Words and frames are projected, pooled by the softmax of their inner products with the prototype e, and
    compared with it: the mean of (1 - cos(text, e)) + (1 - cos(video, e)).

    Parameters
    ----------
    words : Tensor, shape (B, L, D)
    mask : Tensor, shape (B, L), bool
    frames : Tensor, shape (B, N, D)
    category : Tensor, shape (B,), int64
        Row of each sample's prototype.
    prototypes : Tensor, shape (C, D)
    text_proj, video_proj : Tensor of shape (D, D), nn.Linear or callable
        The linear maps P_t and P_v, without bias; a tensor is a weight (out, in).
    """
    target = prototypes[category]  # [B,D]
    text = pool_to_prototype(words, target, text_proj, mask)  # [B,D]
    video = pool_to_prototype(frames, target, video_proj)  # [B,D]
    return _distance(text, target) + _distance(video, target)


def _distance(features: Tensor, target: Tensor) -> Tensor:
    return (1 - cosine_similarity(features, target, dim=-1)).mean()


def etf_pseudo(
    text: Tensor,
    video: Tensor,
    category: Tensor,
    prototypes: Tensor,
    text_proj: Projection,
    video_proj: Projection,
) -> Tensor:
    """Pull pseudo features of old classes, text and video (P, D), to their prototypes, as `etf_alignment` does."""
    target = prototypes[category]  # [P,D]
    text = text @ projection_weight(text_proj, text).T  # [P,D]
    video = video @ projection_weight(video_proj, video).T  # [P,D]
    return _distance(text, target) + _distance(video, target)


def pseudo_contrastive(
    words: Tensor,
    mask: Tensor,
    frames: Tensor,
    pseudo_text: Tensor,
    pseudo_video: Tensor,
    log_scale: Tensor | float,
    same_video: SameVideo = "negative",
    video: Tensor | None = None,
    same_class: SameVideo = "negative",
    category: Tensor | None = None,
) -> Tensor:
    """Contrast the batch's pooled features together with pseudo pairs of old classes.

    Parameters
    ----------
    words : Tensor, shape (B, L, D)
    mask : Tensor, shape (B, L), bool
    frames : Tensor, shape (B, N, D)
    pseudo_text, pseudo_video : Tensor, shape (P, D)
        Taken as drawn, not normalised.
    log_scale : float
    same_video, video
        As in `scl`, for the batch.
    same_class, category
        The same for the pseudo pairs: what those of one class are to each other, and their classes (P,). Text and
        video of a pair are drawn independently, so that nothing tells apart pairs of one class.
    """
    texts = torch.cat([pool_words(words, mask), pseudo_text.to(words)])  # [B+P,D]
    videos = torch.cat([pool_frames(frames), pseudo_video.to(frames)])  # [B+P,D]
    logits = _inner_products(videos, texts, log_scale)  # [B+P,B+P]
    batch, old = _relate(same_video, video), _relate(same_class, category)
    relation = _block_diagonal(batch, old, (len(words), len(pseudo_text)), logits.device)
    return _one_way(logits, relation) + _one_way(logits.T, relation)


def contrastive(
    text: Tensor,
    video: Tensor,
    log_scale: Tensor | float,
    same_video: SameVideo = "negative",
    which: Tensor | None = None,
) -> Tensor:
    """Symmetric contrastive loss of global features (B, D): rows plus columns, on cosines.

    `which` (B,) says which video each pair shows, as `video` does in `scl`.
    """
    logits = _inner_products(normalize(video, dim=-1), normalize(text, dim=-1), log_scale)
    return symmetric(logits, same_video, which)


def cross_task(
    text: Tensor,
    video: Tensor,
    stored: Tensor,
    log_scale: Tensor | float,
    same_video: SameVideo = "negative",
    which: Tensor | None = None,
) -> Tensor:
    """Let texts (B, D) find their videos (B, D) among stored ones (S, D) as well (METHOD.md, section 7).

    `stored` are of unit length; `same_video` and `which` as in `contrastive`.
    """
    gallery = torch.cat([normalize(video, dim=-1), stored.to(video)])  # [B+S,D]
    logits = scaled_cosines(normalize(text, dim=-1), gallery, log_scale)  # [B,B+S]
    return _one_way(logits, _relate(same_video, which))


def scaled_cosines(left: Tensor, right: Tensor, log_scale: Tensor | float) -> Tensor:
    """Cosines (A, B) of features of unit length, (A, D) and (B, D), times exp(log_scale), in full precision."""
    with full_precision(left.device):
        dtype = torch.promote_types(left.dtype, torch.float32)
        return _scale(log_scale) * left.to(dtype) @ right.to(dtype).T


def _inner_products(video: Tensor, text: Tensor, log_scale: Tensor | float) -> Tensor:
    with full_precision(video.device):
        dtype = torch.promote_types(video.dtype, torch.float32)
        return video.to(dtype) @ text.to(dtype).T * _scale(log_scale)


def symmetric(logits: Tensor, same_video: SameVideo = "negative", video: Tensor | None = None) -> Tensor:
    """Cross-entropy of the diagonal over rows plus over columns; `same_video` and `video` as in `scl`."""
    relation = _relate(same_video, video)
    return _one_way(logits, relation) + _one_way(logits.T, relation)


class _Relation(NamedTuple):
    """What B pairs are to each other, besides negatives; None if there is nothing to say."""

    masked: Tensor | None  # [B,B], bool: left out of the softmax
    positive: Tensor | None  # [B,B], bool, the diagonal among them; None: the diagonal alone


def _relate(mode: SameVideo, which: Tensor | None) -> _Relation:
    """Relate pairs that are the same by `which` (B,)."""
    if mode not in ("negative", "masked", "positive"):
        raise ValueError(f"same_video = {mode!r}: must be negative, masked or positive")
    if mode == "negative":
        return _Relation(None, None)
    if which is None:
        raise ValueError(f"same_video = {mode!r} needs to know which video each pair shows")
    same = which[:, None] == which  # [B,B]
    return _Relation(same.fill_diagonal_(False), None) if mode == "masked" else _Relation(None, same)


def _block_diagonal(one: _Relation, other: _Relation, sizes: tuple[int, int], device: torch.device) -> _Relation:
    """Relate two groups of pairs that are negatives of each other."""

    def both(first: Tensor | None, second: Tensor | None, diagonal: bool) -> Tensor | None:
        if first is None and second is None:
            return None
        blanks = (torch.eye(size, dtype=torch.bool, device=device) & diagonal for size in sizes)
        return torch.block_diag(
            *(blank if part is None else part for part, blank in zip((first, second), blanks, strict=True))
        )

    return _Relation(both(one.masked, other.masked, False), both(one.positive, other.positive, True))


def _one_way(logits: Tensor, relation: _Relation) -> Tensor:
    """Cross-entropy over rows (B, B + S) of B pairs on the diagonal; the other S columns are other videos."""
    others = (0, logits.shape[1] - len(logits))
    if relation.masked is not None:
        # Not infinity: targets of 0 in the same row would make NaN of it.
        logits = logits.masked_fill(pad(relation.masked, others), torch.finfo(logits.dtype).min / 2)
    if relation.positive is None:
        return cross_entropy(logits, torch.arange(len(logits), device=logits.device))
    positive = pad(relation.positive, others)  # [B,B+S]
    return cross_entropy(logits, positive / positive.sum(dim=1, keepdim=True).to(logits.dtype))


def distillation(student: Tensor, teacher: Tensor, temperature: float = 2.0) -> Tensor:
    """Cross-entropy of the student's softened logits (B, B) under the teacher's, over rows and over columns."""
    student_logits, teacher_logits = student / temperature, (teacher / temperature).detach()
    by_row = cross_entropy(student_logits, teacher_logits.softmax(1))
    return by_row + cross_entropy(student_logits.T, teacher_logits.T.softmax(1))


def adaptive_factor(base: Tensor, term: Tensor) -> Tensor:
    """Factor base / term, without gradient: a term times this factor always weighs as much as the base loss."""
    return (base / term.clamp_min(1e-12)).detach()


def _scale(log_scale: Tensor | float) -> Tensor | float:
    # A Python number stays one: as a float32 tensor it would round what is computed in float64.
    return log_scale.exp() if isinstance(log_scale, Tensor) else math.exp(log_scale)
