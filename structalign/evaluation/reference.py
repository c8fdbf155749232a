"""What recall is held against: the untouched CLIP, and the present model on the task that comes next."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize

from structalign.config.schema import SimilarityConfig
from structalign.evaluation.evaluate import recall_at_1
from structalign.evaluation.metrics import ranks
from structalign.losses.contrastive import pool_frames
from structalign.model.retriever import Retriever
from structalign.retrieval.encode import encode_texts, restore_order
from structalign.retrieval.gallery import TaskGallery

BLOCK = 2**24
"""Number of scores at a time: 64 MB."""


@dataclass(frozen=True)
class Reference:
    """References of one task's evaluation.

    Attributes
    ----------
    text : Tensor, shape (Q, D)
        Global features of the task's queries from the untouched CLIP, of unit length.
    video : Tensor, shape (V, D)
        The same for the task's test videos.
    untouched_r1 : float
        R@1 (percent) of the task within its own gallery from the untouched CLIP.
    next_r1 : float or None
        R@1 of the next task within its own gallery from the present model; None after the last task.
    """

    text: Tensor
    video: Tensor
    untouched_r1: float
    next_r1: float | None


def reference(
    untouched: Retriever, gallery: TaskGallery, similarity: SimilarityConfig, next_r1: float | None
) -> Reference:
    """Score a task with the untouched CLIP.

    Parameters
    ----------
    untouched : Retriever
        CLIP alone.
    gallery : TaskGallery
        The task's queries, and its test videos as `untouched` encodes them.
    similarity : SimilarityConfig
        How the method scores: both sides of forward transfer are scored the same way.
    next_r1 : float, optional
        As in `Reference`.
    """
    encoded = encode_texts(untouched, gallery.queries, gallery.task)
    text = restore_order((places, global_) for places, _, _, global_ in encoded)
    return Reference(
        text=normalize(text.float(), dim=-1).cpu(),
        video=pool_frames(gallery.frames),
        untouched_r1=recall_at_1(untouched, [gallery], similarity),
        next_r1=next_r1,
    )


def zero_shot_ranks(text: Tensor, video: Tensor, target: Tensor) -> Tensor:
    """Rank of each query's own video by the global cosine of the untouched CLIP, from 1.

    Parameters
    ----------
    text : Tensor, shape (Q, D)
    video : Tensor, shape (V, D)
        Both of unit length.
    target : Tensor, shape (Q,)
        Each query's own video.
    """
    step = max(1, BLOCK // max(1, len(video)))
    parts = zip(text.split(step), target.split(step), strict=True)
    return torch.cat([ranks(some @ video.T, own) for some, own in parts])
