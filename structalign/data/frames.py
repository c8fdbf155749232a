"""Frames of all clips, decoded once and packed as JPEG into a few shards.

A shard is a ZIP archive without compression (JPEG is compressed already): any tool opens it, its directory gives
random access, and its checksums tell damage. Times in it are fixed, so that the same frames give the same bytes.
"""

from __future__ import annotations

import errno
import io
import signal
import zipfile
from collections import defaultdict
from collections.abc import Generator, Iterable, Iterator
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from structalign import paths
from structalign.config.schema import FramesConfig
from structalign.data.archive import content_mark, video_file
from structalign.data.clips import Clip
from structalign.data.decode import Request, UndecodableError, decode, sample_indices
from structalign.data.decoded import Packed, kept_file, load_packed, save_packed
from structalign.data.store import FrameEntry, entry_name
from structalign.util.errors import UserError, first_ten
from structalign.util.files import atomic_write_json
from structalign.util.log import log, progress
from structalign.util.workers import JobFailed, parallel_map

__all__ = ["Missing", "extract", "sample_indices"]

TIMEOUT = 1800.0
"""Seconds that a decoder may take for a clip; some damaged files make one wait for ever."""

CRASHES = (signal.SIGSEGV, signal.SIGBUS, signal.SIGABRT, signal.SIGFPE, signal.SIGILL)
"""What kills a decoder over a damaged video, unlike SIGKILL, sent from outside or by the out-of-memory killer."""


@dataclass(frozen=True)
class Job:
    """A clip to decode, the folder or archive that its video is in, and the JPEG quality of its frames.

    If there is a folder `keep`, the clip is taken from there, or kept there once it is decoded.
    """

    videos: Path
    request: Request
    quality: int
    keep: Path | None


@dataclass(frozen=True)
class Missing:
    """A clip that was left out, and why."""

    clip: str
    video: str
    reason: str


def extract(
    clips: list[Clip], videos: Path, folder: Path, frames: FramesConfig, workers: int, keep: Path | None = None
) -> list[Missing]:
    """Decode all clips and pack their frames into `folder`.

    Parameters
    ----------
    clips : list of Clip
    videos : Path
        Folder or zip archive that the clips' video paths are in.
    folder : Path
        An existing, empty folder; it gets shard-0000.zip, ..., index.json and missing.json.
    frames : FramesConfig
    workers : int
        Decoding processes; results do not depend on how many.
    keep : Path, optional
        Folder that keeps each decoded clip. Another call takes it from there, unless its video or the parameters have
        changed.

    Returns
    -------
    list of Missing
        Clips left out, at most `frames.allow_missing`.

    Raises
    ------
    UserError
        If more clips than allowed cannot be decoded, naming them; if a decoding process is killed, naming
        what it read; if the disk is full.
    """
    missing: list[Missing] = []
    notes: dict[str, list[str]] = defaultdict(list)
    try:
        results = _decode_all(clips, videos, frames, workers, keep)
        with closing(results), _ShardWriter(folder, frames.shard_mb * 2**20) as shards:
            for clip, result in zip(clips, results, strict=True):
                if isinstance(result, str):
                    reason = f"{result}, {clip.origin}" if clip.origin else result
                    log.warning(f"{clip.id} ({clip.video}): {reason}")
                    missing.append(Missing(clip.id, clip.video, reason))
                else:
                    images, size, about = result
                    shards.add(clip.id, images, size)
                    for note in about:
                        notes[note].append(clip.id)
        if len(missing) > frames.allow_missing or not shards.index:
            others = "; the other clips are kept, and not decoded again" if keep and shards.index else ""
            raise UserError(_complaint(missing, len(clips), frames.allow_missing) + others)
        settings = {key: getattr(frames, key) for key in ("num_frames", "short_side", "quality")}
        index = {"settings": settings, "clips": shards.index, "notes": dict(sorted(notes.items()))}
        atomic_write_json(folder / paths.FRAME_INDEX.name, index)
        atomic_write_json(folder / paths.MISSING.name, [asdict(clip) for clip in missing])
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise UserError(
            f"disk full while packing frames below {folder.parent}: free some space and run again"
        ) from None
    if notes:
        counts = (f"{len(about)} {note} (such as {about[0]})" for note, about in sorted(notes.items()))
        log.warning(f"clips that were changed or are doubtful: {'; '.join(counts)}")
    return missing


def _complaint(missing: list[Missing], total: int, allowed: int) -> str:
    named = first_ten([f"{item.clip} ({item.video}: {item.reason})" for item in missing], ", all in the log")
    allow = f", or allow as many with frames.allow_missing={len(missing)} (now {allowed})"
    return (
        f"{len(missing)} of {total} clips cannot be decoded: {named}; fix or remove them"
        f"{allow if len(missing) < total else ''}"
    )


def _decode_all(
    clips: list[Clip], videos: Path, frames: FramesConfig, workers: int, keep: Path | None
) -> Generator[Packed | str, None, None]:
    """JPEGs of each clip, in order; a string says why there are none."""
    jobs = [
        Job(
            videos,
            Request(Path(clip.video), clip.start, clip.end, frames.num_frames, frames.short_side),
            frames.quality,
            keep,
        )
        for clip in clips
    ]
    yield from progress(_decode_in_processes(jobs, workers), len(jobs), "frames", "clip")


def _decode_in_processes(jobs: list[Job], workers: int) -> Iterator[Packed | str]:
    """Decode in processes, even if in one: a video that crashes the decoder must not end the stage."""
    for job, result in zip(jobs, parallel_map(_decode_one, jobs, workers, TIMEOUT), strict=True):
        if not isinstance(result, JobFailed):
            yield result
        elif result.exitcode is None or -result.exitcode in CRASHES:
            yield f"decoding it {'took too long' if result.exitcode is None else f'crashed ({result})'}"
        else:
            raise UserError(
                f"a decoding process died ({result}, possibly out of memory) while it read {job.request.path.name}: "
                "lower machine.workers, or remove the video if it is always the same, and run again"
            )


def _decode_one(job: Job) -> Packed | str:
    video, kept = job.request.path.as_posix(), None
    try:
        with video_file(job.videos, video) as path:
            if not path.is_file():
                return "no such file"
            if job.keep is not None:
                kept = kept_file(job.keep, content_mark(job.videos, video), job.request, job.quality)
                if packed := load_packed(kept):
                    return packed
            decoded = decode(replace(job.request, path=path))
    except (UndecodableError, UserError) as error:
        return str(error)
    except MemoryError:
        raise
    except Exception as error:  # damaged data make decoders fail in ways that nobody has listed
        return f"{type(error).__name__} in the decoder: {' '.join(str(error).split())[:120]}"
    images = [_jpeg(frame, job.quality) for frame in decoded.frames]
    packed = images, decoded.frames[0].shape[:2], decoded.notes
    if kept is not None:
        save_packed(kept, packed)
    return packed


def _jpeg(frame: np.ndarray, quality: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(frame).save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


class _ShardWriter:
    """Fills one shard after another, and notes which clip went where."""

    def __init__(self, folder: Path, limit: int) -> None:
        self.folder, self.limit = folder, limit
        self.index: dict[str, dict[str, Any]] = {}
        self.archive: zipfile.ZipFile | None = None
        self.count = self.size = 0

    def __enter__(self) -> _ShardWriter:
        return self

    def __exit__(self, *_: object) -> None:
        if self.archive is not None:
            self.archive.close()

    def add(self, clip: str, images: list[bytes], size: tuple[int, ...]) -> None:
        if self.archive is None or self.size >= self.limit:
            self._next()
        assert self.archive is not None
        for number, image in enumerate(images):
            # ZipInfo's own default time, 1980, keeps bytes the same from run to run.
            self.archive.writestr(zipfile.ZipInfo(entry_name(clip, number)), image)
            self.size += len(image)
        shard = Path(self.archive.filename or "").name
        self.index[clip] = asdict(FrameEntry(shard, len(images), size[0], size[1]))

    def _next(self) -> None:
        if self.archive is not None:
            self.archive.close()
        self.archive = zipfile.ZipFile(self.folder / f"shard-{self.count:04d}.zip", "w", zipfile.ZIP_STORED)
        self.count, self.size = self.count + 1, 0


def in_reading_order(clips: Iterable[Clip]) -> list[Clip]:
    """Put clips in the order that reads each video file once and gives the same shards every time."""
    return sorted(clips, key=lambda clip: (clip.video, clip.id))
