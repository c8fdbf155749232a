"""First stage of a two-stage ranking: global cosines of queries with the videos of one task.

`flat` computes all of them. `faiss` searches an inverted file of 8-bit vectors, which takes a quarter of the memory
and visits only a part of the vectors: it pays off from some hundred thousand videos on.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn.functional import normalize

from structalign.util.errors import UserError

CHUNK = 2**23
"""How many numbers of frame features are moved, converted and scored at a time: 32 MB in single precision."""

_VIDEOS_PER_LIST = 39
"""Fewest videos for each list of an inverted file that faiss accepts without a warning."""

_VISITED, _AT_LEAST = 1 / 8, 16
"""Share of the lists that a query visits, and the smallest number of them."""


def frame_chunks(
    frames: Tensor, device: torch.device | str = "cpu", positions: Tensor | None = None
) -> Iterator[Tensor]:
    """Yield videos (v, N, D) of a gallery (V, N, D) in single precision, `CHUNK` numbers at a time.

    `positions` (P,) selects videos. Of a memory-mapped gallery, only these are read.
    """
    step = max(1, CHUNK // max(1, frames[:1].numel()))
    parts = frames.split(step) if positions is None else (frames[some] for some in positions.split(step))
    return (part.to(device, torch.float32) for part in parts)


def global_features(frames: Tensor) -> Tensor:
    """Mean of each video's frames (V, N, D), as a vector of unit length (V, D)."""
    return normalize(frames.mean(dim=1), dim=-1)


def spread(size: int, count: int) -> Tensor:
    """Up to `count` positions, ascending, spread evenly over 0..size - 1."""
    count = min(size, count)
    return torch.arange(count) * size // max(1, count)


class GlobalIndex(Protocol):
    """Ranks one task's V videos by their global features."""

    exact: bool
    """Whether every video gets its score."""

    def scores(self, text: Tensor, count: int) -> Tensor:
        """Cosines (q, V) of texts (q, D) of unit length; all but the best `count` may be -inf."""


class FlatIndex:
    """All cosines, exactly.

    Parameters
    ----------
    frames : Tensor, shape (V, N, D)
        The gallery; it is read once, and its global features (V, D) are kept.
    device : device
        Device that keeps them.
    """

    exact = True

    def __init__(self, frames: Tensor, device: torch.device | str = "cpu") -> None:
        self.videos = torch.empty(len(frames), frames.shape[-1], device=device)  # [V,D]
        end = 0
        for part in frame_chunks(frames, device):  # in place, because concatenation would hold them twice
            start, end = end, end + len(part)
            self.videos[start:end] = global_features(part)

    def scores(self, text: Tensor, count: int) -> Tensor:
        """Cosines (q, V) of texts (q, D) with all videos, whatever `count`."""
        return text @ self.videos.T


class FaissIndex:
    """The best cosines, to 8 bits, from an inverted file that is built here and kept in memory: D bytes a video.

    Parameters
    ----------
    frames : Tensor, shape (V, N, D)
        The gallery; it is read once.

    Raises
    ------
    UserError
        If faiss is not installed, or a feature is not a finite number.
    """

    exact = False

    def __init__(self, frames: Tensor) -> None:
        faiss = _faiss()
        self.size, width = len(frames), frames.shape[-1]
        lists = max(1, min(math.isqrt(self.size), self.size // _VIDEOS_PER_LIST))
        self.index = faiss.index_factory(width, f"IVF{lists},SQ8", faiss.METRIC_INNER_PRODUCT)
        self.index.nprobe = min(lists, max(_AT_LEAST, round(lists * _VISITED)))
        learnt_from = spread(self.size, 2 * _VIDEOS_PER_LIST * lists)
        sample = [global_features(part) for part in frame_chunks(frames, positions=learnt_from)]
        self.index.train(_finite(torch.cat(sample), "gallery"))
        for part in frame_chunks(frames):
            self.index.add(_finite(global_features(part), "gallery"))

    def scores(self, text: Tensor, count: int) -> Tensor:
        """Cosines (q, V) of texts (q, D) with up to `count` of the best videos of each; -inf elsewhere."""
        cosine, places = self.index.search(_finite(text, "query"), min(count, self.size))
        # If faiss finds too few, it fills up with position -1, which goes to an extra column that is cut off.
        result = torch.full((len(text), self.size + 1), -math.inf)
        result.scatter_(1, torch.from_numpy(places) % (self.size + 1), torch.from_numpy(cosine))
        return result[:, :-1].to(text.device)


def _finite(features: Tensor, what: str) -> Any:
    """Features (n, D) as the array that faiss takes."""
    if not features.isfinite().all():
        raise UserError(f"{what} features: not all are finite numbers: a feature or a weight is broken")
    return features.cpu().contiguous().numpy()


def _faiss() -> Any:
    try:
        import faiss
    except ImportError as error:
        raise UserError(f"evaluate.index=faiss: {error}; `pip install faiss-cpu`, or evaluate.index=flat") from None
    return faiss
