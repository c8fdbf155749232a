"""First stage of a two-stage ranking: global cosines of queries with one task's gallery, all of them or the best.

`flat` computes all. `faiss` asks an inverted file of 8-bit vectors, which holds a quarter of the bytes and visits a
part of them: it pays for galleries of some hundred thousand videos and more.
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
"""Numbers of frame features that are moved, converted and scored at a time: 32 MB in single precision."""

_VIDEOS_PER_LIST = 39
"""faiss asks for at least so many videos for each list of an inverted file."""

_VISITED, _AT_LEAST = 1 / 8, 16
"""Share of the lists that a query visits, and the smallest number of them."""


def frame_chunks(
    frames: Tensor, device: torch.device | str = "cpu", positions: Tensor | None = None
) -> Iterator[Tensor]:
    """Yield videos (v, N, D) of a gallery (V, N, D) in single precision, `CHUNK` numbers at a time.

    `positions` (P,) picks videos. Of a gallery that is mapped from its file, only what is picked is read.
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
        """Cosines (q, V) of texts (q, D) of unit length; only the best `count` need be known, others are -inf."""


class FlatIndex:
    """All cosines, exactly.

    Parameters
    ----------
    frames : Tensor, shape (V, N, D)
        The gallery; it is read once, and its global features (V, D) are kept.
    device : device
        Where they are kept.
    """

    exact = True

    def __init__(self, frames: Tensor, device: torch.device | str = "cpu") -> None:
        self.videos = torch.empty(len(frames), frames.shape[-1], device=device)  # [V,D]
        end = 0
        for part in frame_chunks(frames, device):  # into place: joining the parts would hold them twice
            start, end = end, end + len(part)
            self.videos[start:end] = global_features(part)

    def scores(self, text: Tensor, count: int) -> Tensor:
        """Cosines (q, V) of texts (q, D) with all videos, whatever `count`."""
        return text @ self.videos.T


class FaissIndex:
    """The best cosines, to 8 bits, from an inverted file that is made here and kept in memory: D bytes a video.

    Parameters
    ----------
    frames : Tensor, shape (V, N, D)
        The gallery; it is read once.

    Raises
    ------
    UserError
        Where faiss is not installed, or a feature is not a finite number.
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
        # Where too few are found, faiss fills up with place -1: a column of their own takes them in.
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
