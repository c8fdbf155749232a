"""The published split files: pickles from elsewhere, read without ever running one.

A file is `{"train": {task: {category: [video ids]}}, "val": {...}}`, tasks from 1 (METHOD.md section 1).
"""

from __future__ import annotations

import io
import pickle
import pickletools
import shutil
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from structalign.util.errors import UserError

# Videos for training and for test: the same for K = 10 and K = 20 (METHOD.md section 1).
PUBLISHED_SIZES = {"msrvtt": (320, 2990), "actnet": (3200, 4910)}

MAX_BYTES = 16 << 20

PublishedSplit = dict[str, dict[int, dict[str | int, list[str]]]]

_PLAIN = {
    *("PROTO", "FRAME", "STOP", "MARK", "POP", "POP_MARK", "DUP", "MEMOIZE"),
    *("PUT", "BINPUT", "LONG_BINPUT", "GET", "BINGET", "LONG_BINGET"),
    *("EMPTY_DICT", "DICT", "SETITEM", "SETITEMS", "EMPTY_LIST", "LIST", "APPEND", "APPENDS"),
    *("INT", "BININT", "BININT1", "BININT2", "LONG1"),
    *("UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
}
# What `defaultdict(list)` takes besides; the ActivityNet files are made of those.
_DEFAULTDICT = {"GLOBAL", "STACK_GLOBAL", "REDUCE", "EMPTY_TUPLE", "TUPLE", "TUPLE1"}
_PUTS = {"PUT", "BINPUT", "LONG_BINPUT"}


def read_published(path: str | Path) -> PublishedSplit:
    """Read a published split file.

    Parameters
    ----------
    path : path
        A pickle that holds nothing but dict (or `defaultdict(list)`), list, str and int.

    Returns
    -------
    dict
        `{"train": {task: {category: [video ids]}}, "val": {...}}`, plain dicts and lists; tasks from 1.

    Raises
    ------
    UserError
        For anything else in it, which is refused before it can run; a wrong structure; an id that occurs
        twice, be it in two tasks or in train and test.
    """
    path = Path(path)
    try:
        size = path.stat().st_size
        if size > MAX_BYTES:
            raise UserError(f"{path}: {size:,} bytes, more than a split file may have ({MAX_BYTES:,})")
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    _refuse_code(content, path)
    try:
        split = _PlainUnpickler(io.BytesIO(content)).load()
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    except Exception as error:  # a damaged pickle can raise nearly anything
        raise UserError(f"{path}: not a split file: {type(error).__name__}: {error}") from None
    _check_structure(split, path)
    return split


def _refuse_code(content: bytes, path: Path) -> None:
    """Inspect pickle opcodes without executing them; refuse all that could do more than build data."""
    slots = 0
    try:
        for count, (opcode, argument, position) in enumerate(pickletools.genops(content)):
            if opcode.name not in _PLAIN | _DEFAULTDICT:
                raise UserError(
                    f"{path}: refused: a split file may hold only dict, list, str and int, "
                    f"and not what {opcode.name} makes (byte {position})"
                )
            if opcode.name == "GLOBAL":
                _PlainUnpickler.allowed(*str(argument).split(" ", 1))
            if opcode.name in _PUTS:
                slots = max(slots, int(argument or 0))
            if slots > count:  # a huge number here makes Python reserve memory for as many
                raise UserError(f"memo slot {slots} at byte {position} is out of order")
    except UserError as error:
        raise UserError(str(error) if str(path) in str(error) else f"{path}: refused: {error}") from None
    except Exception as error:
        raise UserError(f"{path}: not a pickle: {error}") from None


class _EmptyDict:
    """Stands for `defaultdict`: called as a pickle calls it, it makes a plain dict."""

    def __call__(self, *factory: Any) -> dict:
        return {}


class _PlainUnpickler(pickle.Unpickler):
    """Builds dict, list, str and int; never imports or calls anything a pickle names."""

    @staticmethod
    def allowed(module: str, name: str) -> None:
        """Refuse every global but those of `defaultdict(list)`."""
        if (module, name) not in {("collections", "defaultdict"), ("builtins", "list"), ("__builtin__", "list")}:
            raise UserError(f"a split file may hold only dict, list, str and int, and not {module}.{name}")

    def find_class(self, module: str, name: str) -> Any:
        """Return stand-ins that cannot do harm, whatever they are called with."""
        self.allowed(module, name)
        return _EmptyDict() if name == "defaultdict" else "list"


def _check_structure(split: Any, path: Path) -> None:
    if type(split) is not dict or set(split) != {"train", "val"}:
        raise UserError(f"{path}: must hold a dict with the keys train and val")
    seen: dict[str, str] = {}
    for side in ("train", "val"):
        tasks = split[side]
        if type(tasks) is not dict or not tasks or list(tasks) != list(range(1, len(tasks) + 1)):
            raise UserError(f"{path}: {side} must be a dict whose keys are the tasks 1, 2, ... in order")
        for task, categories in tasks.items():
            _check_task(categories, f"{path}: {side}, task {task}", seen, side)
    for task, categories in split["train"].items():
        if set(categories) != set(split["val"].get(task, ())):
            raise UserError(f"{path}: task {task}: train and val must have the same categories")
    if len(split["train"]) != len(split["val"]):
        raise UserError(f"{path}: train has {len(split['train'])} tasks, val has {len(split['val'])}")


def _check_task(categories: Any, where: str, seen: dict[str, str], side: str) -> None:
    if type(categories) is not dict or not categories:
        raise UserError(f"{where}: must be a dict of categories")
    for category, ids in categories.items():
        if type(category) not in (str, int) or type(ids) is not list or not ids:
            raise UserError(f"{where}: must map each category, a str or int, to a list of video ids")
        for video in ids:
            if type(video) is not str:
                raise UserError(f"{where}: category {category}: holds a {type(video).__name__}, not video ids")
            if video in seen:
                raise UserError(f"{where}: video {video} is already in {seen[video]}; it may be in one place only")
            seen[video] = f"{side}, category {category}"


def entries(split: PublishedSplit) -> Iterator[tuple[str, int, str, str]]:
    """Yield (side, task, category, video id) over a split; side is `train` or `test`, category a str."""
    for side, key in (("train", "train"), ("test", "val")):
        for task, categories in split[key].items():
            for category, ids in categories.items():
                for video in ids:
                    yield side, task, str(category), video


def read_benchmark(paths: dict[int, Path], name: str) -> dict[str, tuple[str, str]]:
    """Read the split files of one benchmark and check that they are what was published.

    Parameters
    ----------
    paths : dict of int to Path
        Split file for each number of tasks K.
    name : str
        A key of `PUBLISHED_SIZES`.

    Returns
    -------
    dict
        For each video id its side (`train` or `test`) and its category; training videos first.

    Raises
    ------
    UserError
        If a file has another number of tasks or videos, or files differ in their videos.
    """
    first: dict[str, tuple[str, str]] = {}
    for num_tasks, path in sorted(paths.items()):
        split = read_published(path)
        if len(split["train"]) != num_tasks:
            raise UserError(f"{path}: has {len(split['train'])} tasks, but is given as data.splits.{num_tasks}")
        found = {video: (side, category) for side, _, category, video in entries(split)}
        sides = [side for side, _ in found.values()]
        size, published = (sides.count("train"), sides.count("test")), PUBLISHED_SIZES[name]
        if size != published:
            raise UserError(
                f"{path}: {size[0]} training and {size[1]} test videos; the published split has "
                f"{published[0]} and {published[1]}"
            )
        if first and found != first:
            odd = sorted(video for video in first.keys() | found.keys() if first.get(video) != found.get(video))
            raise UserError(
                f"{path}: does not agree with the split for K = {min(paths)} on {odd[0]} ({len(odd)} in all)"
            )
        first = first or found
    if not first:
        raise UserError("data.splits: names no split file")
    return first


def draw_validation(
    spare: dict[str, str], categories: Iterable[str], count: int, seed: int
) -> dict[str, tuple[str, str]]:
    """Draw videos that the published split leaves out, as validation videos.

    Parameters
    ----------
    spare : dict of str to str
        Category of each video that may be drawn.
    categories : iterable of str
        All categories of the published split.
    count : int
        Videos per category.
    seed : int

    Returns
    -------
    dict
        For each drawn video its side, `val`, and its category.

    Raises
    ------
    UserError
        If a category has too few.
    """
    by_category: dict[str, list[str]] = defaultdict(list)
    for video, category in spare.items():
        by_category[category].append(video)
    drawn: dict[str, tuple[str, str]] = {}
    random = np.random.default_rng(seed)
    for category in sorted(set(categories)):
        videos = by_category[category]
        if len(videos) < count:
            raise UserError(
                f"split.validation = {count}: category {category!r} has {len(videos)} videos beyond the published "
                "split; lower it"
            )
        drawn |= {str(video): ("val", category) for video in random.choice(sorted(videos), count, replace=False)}
    return drawn


def require_published(num_tasks: int, published: Collection[int]) -> None:
    """Refuse a number of tasks that no split file was published for.

    Raises
    ------
    UserError
        The message names the numbers that there are.
    """
    if num_tasks not in published:
        there = " or ".join(str(number) for number in sorted(published)) or "none"
        raise UserError(
            f"K = {num_tasks}: data.protocol = published has splits for K = {there}; "
            "choose one of those, or data.protocol=fewshot"
        )


def split_file(folder: Path, num_tasks: int) -> Path:
    """Path of the split for `num_tasks` tasks below a data set's raw folder."""
    return folder / "splits" / f"{num_tasks:02d}.pkl"


def keep_splits(paths: dict[int, Path], folder: Path) -> None:
    """Copy split files to where the stage `split` looks for them."""
    for num_tasks, path in paths.items():
        target = split_file(folder, num_tasks)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
