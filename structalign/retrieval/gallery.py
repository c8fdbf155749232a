"""The gallery: features of each task's test videos, as the model of that time saw them, and the task's queries.

A gallery is stored once and never recomputed (METHOD.md, section 1). The folder after task t holds the galleries of
tasks 1..t, so that a stage needs the previous folder alone. Validation videos, if there are
any, have galleries of their own beside them.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from torch import Tensor

from structalign.data.tasks import Sample
from structalign.retrieval.index import FaissIndex
from structalign.util.checkpoint import load_tensors, save_tensors
from structalign.util.errors import UserError
from structalign.util.files import REPAIR_ADVICE, atomic_write_json, fresh_dir, read_json

INDEX = "tasks.json"

Side = Literal["test", "validation"]
_STEMS: dict[Side, str] = {"test": "task", "validation": "validation"}


@dataclass
class TaskGallery:
    """One task's test videos and queries.

    Attributes
    ----------
    task : int
        The task, from 1; its videos were encoded by the model as it was after this task.
    clips : list of str, length V
        Clip ids of the videos.
    category : list of int, length V
        Global category id of each video.
    queries : list of str, length Q
        Captions to search with.
    target : list of int, length Q
        Position of each query's video among `clips`.
    frames : Tensor, shape (V, N, D)
        Frame features, projected, not normalised.
    index : FaissIndex, optional
        Over the global features of the videos; it is there after the first time it was asked for.
    """

    task: int
    clips: list[str]
    category: list[int]
    queries: list[str]
    target: list[int]
    frames: Tensor
    index: FaissIndex | None = None

    @classmethod
    def from_samples(cls, task: int, samples: list[Sample], frames: Tensor) -> TaskGallery:
        """Pair test samples with their features; every caption of a video becomes one query."""
        pairs = [(caption, video) for video, sample in enumerate(samples) for caption in sample.captions]
        return cls(
            task=task,
            clips=[sample.clip for sample in samples],
            category=[sample.category for sample in samples],
            queries=[caption for caption, _ in pairs],
            target=[video for _, video in pairs],
            frames=frames,
        )

    def faiss_index(self) -> FaissIndex:
        """The index over the videos' global features: the stored one, or a new one."""
        if self.index is None:
            self.index = FaissIndex.build(self.frames)
        return self.index

    def caption(self, position: int) -> str:
        """The first caption of the video at a position; queries stand in the order of their videos."""
        return self.queries[bisect_left(self.target, position)]

    def save(self, folder: Path, side: Side = "test") -> None:
        """Write the gallery into an existing folder, with its index if it has one."""
        stem = f"{_STEMS[side]}-{self.task:02d}"
        save_tensors({"frames": self.frames}, folder / f"{stem}.safetensors")
        if self.index is not None:
            self.index.save(folder / f"{stem}.faiss")
        facts = {key: value for key, value in vars(self).items() if key not in ("frames", "index")}
        atomic_write_json(folder / f"{stem}.json", facts)


def locate(galleries: Sequence[TaskGallery], column: int) -> tuple[TaskGallery, int]:
    """Find the gallery that a column of a score matrix belongs to, and the position of the video in that gallery.

    Columns count the videos of all galleries, one gallery after the other.
    """
    for gallery in galleries:
        if column < len(gallery.clips):
            return gallery, column
        column -= len(gallery.clips)
    raise IndexError("column beyond the videos of all galleries")


def load_galleries(folder: Path, side: Side = "test") -> list[TaskGallery]:
    """Read all galleries in a folder, in the order of their tasks; an empty folder gives an empty list.

    Frame features and indexes are memory-mapped: what is not used is not read, and the system can reclaim the memory
    of what was read.

    Raises
    ------
    UserError
        If the folder is missing, or a file in it is damaged.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such gallery; `dvc repro` makes it")
    return [_load(folder / f"{_STEMS[side]}-{task:02d}.json") for task in read_json(folder / INDEX)]


def save_index(folder: Path, num_tasks: int) -> None:
    """List the tasks that a folder holds galleries of: 1..num_tasks, or none before the first task."""
    atomic_write_json(folder / INDEX, list(range(1, num_tasks + 1)))


def _load(path: Path) -> TaskGallery:
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
        frames = load_tensors(path.with_suffix(".safetensors"))["frames"]  # [V,N,D]
        stored = path.with_suffix(".faiss")
        gallery = TaskGallery(**facts, frames=frames, index=FaissIndex.load(stored) if stored.exists() else None)
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UserError(f"{path}: damaged gallery ({error}); {REPAIR_ADVICE}") from None
    if gallery.index is not None and gallery.index.size != len(frames):
        raise UserError(f"{stored}: holds {gallery.index.size} videos, the gallery {len(frames)}; {REPAIR_ADVICE}")
    if len(gallery.clips) != len(frames) or len(gallery.queries) != len(gallery.target):
        raise UserError(
            f"{path}: names {len(gallery.clips)} videos, its features hold {len(frames)}; {REPAIR_ADVICE}"
        )
    return gallery


def store_galleries(folder: Path, earlier: Path, newest: Mapping[Side, TaskGallery]) -> None:
    """Write the galleries of all seen tasks into a folder of their own; an existing one is replaced.

    Parameters
    ----------
    folder : Path
    earlier : Path
        The folder of the task before. Its galleries are copied as they are: DVC's cache stores identical files once.
    newest : mapping of side to TaskGallery
        Those of the newest task, at least one.
    """
    with fresh_dir(folder) as target:
        for path in sorted(earlier.glob("*-[0-9]*")):
            shutil.copyfile(path, target / path.name)
        for side, gallery in newest.items():
            gallery.save(target, side)
        save_index(target, next(iter(newest.values())).task)


def data_fingerprint(galleries: list[TaskGallery]) -> str:
    """A short hash of which videos and queries were ranked: runs that differ in it cannot be compared."""
    rows = [[g.task, g.clips, g.category, g.queries, g.target] for g in galleries]
    return hashlib.sha256(json.dumps(rows, ensure_ascii=False).encode()).hexdigest()[:16]
