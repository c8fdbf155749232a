"""The one table that every data set becomes: a clip a row, stored as JSON lines."""

from __future__ import annotations

import html
import json
import math
import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Literal

from pydantic import ConfigDict, TypeAdapter, ValidationError

from structalign.util.errors import UserError
from structalign.util.files import atomic_write_text

MANIFEST = "manifest.jsonl"
SIDES = ("train", "val", "test")

# Ids become names inside the frame shards, so only characters that every file system and archive takes.
_SAFE_ID = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,119}")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


@dataclass(frozen=True)
class Clip:
    """One video, or a part of one, with its captions. A clip that exists is a valid one.

    Parameters
    ----------
    id : str
        Unique name: up to 120 letters, digits, `_`, `-` and `.`, not starting with `-` or `.`.
    video : str
        Path of the video within `datasets.common.video_root(config)`, with `/` between its parts.
    start, end : float or None
        Seconds from the video's start; None: from its beginning, to its end. An end that is not after the start is
        not refused here, but counts as a clip that cannot be decoded (`frames.allow_missing`).
    category : str
        What the clip shows; tasks are sets of categories.
    split : {"train", "val", "test"}
        Which side the clip is on.
    captions : tuple of str
        At least one, each with something to read.
    origin : str
        Where the user said so, as `file:line`; empty for data sets of others.

    Raises
    ------
    UserError
        If a value is not allowed; the message names the clip.
    """

    id: str
    video: str
    start: float | None
    end: float | None
    category: str
    split: Literal["train", "val", "test"]
    captions: tuple[str, ...]
    origin: str = ""

    __pydantic_config__ = ConfigDict(extra="forbid", strict=True)

    def __post_init__(self) -> None:
        if not _SAFE_ID.fullmatch(self.id):
            raise UserError(
                f"clip id {self.id[:80]!r}: must be 1 to 120 letters, digits, '_', '-' or '.', "
                "and start with a letter, a digit or '_'"
            )
        where = f"clip {self.id}"
        check_relative(self.video, where)
        _check_times(self.start, self.end, where)
        if self.split not in SIDES:
            raise UserError(f"{where}: split = {self.split!r}: must be train, val or test")
        if not self.category.strip():
            raise UserError(f"{where}: the category is empty")
        if not self.captions:
            raise UserError(f"{where}: has no caption; every clip needs at least one")
        if not all(_encodable(text) for text in (self.category, *self.captions)):
            raise UserError(f"{where}: category or caption contains invalid Unicode (an unpaired surrogate)")
        if blank := [caption for caption in self.captions if not is_readable(caption)]:
            raise UserError(f"{where}: has a caption without a word: {blank[0]!r}")


def check_relative(path: str, where: str) -> None:
    r"""Refuse a path that could lead out of the folder it is looked up in.

    Parameters
    ----------
    path : str
        A path from an annotation file or an archive.
    where : str
        What the error message starts with.

    Raises
    ------
    UserError
        For an absolute path, a `..`, a drive letter, a backslash, a control character or an empty path.
    """
    pure = PurePosixPath(path)
    outside = pure.is_absolute() or ".." in pure.parts or "\\" in path or re.match(r"[A-Za-z]:", path)
    if outside or not pure.parts or _CONTROL.search(path) or not _encodable(path):
        raise UserError(
            f"{where}: path {path[:200]!r} is not allowed: it must be relative, with '/' between its parts, "
            "and stay inside its folder"
        )


def _check_times(start: float | None, end: float | None, where: str) -> None:
    for name, seconds in (("start", start), ("end", end)):
        if seconds is not None and not (math.isfinite(seconds) and seconds >= 0):
            raise UserError(f"{where}: {name} = {seconds}: must be a number of seconds, 0 or more")


def is_readable(caption: str) -> bool:
    """Whether anything is left of a caption once CLIP's tokenizer has decoded HTML entities."""
    text = html.unescape(html.unescape(caption))
    return any(unicodedata.category(character)[0] not in "ZC" for character in text)


def overlap(one: Clip, other: Clip) -> bool:
    """Whether two clips show the same moment of one video."""
    if one.video != other.video:
        return False
    (start, end), (begin, stop) = ((clip.start or 0.0, _end(clip)) for clip in (one, other))
    return start < stop and begin < end


def _end(clip: Clip) -> float:
    return math.inf if clip.end is None else clip.end


def _encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def write_manifest(clips: Iterable[Clip], path: str | Path) -> None:
    """Check `clips` as a whole and write them, one JSON object a line.

    Raises
    ------
    UserError
        See `read_manifest`.
    """
    clips = list(clips)
    _check_together(clips, [clip.origin or str(path) for clip in clips], path)
    atomic_write_text(path, "".join(_line(clip) for clip in clips))


def _line(clip: Clip) -> str:
    values = asdict(clip)
    if not clip.origin:
        del values["origin"]
    return json.dumps(values, ensure_ascii=False) + "\n"


def read_manifest(path: str | Path) -> list[Clip]:
    """Read what `write_manifest` wrote, and check it again.

    Raises
    ------
    UserError
        If the file is missing, empty or not JSON lines, a clip is not valid, an id occurs twice, or two sides
        share moments of a video. The message names file and line.
    """
    path = Path(path)
    adapter = TypeAdapter(Clip)
    clips = []
    try:
        # Not splitlines(): captions may hold characters such as U+2028, which it takes for line ends.
        lines = path.read_text(encoding="utf-8").rstrip("\n").split("\n")
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; the stage `download` writes it") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8: {error}") from None
    if lines == [""]:
        raise UserError(f"{path}: holds no clip")
    for number, line in enumerate(lines, 1):
        try:
            clips.append(adapter.validate_json(line))
        except UserError as error:
            raise UserError(f"{path}:{number}: {error}") from None
        except ValidationError as error:
            first = error.errors()[0]
            key = ".".join(str(part) for part in first["loc"])
            raise UserError(f"{path}:{number}: {key + ': ' if key else ''}{first['msg']}") from None
    _check_together(clips, [clip.origin or f"{path}:{number}" for number, clip in enumerate(clips, 1)], path)
    return clips


def _check_together(clips: list[Clip], origins: list[str], path: str | Path) -> None:
    """Refuse clips that contradict each other; `origins` says where each comes from."""
    if not clips:
        raise UserError(f"{path}: holds no clip")
    problems = [f"{origins[index]}: {problem}" for index, problem in _conflicts(clips)]
    if problems:
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        raise UserError(f"{problems[0]}{more}")


def _conflicts(clips: list[Clip]) -> Iterator[tuple[int, str]]:
    """Yield each clip (by index) that cannot stand beside the clips before it, and why."""
    sides: dict[str, str] = {}
    of_video: dict[str, list[Clip]] = defaultdict(list)
    for index, clip in enumerate(clips):
        if sides.get(clip.id, clip.split) != clip.split:
            yield index, f"clip {clip.id} is in {sides[clip.id]} and in {clip.split}; it may be in one of them only"
        elif clip.id in sides:
            yield index, f"clip {clip.id} occurs twice; ids must be unique"
        for other in of_video[clip.video]:
            if other.split != clip.split and overlap(clip, other):
                first = f"{other.id} ({', '.join(filter(None, (other.split, other.origin)))})"
                problem = f"clips {first} and {clip.id} ({clip.split}) show the same moments"
                yield index, f"{problem} of video {clip.video}; choose one side, or segments that do not overlap"
        of_video[clip.video].append(clip)
        sides[clip.id] = clip.split
