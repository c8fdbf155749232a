"""ActivityNet Captions as the CTVR benchmark uses it: the first annotated segment of each video."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from structalign.config.schema import Config
from structalign.config.section import Count, DataSection, Source
from structalign.data.clips import Clip
from structalign.data.datasets.common import (
    by_id,
    list_videos,
    obtain,
    read_annotation_json,
    require_videos,
    user_folder,
    write_fingerprints,
)
from structalign.data.datasets.published_splits import draw_validation, keep_splits, read_benchmark
from structalign.util.errors import UserError

Segments = dict[str, tuple[float, float, str]]
"""Start, end (seconds) and caption of each video's first segment."""


class DataConfig(DataSection):
    """ActivityNet Captions with the CTVR benchmark's splits; the videos are the user's."""

    name: Literal["actnet"]
    protocol: Literal["published", "fewshot"]
    """published: the split file of the benchmark. fewshot: a seeded draw."""
    videos: str | None
    """Folder of the ActivityNet videos on this machine."""
    validation_seed: Count
    """Seed of the draw of validation videos; one for all runs, so that these share their frames."""
    splits: dict[int, Source]
    """Published split file for each K it was published for."""
    train_captions: Source
    """ActivityNet Captions, training part."""
    test_captions: Source
    """ActivityNet Captions, the part that the benchmark tests on."""
    validation_captions: Source | None
    """ActivityNet Captions' own `train.json`, with all 10,009 videos of its train part; for split.validation only."""
    labels: Source | None
    """ActivityNet's own `activity_net.v1-3.min.json`, with the category of every video; for split.validation only."""

    @property
    def published_tasks(self) -> list[int]:
        """Numbers of tasks K that a split was published for."""
        return list(self.splits)


def prepare(config: Config, target: Path) -> list[Clip]:
    """Turn the published annotations and the user's videos into clips.

    Parameters
    ----------
    config : Config
        Its section `data` names the folder of the videos, annotations and split files.
    target : Path
        Folder for what later stages read; the videos stay where they are.

    Returns
    -------
    list of Clip
        One per video of the published splits: `timestamps[0]`, `sentences[0]` (METHOD.md section 1). With
        `split.validation`, also as many per category of those videos of the train part that the splits leave out.

    Raises
    ------
    UserError
        If a source is missing or not as published, or a video is not in the folder.
    """
    data = config.data
    assert isinstance(data, DataConfig)
    folder = user_folder(data.videos, "data.videos")
    paths = {num_tasks: obtain(source) for num_tasks, source in data.splits.items()}
    videos = by_id(list_videos(folder))
    placed = read_benchmark(paths, "actnet")
    annotations = {side: obtain(source) for side, source in _captions(data).items()}
    segments = {side: read_segments(path) for side, path in annotations.items()}
    if config.split.validation:
        annotations["val"], segments["val"] = _validation_segments(data)
        spare = _spare(data, segments["val"], placed)
        categories = [category for _, category in placed.values()]
        placed |= draw_validation(spare, categories, config.split.validation, data.validation_seed)
    clips = []
    for video, (side, category) in placed.items():
        if video not in segments[side]:
            raise UserError(f"{annotations[side]}: has no caption for video {video} of the published split")
        start, end, caption = segments[side][video]
        # Many people keep these videos under their YouTube names, without the leading `v_`.
        path = videos.get(video) or videos.get(video.removeprefix("v_")) or f"{video}.mp4"
        clips.append(Clip(video, path, start, end, category, side, (caption,)))  # type: ignore[arg-type]
    present = set(videos.values())
    missing = [clip.id for clip in clips if clip.video not in present]
    require_videos(missing, len(clips), str(folder), config.frames.allow_missing, clips)
    write_fingerprints(folder, present & {clip.video for clip in clips}, target / "videos.json")
    keep_splits(paths, target)
    return clips


def _captions(data: DataConfig) -> dict[str, Any]:
    return {"train": data.train_captions, "test": data.test_captions}


def _validation_segments(data: DataConfig) -> tuple[Path, Segments]:
    if data.validation_captions is None or data.labels is None:
        raise UserError(
            "split.validation needs data.validation_captions (train.json of ActivityNet Captions) and data.labels "
            "(activity_net.v1-3.min.json): -S 'data.validation_captions={source: FILE}' -S 'data.labels={source: "
            "FILE}', or set split.validation to 0"
        )
    path = obtain(data.validation_captions)
    return path, read_segments(path)


def _spare(data: DataConfig, segments: Segments, placed: dict[str, tuple[str, str]]) -> dict[str, str]:
    """Category of each annotated video that the published splits leave out, if it is one of theirs."""
    assert data.labels is not None
    labels = read_labels(obtain(data.labels))
    known = {category for _, category in placed.values()}
    return {video: labels[video] for video in segments if video not in placed and labels.get(video) in known}


def read_labels(path: Path) -> dict[str, str]:
    """Read the category of each video, `v_` before its id, from ActivityNet's own file.

    Raises
    ------
    UserError
        If the file is not `{"database": {id: {"annotations": [{"label": category}, ...]}}}`.
    """
    content = read_annotation_json(path)
    try:
        entries = content["database"].items()
        return {f"v_{video}": entry["annotations"][0]["label"] for video, entry in entries if entry["annotations"]}
    except (TypeError, KeyError, IndexError, AttributeError):
        raise UserError(f"{path}: must hold the database of ActivityNet, activity_net.v1-3.min.json") from None


def read_segments(path: Path) -> Segments:
    """Read start and end (seconds) and caption of each video's first annotated segment.

    Raises
    ------
    UserError
        If the file is not `{id: {"timestamps": [[start, end], ...], "sentences": [caption, ...]}}`.
    """
    annotations = read_annotation_json(path)
    if not isinstance(annotations, dict):
        raise UserError(f"{path}: must be a JSON object of videos")
    segments = {}
    for video, annotation in annotations.items():
        try:
            start, end = (float(seconds) for seconds in annotation["timestamps"][0])
            segments[video] = (start, end, annotation["sentences"][0].strip())
        except (TypeError, KeyError, IndexError, ValueError, AttributeError):
            raise UserError(
                f"{path}: video {video}: must have timestamps [[start, end], ...] and sentences [...]"
            ) from None
    return segments
