"""First stage of a two-stage ranking: global cosines of queries with the videos of one task.

`flat` computes all of them. `faiss` searches an inverted file of 8-bit vectors, of which it visits half. It is built
once, stored with the gallery and mapped from there: it pays off from some hundred thousand videos on.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from structalign.losses.contrastive import pool_frames
from structalign.util.errors import UserError
from structalign.util.files import REPAIR_ADVICE

CHUNK = 2**23
"""How many numbers of frame features are moved, converted and scored at a time: 32 MB in single precision."""

_VIDEOS_PER_LIST = 39
"""Fewest videos for each list of an inverted file that faiss accepts without a warning."""

_VISITED, _AT_LEAST = 1 / 2, 16
"""Share of the lists that a query visits, and the smallest number of them. With an eighth, R@10 among 100,000 videos
fell from 86 to 64 (benchmarks/README.md)."""


def frame_chunks(
    frames: Tensor, device: torch.device | str = "cpu", positions: Tensor | None = None
) -> Iterator[Tensor]:
    """Yield videos (v, N, D) of a gallery (V, N, D) in single precision, `CHUNK` numbers at a time.

    `positions` (P,) selects videos. Of a memory-mapped gallery, only these are read.
    """
    step = max(1, CHUNK // max(1, frames[:1].numel()))
    parts = frames.split(step) if positions is None else (frames[some] for some in positions.split(step))
    return (part.to(device, torch.float32) for part in parts)


def spread(size: int, count: int) -> Tensor:
    """Up to `count` positions, ascending, spread evenly over 0..size - 1."""
    count = min(size, count)
    return torch.arange(count) * size // max(1, count)


class GlobalIndex(Protocol):
    """Ranks one task's V videos by their global features."""

    exact: bool
    """Whether every video gets its score."""

    def best(self, text: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """Cosines of texts (q, D) of unit length with at least the best `count` videos, and these videos' positions.

        Both are (q, F); positions are (1, F) if they are the same for all texts. They ascend. If an index finds
        too few, they are -1 and the cosines -inf.
        """


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
            self.videos[start:end] = pool_frames(part)

    def best(self, text: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """Cosines (q, V) of texts (q, D) with all videos, whatever `count`, and their positions (1, V)."""
        return text @ self.videos.T, torch.arange(len(self.videos), device=text.device)[None]


class FaissIndex:
    """The best cosines, to 8 bits, from an inverted file: D bytes a video.

    Parameters
    ----------
    index : faiss.Index
        Over the global features of V videos.
    """

    exact = False

    def __init__(self, index: Any) -> None:
        self.index, self.size = index, index.ntotal

    @classmethod
    def build(cls, frames: Tensor) -> FaissIndex:
        """Build the inverted file of a gallery (V, N, D), which is read once, part by part.

        Raises
        ------
        UserError
            If faiss is not installed, or a feature is not a finite number.
        """
        faiss = _faiss()
        size, width = len(frames), frames.shape[-1]
        lists = max(1, min(math.isqrt(size), size // _VIDEOS_PER_LIST))
        index = faiss.index_factory(width, f"IVF{lists},SQ8", faiss.METRIC_INNER_PRODUCT)
        index.nprobe = min(lists, max(_AT_LEAST, round(lists * _VISITED)))
        learnt_from = spread(size, 2 * _VIDEOS_PER_LIST * lists)
        sample = [pool_frames(part) for part in frame_chunks(frames, positions=learnt_from)]
        index.train(_finite(torch.cat(sample), "gallery"))
        for part in frame_chunks(frames):
            index.add(_finite(pool_frames(part), "gallery"))
        return cls(index)

    @classmethod
    def load(cls, path: Path) -> FaissIndex:
        """Map a stored index: only the vectors that queries visit are read.

        Raises
        ------
        UserError
            If faiss is not installed, or the file is damaged.
        """
        faiss = _faiss()
        try:
            index = faiss.read_index(str(path), faiss.IO_FLAG_MMAP | faiss.IO_FLAG_READ_ONLY)
        except RuntimeError as error:
            reason = str(error).splitlines()[-1]
            raise UserError(f"{path}: damaged index ({reason}); {REPAIR_ADVICE}") from None
        # Else every query starts 32 threads that read ahead: twice the time once the lists are in memory.
        faiss.downcast_InvertedLists(index.invlists).prefetch_nthread = 0
        return cls(index)

    def save(self, path: Path) -> None:
        """Write the index to a file."""
        _faiss().write_index(self.index, str(path))

    def best(self, text: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """Cosines of texts (q, D) with up to `count` of the best videos of each, and their positions.

        Raises
        ------
        UserError
            If a text's features are not finite.
        """
        found = self.index.search(_finite(text, "query"), min(count, self.size))
        cosine, places = (torch.from_numpy(part).to(text.device) for part in found)
        places, order = places.sort(dim=1)
        return cosine.gather(1, order).masked_fill(places < 0, -math.inf), places


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
