"""Any folder of videos and one CSV that says what is in them."""

from __future__ import annotations

import csv
import hashlib
import io
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Literal

from structalign.config.schema import Config
from structalign.config.section import DataSection
from structalign.data.clips import SIDES, Clip, check_relative, is_readable
from structalign.data.datasets.common import list_videos, require_videos, user_folder, write_fingerprints
from structalign.util.errors import UserError
from structalign.util.files import user_path
from structalign.util.log import log

COLUMNS = ("video", "start", "end", "category", "caption", "split")
MAX_FIELD = 1 << 20  # characters of one caption; Python's own limit of 131,072 has an obscure message

Key = tuple[str, float | None, float | None]


class DataConfig(DataSection):
    """Any folder of videos and one CSV that says what is in them."""

    name: Literal["local"]
    protocol: Literal["fewshot"]
    """Always a seeded draw."""
    videos: str | None
    """Folder of videos."""
    csv: str | None
    """CSV with the columns video, start, end, category, caption, split."""


@dataclass
class _Entry:
    """The rows of one clip: they agree on everything but the caption."""

    where: str
    category: str
    split: str
    captions: list[str] = field(default_factory=list)


def prepare(config: Config, target: Path) -> list[Clip]:
    """Turn the user's CSV and folder of videos into clips.

    Parameters
    ----------
    config : Config
        `data.videos` is the folder, `data.csv` the table.
    target : Path
        Folder for what later stages read; the videos stay where they are.

    Raises
    ------
    UserError
        If the table is not as `read_csv` expects it, or names a video that is not there.
    """
    data = config.data
    assert isinstance(data, DataConfig)
    folder = user_folder(data.videos, "data.videos")
    if not data.csv:
        raise UserError(f"data.csv is not set: name a CSV with the columns {', '.join(COLUMNS)}")
    clips = read_csv(user_path(data.csv))
    videos, used = list_videos(folder), {clip.video for clip in clips}
    if unused := [path for path in videos if path not in used]:
        log.warning(f"{len(unused)} videos in {folder} have no caption and are left out, for one {unused[0]}")
    require_videos(_missing(clips, videos), len(clips), str(folder), config.frames.allow_missing, clips)
    write_fingerprints(folder, used & set(videos), target / "videos.json")
    return clips


def _missing(clips: list[Clip], videos: list[str]) -> list[str]:
    """Name the absent video of every clip that has none, with the clip's line and the file that may be meant."""
    present, stems = set(videos), {str(PurePosixPath(path).with_suffix("")): path for path in videos}
    hints = {video: f"; did you mean {path}?" for video, path in stems.items()}
    return [f"{clip.video} ({clip.origin}{hints.get(clip.video, '')})" for clip in clips if clip.video not in present]


def read_csv(path: Path) -> list[Clip]:
    """Read a table of clips.

    Parameters
    ----------
    path : Path
        A CSV in UTF-8 with the columns of `COLUMNS`, in any order. Rows with the same video, start and end are
        captions of one clip. Start and end are seconds; empty: from the beginning, to the end.

    Returns
    -------
    list of Clip
        In the order in which they first appear. A clip is named after its video and its segment.

    Raises
    ------
    UserError
        The message names file and line.
    """
    entries: dict[Key, _Entry] = {}
    repeated = 0
    for where, row in _rows(path):
        key = _key(row, where)
        entry = entries.setdefault(key, _Entry(where, row["category"], row["split"]))
        _check_agreement(entry, row, where)
        if row["caption"] in entry.captions:
            repeated += 1
        else:
            entry.captions.append(row["caption"])
    if not entries:
        raise UserError(f"{path}: holds no clip")
    if repeated:
        log.warning(f"{path}: {repeated} rows repeat a caption of the same clip and are left out")
    names = _names(list(entries))
    return [_clip(names[key], key, entry) for key, entry in entries.items()]


def _rows(path: Path) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield `file:line` and the stripped fields of every row."""
    text = _decoded(path)
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    limit = csv.field_size_limit(MAX_FIELD)
    try:
        _check_columns([name.strip() for name in reader.fieldnames or ()], path)
        reader.fieldnames = [name.strip() for name in reader.fieldnames or ()]
        for row in reader:
            where = f"{path}:{reader.line_num}"
            if None in row or None in row.values():
                raise UserError(f"{where}: must have {len(COLUMNS)} fields; put captions with commas in quotes")
            yield where, {name: value.strip() for name, value in row.items()}
    except csv.Error as error:
        # The reader counts a line once it is through with it, or finds that it was the last one.
        line = min(reader.line_num + 1, len(text.splitlines()))
        raise UserError(f"{path}:{line}: not a CSV: {error}") from None
    finally:
        csv.field_size_limit(limit)


def _decoded(path: Path) -> str:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise UserError(
            f"{path}:{line}: byte {content[error.start]:#04x} is not UTF-8; save the table as CSV UTF-8"
        ) from None
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise UserError(f"{path}:{line}: holds a zero byte; save the table as CSV UTF-8")
    return text


def _check_columns(names: list[str], path: Path) -> None:
    for name, count in Counter(names).items():
        if name not in COLUMNS:
            raise UserError(f"{path}:1: unknown column {name!r}; the columns are {', '.join(COLUMNS)}")
        if count > 1:
            raise UserError(f"{path}:1: column {name} occurs {count} times")
    for name in COLUMNS:
        if name not in names:
            raise UserError(f"{path}:1: lacks the column {name}; the columns are {', '.join(COLUMNS)}")


def _key(row: dict[str, str], where: str) -> Key:
    """Check a row by itself and return what tells its clip from others."""
    if not row["video"]:
        raise UserError(f"{where}: a caption without a video")
    if not row["caption"]:
        raise UserError(f"{where}: video {row['video']!r} without a caption")
    if not is_readable(row["caption"]):
        raise UserError(f"{where}: video {row['video']!r} has a caption without a word: {row['caption']!r}")
    if not row["category"]:
        raise UserError(f"{where}: the category is empty")
    if row["split"] not in SIDES:
        raise UserError(f"{where}: split = {row['split']!r}: must be train, val or test")
    check_relative(row["video"], where)
    # "./a.mp4" and "a.mp4" are one video.
    row["video"] = str(PurePosixPath(row["video"]))
    start, end = _seconds(row["start"], "start", where), _seconds(row["end"], "end", where)
    return row["video"], 0.0 if start is None and end is not None else start, end


def _seconds(text: str, column: str, where: str) -> float | None:
    if not text:
        return None
    if not re.fullmatch(r"\d+(\.\d*)?|\.\d+", text, re.ASCII):
        raise UserError(f"{where}: {column} = {text[:40]!r}: must be seconds, such as 12.5, or empty")
    return float(text)


def _check_agreement(entry: _Entry, row: dict[str, str], where: str) -> None:
    for column, earlier in (("category", entry.category), ("split", entry.split)):
        if row[column] != earlier:
            raise UserError(f"{where}: {column} = {row[column]!r}, but {earlier!r} for this clip at {entry.where}")


def _names(keys: list[Key]) -> dict[Key, str]:
    """Name clips after their videos and segments, in the characters that an id may have."""
    plain = {video: re.sub(r"[^A-Za-z0-9_.-]+", "_", str(PurePosixPath(video).with_suffix(""))) for video, *_ in keys}
    count = Counter(name.lower() for name in plain.values())
    names = {}
    for key in keys:
        video, start, end = key
        name = plain[video]
        if count[name.lower()] > 1 or len(name) > 64 or not re.match(r"[A-Za-z0-9_]", name):
            # Alike once written in these characters, or no good as a name: told apart by a piece of checksum.
            name = _marked(name[:64].lstrip(".-"), video)
        whole = start is None and end is None
        names[key] = name if whole else f"{name}_{_seconds_name(start or 0.0)}-{_seconds_name(end)}"
    same = Counter(name.lower() for name in names.values())  # such as a_0-5.mp4, and a.mp4 from 0 to 5
    return {key: _marked(name, key[0]) if same[name.lower()] > 1 else name for key, name in names.items()}


def _marked(name: str, video: str) -> str:
    """Tell a name from others by a piece of checksum."""
    return f"{name}_{hashlib.sha256(video.encode()).hexdigest()[:8]}"


def _seconds_name(seconds: float | None) -> str:
    return "end" if seconds is None else f"{seconds:.6f}".rstrip("0").rstrip(".")


def _clip(name: str, key: Key, entry: _Entry) -> Clip:
    try:
        origin = str(entry.where).rpartition("/")[2]
        return Clip(name, *key, entry.category, entry.split, tuple(entry.captions), origin)  # type: ignore[arg-type]
    except UserError as error:
        raise UserError(f"{entry.where}: {error}") from None
