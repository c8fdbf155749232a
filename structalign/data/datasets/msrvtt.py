"""MSR-VTT with the splits and the test captions of the CTVR benchmark."""

from __future__ import annotations

import csv
import shutil
import tempfile
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from structalign.config.schema import Config, MsrvttData
from structalign.data.clips import Clip
from structalign.data.datasets.common import VIDEO_SUFFIXES, list_files, obtain, read_json, require_videos
from structalign.data.datasets.published_splits import keep_splits, read_benchmark
from structalign.data.download import extract, member_names
from structalign.util.errors import UserError
from structalign.util.log import log, progress

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


@dataclass
class Annotations:
    """MSR-VTT's annotation file.

    Parameters
    ----------
    captions : dict of str to list of str
        All sentences of each video, in the file's order.
    placed : dict of str to (str, str)
        For each video its side (`train` or `test`) and its category; empty where the file does not say.
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
        Folder that gets `videos/` and the split files.

    Returns
    -------
    list of Clip
        `published`: the videos of the split files. `fewshot`: all annotated ones, with MSR-VTT's own train and
        validation parts to draw the few shots from. Training clips have all their sentences, test clips one:
        that of the published CSV, and for `fewshot` the first sentence of a video that is not in it.

    Raises
    ------
    UserError
        Where a source is missing or not as published, or sources do not fit together.
    """
    data = config.data
    assert isinstance(data, MsrvttData)
    paths = {num_tasks: obtain(source) for num_tasks, source in data.splits.items()}
    published = read_benchmark(paths, "msrvtt")
    test_captions = read_test_captions(obtain(data.test_captions))
    archive = _Videos(obtain(data.archive))
    annotations = read_annotations(obtain(data.annotations)) if data.annotations else archive.annotations()
    if data.protocol == "published":
        placed = {video: (side, category_name(number)) for video, (side, number) in published.items()}
    else:
        placed = annotations.placed
    if not placed:
        raise UserError(
            "data.protocol = fewshot needs the categories of all videos, which this annotation file lacks: "
            "set data.annotations to MSRVTT_data.json, or data.protocol to published"
        )
    clips = [_clip(video, *placed[video], annotations, test_captions, data.protocol) for video in placed]
    missing = archive.unpack([clip.id for clip in clips], target / "videos")
    require_videos(missing, len(clips), data.archive.source, config.frames.allow_missing)
    keep_splits(paths, target)
    return clips


def category_name(number: str) -> str:
    """Name the category with this number; a number beyond the known ones is its own name."""
    return CATEGORIES[int(number)] if number.isdecimal() and int(number) < len(CATEGORIES) else number


def _clip(
    video: str,
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
    return Clip(video, f"videos/{video}.mp4", None, None, category, side, tuple(kept))  # type: ignore[arg-type]


def read_test_captions(path: Path) -> dict[str, str]:
    """Read the published CSV of test captions: the columns `video_id` and `sentence`, one row per video.

    Raises
    ------
    UserError
        Where a column is missing, a caption is empty or a video occurs twice; the message names the line.
    """
    captions: dict[str, str] = {}
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            reader = csv.DictReader(stream, strict=True)
            if lacking := {"video_id", "sentence"} - set(reader.fieldnames or ()):
                raise UserError(f"{path}:1: lacks the column {min(lacking)}")
            for row in reader:
                video, caption = row["video_id"], (row["sentence"] or "").strip()
                if not caption:
                    raise UserError(f"{path}:{reader.line_num}: video {video} has an empty caption")
                if video in captions:
                    raise UserError(f"{path}:{reader.line_num}: video {video} occurs twice")
                captions[video] = caption
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: not a CSV in UTF-8: {error}") from None
    return captions


def read_annotations(path: Path) -> Annotations:
    """Read MSR-VTT's annotation file, in either of the two forms that are about.

    Parameters
    ----------
    path : Path
        `{"sentences": [{"video_id", "caption"}], "videos": [{"video_id", "category", "split"}]}`, or
        `{"annotations": [{"image_id", "caption"}]}`, which has no categories.

    Raises
    ------
    UserError
        Where it is neither.
    """
    content = read_json(path)
    found = _parse(content)
    if found is None:
        raise UserError(f"{path}: must hold sentences and videos (MSRVTT_data.json), or annotations")
    return found


def _parse(content: Any) -> Annotations | None:
    found = Annotations()
    try:
        key, rows = ("video_id", "sentences") if "sentences" in content else ("image_id", "annotations")
        for row in content[rows]:
            # A handful of sentences of such collections tend to be blank; there is nothing to learn from them.
            if caption := row["caption"].strip():
                found.captions[row[key]].append(caption)
        for row in content["videos"] if rows == "sentences" else ():
            side = "test" if row["split"] == "test" else "train"
            found.placed[row["video_id"]] = (side, category_name(str(row["category"])))
    except (TypeError, KeyError, AttributeError):
        return None
    return found


class _Videos:
    """The archive of videos, packed or as a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.names = list_files(path) if path.is_dir() else member_names(path)

    def annotations(self) -> Annotations:
        """Find the annotation file among the JSON files, by what they hold; one with categories is preferred."""
        names = [name for name in self.names if name.lower().endswith(".json")]
        with tempfile.TemporaryDirectory() as folder:
            copies = {name: f"{index}-{PurePosixPath(name).name}" for index, name in enumerate(names)}
            self._copy(copies, Path(folder) / "json")
            parsed = [_parse(read_json(Path(folder) / "json" / copy)) for copy in copies.values()]
        found = [annotations for annotations in parsed if annotations is not None]
        if not found:
            raise UserError(f"{self.path}: holds no annotation file; set data.annotations to MSRVTT_data.json")
        return max(found, key=lambda annotations: bool(annotations.placed))

    def unpack(self, ids: list[str], target: Path) -> list[str]:
        """Take out the videos of `ids` as `<id>.mp4`; return the ids that are not there."""
        where = _locate(self.names)
        present = {where[video]: f"{video}.mp4" for video in ids if video in where}
        log.info(f"{len(present)} videos from {self.path}")
        self._copy(present, target)
        return [video for video in ids if video not in where]

    def _copy(self, names: dict[str, str], target: Path) -> None:
        if not self.path.is_dir():
            extract(self.path, target, names)
            return
        target.mkdir(parents=True)
        for name, copy in progress(names.items(), total=len(names), desc="copy", unit="file"):
            # No hard links: DVC may make the files of its outputs read-only, and these are the user's.
            shutil.copyfile(self.path / name, target / copy)


def _locate(names: Iterable[str]) -> dict[str, str]:
    """Find each video's place; the archive lists some more than once, and `videos/all` is the full set."""
    found: dict[str, str] = {}
    for name in sorted(names, key=lambda name: ("videos/all/" not in name, name)):
        if name.lower().endswith(VIDEO_SUFFIXES):
            found.setdefault(PurePosixPath(name).stem, name)
    return found
