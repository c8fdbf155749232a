"""The losses, one small function a term (METHOD.md, sections 4 and 7).

Shapes: B pairs of a video and a text, N frames, L words, D features, C prototypes, P pseudo pairs.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity, cross_entropy, kl_div, log_softmax, normalize

SameVideo = Literal["negative", "masked", "positive"]


def pool_words(words: Tensor, mask: Tensor) -> Tensor:
    """Average words (B, L, D) under their mask (B, L) and L2-normalise: (B, D); no words give zeros."""
    total = (words * mask[..., None]).sum(dim=1)  # [B,D]
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
        What another caption of the same video is: a negative (the released code), nobody (left out of the
        softmax), or a positive of equal standing.
    video : Tensor, shape (B,), optional
        Which video each pair shows; needed unless `same_video` is "negative".
    """
    logits = similarity * _scale(log_scale) / len(similarity) ** 0.5  # [B,B]
    if same_video == "negative":
        target = torch.arange(len(logits), device=logits.device)
        return cross_entropy(logits, target) + cross_entropy(logits.T, target)
    if video is None:
        raise ValueError(f"same_video={same_video!r} needs to know which video each pair shows")
    same = video[:, None] == video[None, :]  # [B,B]
    if same_video == "masked":
        others = same & ~torch.eye(len(same), dtype=torch.bool, device=same.device)
        logits = logits.masked_fill(others, torch.finfo(logits.dtype).min)
        target = torch.arange(len(logits), device=logits.device)
        return cross_entropy(logits, target) + cross_entropy(logits.T, target)
    target = same / same.sum(dim=1, keepdim=True)  # [B,B], rows sum to 1
    return cross_entropy(logits, target) + cross_entropy(logits.T, target)


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
        Similarities, both scaled into logits as in `scl`.
    log_scale, teacher_log_scale : float
    temperature : float
        Softens both; the result is multiplied by its square.
    """
    root = len(student) ** 0.5
    ours = student * _scale(log_scale) / (root * temperature)
    theirs = teacher * _scale(teacher_log_scale) / (root * temperature)
    both = [_divergence(ours, theirs), _divergence(ours.T, theirs.T)]
    return temperature**2 * sum(both) / 2


def _divergence(student: Tensor, teacher: Tensor) -> Tensor:
    """KL(teacher || student) of row-wise softmaxes, averaged over rows."""
    return kl_div(log_softmax(student, 1), log_softmax(teacher, 1), reduction="batchmean", log_target=True)


def etf_alignment(
    words: Tensor,
    mask: Tensor,
    frames: Tensor,
    category: Tensor,
    prototypes: Tensor,
    text_proj: Tensor,
    video_proj: Tensor,
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
    text_proj, video_proj : Tensor, shape (D, D)
        Weights of the linear maps P_t and P_v, (out, in).
    """
    target = prototypes[category]  # [B,D]
    text = _attend(words @ text_proj.T, target, mask)  # [B,D]
    video = _attend(frames @ video_proj.T, target, None)  # [B,D]
    return _distance(text, target) + _distance(video, target)


def _attend(features: Tensor, query: Tensor, mask: Tensor | None) -> Tensor:
    """Pool features (B, L, D) by the softmax of their inner products with a query (B, D)."""
    scores = torch.einsum("bld,bd->bl", features, query)
    if mask is not None:
        scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
    return torch.einsum("bl,bld->bd", scores.softmax(dim=-1), features)


def _distance(features: Tensor, target: Tensor) -> Tensor:
    return (1 - cosine_similarity(features, target, dim=-1)).mean()


def etf_pseudo(
    text: Tensor,
    video: Tensor,
    category: Tensor,
    prototypes: Tensor,
    text_proj: Tensor,
    video_proj: Tensor,
) -> Tensor:
    """Pull pseudo features of old classes, text and video (P, D), to their prototypes, as `etf_alignment` does."""
    target = prototypes[category]  # [P,D]
    return _distance(text @ text_proj.T, target) + _distance(video @ video_proj.T, target)


def pseudo_contrastive(
    words: Tensor,
    mask: Tensor,
    frames: Tensor,
    pseudo_text: Tensor,
    pseudo_video: Tensor,
    log_scale: Tensor | float,
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
    """
    text = torch.cat([pool_words(words, mask), pseudo_text])  # [B+P,D]
    video = torch.cat([pool_frames(frames), pseudo_video])  # [B+P,D]
    return _symmetric(video @ text.T * _scale(log_scale))


def contrastive(text: Tensor, video: Tensor, log_scale: Tensor | float) -> Tensor:
    """Symmetric contrastive loss of global features (B, D): rows plus columns, on cosines."""
    return _symmetric(normalize(video, dim=-1) @ normalize(text, dim=-1).T * _scale(log_scale))


def _symmetric(logits: Tensor) -> Tensor:
    target = torch.arange(len(logits), device=logits.device)
    return cross_entropy(logits, target) + cross_entropy(logits.T, target)


def distillation(student: Tensor, teacher: Tensor, temperature: float = 2.0) -> Tensor:
    """Cross-entropy of the student's softened logits (B, B) under the teacher's, over rows and over columns."""
    both = [(student, teacher), (student.T, teacher.T)]
    return sum(cross_entropy(ours / temperature, (theirs / temperature).softmax(1)) for ours, theirs in both)


def total(
    base: Tensor,
    etf: Tensor | None,
    pseudo: Tensor | None,
    etf_weight: float,
    pseudo_weight: float,
    adaptive: bool,
) -> Tensor:
    """Sum the terms: base + lambda * ETF + pseudo_weight * pseudo.

    With `adaptive`, lambda = etf_weight * base / ETF without gradient, so that the ETF term always weighs that
    share of the base loss; otherwise lambda = etf_weight.
    """
    result = base
    if etf is not None:
        factor = (base / etf.clamp_min(1e-12)).detach() if adaptive else 1.0
        result = result + etf_weight * factor * etf
    if pseudo is not None:
        result = result + pseudo_weight * pseudo
    return result


def _scale(log_scale: Tensor | float) -> Tensor:
    return torch.as_tensor(log_scale).exp()
