"""What a task brings: its categories and its clips of each side, as `data/split/task-NN.json` holds them."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

from pydantic import ConfigDict, TypeAdapter, ValidationError

from structalign.util.errors import UserError
from structalign.util.files import atomic_write_json


@dataclass(frozen=True)
class Category:
    """A category and its number over all tasks: from 0, in the order in which tasks bring them."""

    id: int
    name: str


@dataclass(frozen=True)
class Sample:
    """A clip as one task uses it."""

    clip: str
    category: int
    captions: tuple[str, ...]


@dataclass(frozen=True)
class TaskSplit:
    """What one task brings.

    Parameters
    ----------
    task : int
        From 1.
    num_tasks : int
        K.
    num_categories : int
        Over all tasks.
    categories : list of Category
        This task's.
    train, test : list of Sample
        Every category has at least one of each.
    validation : list of Sample
        As many of every category, or none at all.
    missing : list of str
        Clips of this task's categories that are left out because they have no frames.
    """

    task: int
    num_tasks: int
    num_categories: int
    categories: list[Category]
    train: list[Sample]
    test: list[Sample]
    validation: list[Sample]
    missing: list[str]

    __pydantic_config__ = ConfigDict(extra="forbid")


def write_task(split: TaskSplit, path: str | Path) -> None:
    """Write one task as JSON."""
    atomic_write_json(path, asdict(split))


def read_task(path: str | Path) -> TaskSplit:
    """Read what `write_task` wrote.

    Raises
    ------
    UserError
        If the file is missing or is not a task.
    """
    try:
        return TypeAdapter(TaskSplit).validate_json(Path(path).read_bytes())
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; the stage `split` writes it") from None
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        raise UserError(f"{path}: not a task: {key + ': ' if key else ''}{first['msg']}") from None
