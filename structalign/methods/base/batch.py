"""A batch of pairs, and its features on all devices that train together."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from structalign.model.retriever import Retriever
from structalign.util import distributed


@dataclass
class Batch:
    """B pairs of a video and a caption; only pixels are cut into shares if several devices train.

    Attributes
    ----------
    pixels : Tensor, shape (V, N, 3, H, W), uint8
        Frames of this rank's share of the videos; V = B on a single device, unless videos are shared.
    tokens : Tensor, shape (B, L), int64
        Caption tokens.
    category : Tensor, shape (B,), int64
        Global category ids.
    video : Tensor, shape (B,), int64
        Which training video each pair shows; equal numbers are the same video.
    row : Tensor, shape (B,), int64, optional
        Which of the encoded videos each pair shows, if pairs of one video share its features.
    stem : Retriever and Tensor, optional
        The model that encoded the videos first, and what its frozen blocks made of them; filled by `joint_video`.
    """

    pixels: Tensor
    tokens: Tensor
    category: Tensor
    video: Tensor
    row: Tensor | None = None
    stem: tuple[Retriever, Tensor] | None = None


def joint_video(model: Retriever, batch: Batch) -> tuple[Tensor, Tensor]:
    """Encode this rank's share of the batch's videos and gather all: frames (B, N, D), global_ (B, D)."""
    if batch.stem is None or not model.shares_stem(batch.stem[0]):
        batch.stem = (model, model.stem(batch.pixels))
    frames, global_ = model.encode_stem(batch.stem[1], batch.pixels.shape[1])
    if distributed.world_size() == 1 and batch.row is None:
        return frames, global_
    frames = distributed.gather(frames)
    frames = frames[: len(batch.video)] if batch.row is None else frames[batch.row]  # [B,N,D]
    return frames, frames.mean(dim=1)


def joint_text(model: Retriever, tokens: Tensor, task: int) -> tuple[Tensor, Tensor, Tensor]:
    """Encode this rank's share of texts (B, L) and gather all: words (B, L, D), mask (B, L), global_ (B, D)."""
    if distributed.world_size() == 1:
        return model.encode_text(tokens, task)
    words, _, global_ = model.encode_text(tokens[distributed.shard_indices(len(tokens))], task)
    words, global_ = (distributed.gather(part)[: len(tokens)] for part in (words, global_))
    return words, model.word_mask(tokens), global_
