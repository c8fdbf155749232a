"""Clips and published splits in miniature."""

from __future__ import annotations

import pickle
from pathlib import Path

from structalign.data.clips import Clip


def clips_of(num_categories: int, train: int = 5, test: int = 3) -> list[Clip]:
    return [
        Clip(
            f"{side}-{category}-{index}",
            f"{side}/{category}/{index}.mp4",
            None,
            None,
            f"cat {category}",
            side,
            ("x",),
        )
        for category in range(num_categories)
        for side, count in (("train", train), ("test", test))
        for index in range(count)
    ]


def published(num_tasks: int = 2, per_task: int = 2) -> dict:
    """A small split in the published form, for `clips_of(num_tasks * per_task)`."""
    numbers = [list(range(task * per_task, (task + 1) * per_task)) for task in range(num_tasks)]
    return {
        key: {
            task: {f"c{number}": [f"{side}-{number}-{index}" for index in range(count)] for number in group}
            for task, group in enumerate(numbers, 1)
        }
        for key, side, count in (("train", "train", 5), ("val", "test", 3))
    }


def dump(content: object, path: Path, protocol: int = 4) -> Path:
    path.write_bytes(pickle.dumps(content, protocol))
    return path


class Runs:
    """Unpickling it calls what it is told to."""

    def __init__(self, function: object, *arguments: object) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> tuple:
        return self.call
