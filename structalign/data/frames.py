"""Frames of all clips, decoded once and packed as JPEG into a few shards.

A shard is a ZIP archive without compression (JPEG is compressed already): any tool opens it, its directory gives
random access, and its checksums tell damage. Times in it are fixed, so that the same frames give the same bytes.
"""

from __future__ import annotations

import io
import json
import threading
import zipfile
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from PIL import Image

from structalign.config import FramesConfig
from structalign.data.manifest import Clip
from structalign.data.video import Request, UndecodableError, decode, sample_indices
from structalign.errors import UserError
from structalign.files import atomic_write_json, read_json
from structalign.log import log, progress

__all__ = ["FrameStore", "Missing", "extract", "sample_indices"]

NAMED = 10
"""Undecodable clips that an error names; the log has all."""


@dataclass(frozen=True)
class Missing:
    """A clip that was left out, and why."""

    clip: str
    video: str
    reason: str


def extract(clips: list[Clip], videos: Path, folder: Path, frames: FramesConfig, workers: int) -> list[Missing]:
    """Decode all clips and pack their frames into `folder`.

    Parameters
    ----------
    clips : list of Clip
    videos : Path
        Folder that the clips' video paths are relative to.
    folder : Path
        An existing, empty folder; it gets shard-0000.zip, ..., index.json and missing.json.
    frames : FramesConfig
    workers : int
        Decoding processes; results do not depend on how many.

    Returns
    -------
    list of Missing
        Clips left out, at most `frames.allow_missing`.

    Raises
    ------
    UserError
        Where more clips than allowed cannot be decoded, naming them, or where a decoding process dies.
    """
    missing: list[Missing] = []
    with _ShardWriter(folder, frames.shard_mb * 2**20) as shards:
        for clip, result in zip(clips, _decode_all(clips, videos, frames, workers), strict=True):
            if isinstance(result, str):
                log.warning(f"{clip.id} ({clip.video}): {result}")
                missing.append(Missing(clip.id, clip.video, result))
            else:
                shards.add(clip.id, result)
    if len(missing) > frames.allow_missing:
        raise UserError(_complaint(missing, frames.allow_missing))
    atomic_write_json(folder / "index.json", shards.index)
    atomic_write_json(folder / "missing.json", [asdict(clip) for clip in missing])
    return missing


def _complaint(missing: list[Missing], allowed: int) -> str:
    named = ", ".join(f"{item.clip} ({item.video}: {item.reason})" for item in missing[:NAMED])
    more = f" and {len(missing) - NAMED} more, all in the log" if len(missing) > NAMED else ""
    return (
        f"{len(missing)} clips cannot be decoded: {named}{more}; mend or remove them, "
        f"or allow as many with frames.allow_missing={len(missing)} (now {allowed})"
    )


def _decode_all(
    clips: list[Clip], videos: Path, frames: FramesConfig, workers: int
) -> Iterator[list[bytes] | str]:
    """JPEGs of each clip, in order; a string says why there are none."""
    requests = [
        Request(videos / clip.video, clip.start, clip.end, frames.num_frames, frames.short_side) for clip in clips
    ]
    jobs = [(request, frames.quality) for request in requests]
    if workers == 1:
        yield from progress(map(_decode_one, jobs), len(jobs), "frames", "clip")
        return
    # Fork-server children do not inherit the parent's threads and locks, which a forked decoder may hang on.
    with ProcessPoolExecutor(workers, mp_context=get_context("forkserver")) as pool:
        try:
            yield from progress(pool.map(_decode_one, jobs, chunksize=4), len(jobs), "frames", "clip")
        except BrokenProcessPool:
            raise UserError(
                "a decoding process died, most likely for want of memory: lower machine.workers and run again"
            ) from None


def _decode_one(job: tuple[Request, int]) -> list[bytes] | str:
    request, quality = job
    if not request.path.is_file():
        return "no such file"
    try:
        return [_jpeg(frame, quality) for frame in decode(request)]
    except UndecodableError as error:
        return str(error)


def _jpeg(frame: np.ndarray, quality: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(frame).save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


class _ShardWriter:
    """Fills one shard after another, and notes which clip went where."""

    def __init__(self, folder: Path, limit: int) -> None:
        self.folder, self.limit = folder, limit
        self.index: dict[str, dict[str, object]] = {}
        self.archive: zipfile.ZipFile | None = None
        self.count = self.size = 0

    def __enter__(self) -> _ShardWriter:
        return self

    def __exit__(self, *_: object) -> None:
        if self.archive is not None:
            self.archive.close()

    def add(self, clip: str, images: list[bytes]) -> None:
        if self.archive is None or self.size >= self.limit:
            self._next()
        assert self.archive is not None
        for number, image in enumerate(images):
            # ZipInfo's own default time, 1980, keeps bytes the same from run to run.
            self.archive.writestr(zipfile.ZipInfo(_entry(clip, number)), image)
            self.size += len(image)
        self.index[clip] = {"shard": Path(self.archive.filename or "").name, "frames": len(images)}

    def _next(self) -> None:
        if self.archive is not None:
            self.archive.close()
        self.archive = zipfile.ZipFile(self.folder / f"shard-{self.count:04d}.zip", "w", zipfile.ZIP_STORED)
        self.count, self.size = self.count + 1, 0


def _entry(clip: str, number: int) -> str:
    return f"{clip}/{number:03d}.jpg"


class FrameStore:
    """Reads what `extract` packed; safe to use from several threads.

    Parameters
    ----------
    folder : Path

    Raises
    ------
    UserError
        Where the folder is not a store of frames.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)
        self.index: dict[str, dict[str, object]] = read_json(self.folder / "index.json")
        self.missing = [item["clip"] for item in read_json(self.folder / "missing.json")]
        self._archives = threading.local()

    @property
    def ids(self) -> list[str]:
        """Clips in the store."""
        return list(self.index)

    def read(self, clip: str) -> np.ndarray:
        """Decode a clip's frames: uint8 (N, H, W, 3).

        Raises
        ------
        UserError
            Where the clip is not in the store, or its shard is damaged.
        """
        entry = self.index.get(clip)
        if entry is None:
            raise UserError(f"{self.folder}: no frames of clip {clip}; run `dvc repro` from stage frames on")
        shard = str(entry["shard"])
        try:
            archive = self._archive(shard)
            images = [archive.read(_entry(clip, number)) for number in range(int(entry["frames"]))]  # type: ignore[call-overload]
            return np.stack([np.asarray(Image.open(io.BytesIO(image))) for image in images])
        except (OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
            raise UserError(
                f"{self.folder / shard}: damaged at clip {clip} ({error}); delete {self.folder} and run `dvc repro`"
            ) from None

    def _archive(self, shard: str) -> zipfile.ZipFile:
        """Open a shard once per thread: an archive's file position is not shared safely."""
        archives = self._archives.__dict__.setdefault("open", {})
        if shard not in archives:
            archives[shard] = zipfile.ZipFile(self.folder / shard)
        return archives[shard]


def read_missing(path: Path) -> list[str]:
    """Ids of the clips that `extract` left out, from its missing.json."""
    return [item["clip"] for item in json.loads(path.read_text(encoding="utf-8"))]


def clips_of(clips: Iterable[Clip]) -> list[Clip]:
    """Put clips in the order that reads each video file once and gives the same shards every time."""
    return sorted(clips, key=lambda clip: (clip.video, clip.id))
