"""MSR-VTT with the splits and the test captions of the CTVR benchmark."""

from __future__ import annotations

import csv
from collections import defaultdict
from collections.abc import Container, Iterable
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from structalign.config.schema import Config
from structalign.config.section import Count, DataSection, Source
from structalign.data.archive import members, read_member
from structalign.data.clips import Clip, is_readable
from structalign.data.datasets.common import (
    VIDEO_SUFFIXES,
    forget,
    is_fetched,
    list_files,
    obtain,
    parse_json,
    read_annotation_json,
    require_videos,
    write_fingerprints,
)
from structalign.data.datasets.published_splits import draw_validation, keep_splits, read_benchmark
from structalign.util.errors import UserError
from structalign.util.files import atomic_write_json
from structalign.util.log import log

# The data set numbers its categories; these are the names it gives them.
CATEGORIES = (
    "music",
    "people",
    "gaming",
    "sports/actions",
    "news/events/politics",
    "education",
    "tv shows",
    "movie/comedy",
    "animation",
    "vehicles/autos",
    "howto",
    "travel",
    "science/technology",
    "animals/pets",
    "kids/family",
    "documentary",
    "food/drink",
    "cooking",
    "beauty/fashion",
    "advertisement",
)


class DataConfig(DataSection):
    """MSR-VTT with the CTVR benchmark's splits."""

    name: Literal["msrvtt"]
    protocol: Literal["published", "fewshot"]
    """published: the split file of the benchmark. fewshot: a seeded draw."""
    archive: Source
    """The videos: the zip archive that the benchmark names, or a local folder or zip archive."""
    annotations: Source | None
    """MSR-VTT's own annotation file; null takes it from the archive. The archive's also serves if a URL fails."""
    validation_seed: Count
    """Seed of the draw of validation videos; one for all runs, so that these share their frames."""
    splits: dict[int, Source]
    """Published split file for each K it was published for."""
    test_captions: Source
    """The benchmark's CSV with one caption for each test video."""

    @property
    def published_tasks(self) -> list[int]:
        """Numbers of tasks K that a split was published for."""
        return list(self.splits)


@dataclass
class Annotations:
    """MSR-VTT's annotation file.

    Parameters
    ----------
    captions : dict of str to list of str
        All sentences of each video, in the file's order.
    placed : dict of str to (str, str)
        For each video its side (`train` or `test`) and its category; empty if the file does not say.
    """

    captions: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    placed: dict[str, tuple[str, str]] = field(default_factory=dict)


def prepare(config: Config, target: Path) -> list[Clip]:
    """Fetch MSR-VTT and turn it into clips.

    Parameters
    ----------
    config : Config
        Its section `data` names the sources.
    target : Path
        Folder that gets the split files and fingerprints of the videos, which stay where they are.

    Returns
    -------
    list of Clip
        `published`: the videos of the split files, and validation videos from MSR-VTT's train and validation parts
        that are in none of them (`split.validation`). `fewshot`: all annotated ones, with MSR-VTT's own train and
        validation parts to draw the few shots from. Training clips have all their sentences, test clips one:
        that of the published CSV, and for `fewshot` the first sentence of a video that is not in it.

    Raises
    ------
    UserError
        If a source is missing or not as published, or sources do not fit together.
    """
    data = config.data
    assert isinstance(data, DataConfig)
    splits = {num_tasks: obtain(source) for num_tasks, source in data.splits.items()}
    published = read_benchmark(splits, "msrvtt")
    test_captions = read_test_captions(obtain(data.test_captions))
    videos = _Videos(obtain(data.archive))
    annotations = _annotations(data.annotations, videos, published)
    if data.protocol == "published":
        placed = {video: (side, category_name(number)) for video, (side, number) in published.items()}
        if config.split.validation:
            spare, categories = _spare(annotations, placed), [category for _, category in placed.values()]
            placed |= draw_validation(spare, categories, config.split.validation, data.validation_seed)
    else:
        placed = annotations.placed
    if not placed:
        raise UserError(
            "data.protocol = fewshot needs the categories of all videos, which this annotation file lacks: "
            "set data.annotations to MSRVTT_data.json, or data.protocol to published"
        )
    paths_of = _locate(videos.names)
    clips = [
        _clip(video, paths_of.get(video, f"{video}.mp4"), *placed[video], annotations, test_captions, data.protocol)
        for video in placed
    ]
    missing = [clip.id for clip in clips if clip.id not in paths_of]
    require_videos(missing, len(clips), str(videos.path), config.frames.allow_missing)
    videos.write_fingerprints(sorted(clip.video for clip in clips if clip.id in paths_of), target / "videos.json")
    keep_splits(splits, target)
    return clips


def _spare(annotations: Annotations, taken: Container[str]) -> dict[str, str]:
    """Category of each video of MSR-VTT's train and validation parts that the published split leaves out."""
    if not annotations.placed:
        raise UserError(
            "split.validation needs the categories of all videos, which this annotation file lacks: "
            "set data.annotations to MSRVTT_data.json, or split.validation to 0"
        )
    return {
        video: category
        for video, (side, category) in annotations.placed.items()
        if side == "train" and video not in taken
    }


def category_name(number: str) -> str:
    """Name the category with this number; a number beyond the known ones is its own name."""
    return CATEGORIES[int(number)] if number.isdecimal() and int(number) < len(CATEGORIES) else number


def _annotations(source: Source | None, videos: _Videos, published: Iterable[str]) -> Annotations:
    """Read the annotation file that `source` names. If it is a URL that fails, the archive's serves in its place.

    The file's checksum was never published, so that it is judged by what it holds. A file of the user's own is taken
    as it is.
    """
    if source is None:
        return videos.annotations()
    if not is_fetched(source):
        return read_annotations(obtain(source))
    try:
        path = obtain(source)
        annotations = read_annotations(path)
        if lacking := [video for video in published if not annotations.captions.get(video)]:
            raise UserError(f"{path}: has no sentence for {len(lacking)} videos, such as {lacking[0]}")
        if not annotations.placed:
            raise UserError(f"{path}: has no categories")
    except UserError as error:
        forget(source)
        log.warning(f"{error}: the annotation file of {videos.path} is used")
        return videos.annotations()
    return annotations


def _clip(
    video: str,
    path: str,
    side: str,
    category: str,
    annotations: Annotations,
    test_captions: dict[str, str],
    protocol: str,
) -> Clip:
    captions = annotations.captions.get(video, [])
    if side == "test" and video in test_captions:
        captions = [test_captions[video]]
    elif side == "test" and protocol == "published":
        raise UserError(f"data.test_captions: has no caption for the test video {video}")
    elif not captions:
        raise UserError(f"data.annotations: has no sentence for the video {video}")
    kept = captions[:1] if side == "test" else captions
    return Clip(video, path, None, None, category, side, tuple(kept))  # type: ignore[arg-type]


def read_test_captions(path: Path) -> dict[str, str]:
    """Read the published CSV of test captions: the columns `video_id` and `sentence`, one row per video.

    Raises
    ------
    UserError
        If a column is missing, a caption has no word or a video occurs twice; the message names the line.
    """
    captions: dict[str, str] = {}
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            reader = csv.DictReader(stream, strict=True)
            if lacking := {"video_id", "sentence"} - set(reader.fieldnames or ()):
                raise UserError(f"{path}:1: lacks the column {min(lacking)}")
            for row in reader:
                video, caption = row["video_id"], (row["sentence"] or "").strip()
                if not is_readable(caption):
                    raise UserError(f"{path}:{reader.line_num}: video {video} has a caption without a word")
                if video in captions:
                    raise UserError(f"{path}:{reader.line_num}: video {video} occurs twice")
                captions[video] = caption
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: not a CSV in UTF-8: {error}") from None
    return captions


def read_annotations(path: Path) -> Annotations:
    """Read MSR-VTT's annotation file, in either of its two known forms.

    Parameters
    ----------
    path : Path
        `{"sentences": [{"video_id", "caption"}], "videos": [{"video_id", "category", "split"}]}`, or
        `{"annotations": [{"image_id", "caption"}]}`, which has no categories.

    Raises
    ------
    UserError
        If it is neither.
    """
    content = read_annotation_json(path)
    found = _parse(content)
    if found is None:
        raise UserError(f"{path}: must hold sentences and videos (MSRVTT_data.json), or annotations")
    return found


def _parse(content: Any) -> Annotations | None:
    found, blank = Annotations(), 0
    try:
        key, rows = ("video_id", "sentences") if "sentences" in content else ("image_id", "annotations")
        for row in content[rows]:
            # A handful of sentences of such collections tend to be blank; there is nothing to learn from them.
            if is_readable(caption := row["caption"].strip()):
                found.captions[row[key]].append(caption)
            else:
                blank += 1
        for row in content["videos"] if rows == "sentences" else ():
            side = "test" if row["split"] == "test" else "train"
            found.placed[row["video_id"]] = (side, category_name(str(row["category"])))
    except (TypeError, KeyError, AttributeError):
        return None
    if blank:
        log.info(f"MSR-VTT's annotations: sentences without a word, left out: {blank}")
    return found


class _Videos:
    """The videos: a zip archive, or a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.members = {} if path.is_dir() else members(path)
        self.names = list_files(path) if path.is_dir() else list(self.members)

    def annotations(self) -> Annotations:
        """Find the annotation file among the JSON files, by what they hold; one with categories is preferred."""
        contents = ((name, self._read(name)) for name in self.names if name.lower().endswith(".json"))
        parsed = [_parse(parse_json(content, f"{self.path}: {name}")) for name, content in contents]
        found = [annotations for annotations in parsed if annotations is not None]
        if not found:
            raise UserError(f"{self.path}: holds no annotation file; set data.annotations to MSRVTT_data.json")
        return max(found, key=lambda annotations: bool(annotations.placed))

    def _read(self, name: str) -> bytes:
        return read_member(self.path, name) if self.members else (self.path / name).read_bytes()

    def write_fingerprints(self, videos: list[str], target: Path) -> None:
        """Note what tells other videos of the same names; an archive's directory has checksums of its own."""
        if self.members:
            marks = {name: {"bytes": (info := self.members[name]).file_size, "crc32": info.CRC} for name in videos}
            atomic_write_json(target, marks)
        else:
            write_fingerprints(self.path, videos, target)


def _locate(names: Iterable[str]) -> dict[str, str]:
    """Find each video's place; the archive lists some more than once, and `videos/all` is the full set."""
    found: dict[str, str] = {}
    for name in sorted(names, key=lambda name: ("videos/all/" not in name, name)):
        if name.lower().endswith(VIDEO_SUFFIXES):
            found.setdefault(PurePosixPath(name).stem, name)
    return found
