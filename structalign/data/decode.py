"""Decode a clip of a video: N frames, upright, at the right moments, reading no more of the video than they need.

A first pass over the packets, which decodes nothing, tells when each frame is shown. A second pass hands the decoder
only what the wanted frames depend on: from the key frame before them, and in between without the frames that no other
frame refers to. The frames are the same, bit for bit, as those of a decoder that reads everything.

PyAV does this. decord decodes every frame from a key frame on, and takes 1.2 to 3 times as long for the same frames
(`benchmarks/frames.py`). It fails on AV1 and on MPEG-TS, takes a truncated Matroska file for a whole one, and never
comes back from a truncated MPEG-TS. So it is the second decoder, used if PyAV finds data damaged in a container
that has an index.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

import av
import av.logging
import numpy as np
from av.stream import Disposition
from PIL import Image

from structalign.data.pictures import Pictures, scaled

SKIPPABLE = frozenset({"h264", "mpeg4", "mpeg2video"})
"""Codecs whose frames tell whether any other frame refers to them."""

INDEXED = frozenset({"mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm"})
"""Containers that say how many frames they hold, so that decord cannot search for the end forever."""

PICTURE = re.compile(r"^image2|_pipe$")
"""FFmpeg's names for files that hold one picture."""

CLIP_MEMORY = 256 << 20
"""Bytes that decoding a clip may take."""

SLACK = Fraction(1, 1000)
"""Seconds. Matroska rounds times to milliseconds, so a frame that starts this little too late is in time."""


LATE = 1.0
"""Seconds after the end of its video that a segment may end; annotations round, and containers estimate."""

ENDS_LATE = "segment that ends after its video, cut"
TIMES_GUESSED = "no usable times of frames, taken from the frame rate"
SECOND_DECODER = "damaged, read by the second decoder"


class UndecodableError(Exception):
    """A clip that cannot be read; the message says why."""


class _FramesDifferError(Exception):
    """The decoder does not return one intact frame per packet, so that packets do not tell the times of frames."""


@dataclass(frozen=True)
class Request:
    """What to decode.

    Attributes
    ----------
    path : Path
    start, end : float or None
        Seconds from the first frame; None is the beginning or the end of the video.
    num_frames : int
    short_side : int
        Frames are scaled down to this shorter side; smaller ones stay as they are.
    """

    path: Path
    start: float | None
    end: float | None
    num_frames: int
    short_side: int


@dataclass(frozen=True)
class Decoded:
    """What became of a request.

    Attributes
    ----------
    frames : list of ndarray, shape (H, W, 3), uint8
        RGB, upright, with square pixels, all of one size.
    notes : set of str
        What was changed or is doubtful: constants of this module and of `pictures`.
    """

    frames: list[np.ndarray]
    notes: set[str] = field(default_factory=set)


Reader = Callable[[Request], Decoded]


@dataclass(frozen=True)
class _Packets:
    """The packets of a video, in the order of the file.

    Attributes
    ----------
    times : ndarray of int64, shape (P,)
        When each packet's frame is shown, in ticks; distinct.
    keys, shown : ndarray of bool, shape (P,)
        Whether decoding can start here; whether the frame belongs to the video (an edit list can hide it).
    end : int
        When the last frame ends, in ticks.
    tick : Fraction
        Seconds per tick.
    truncated : bool
        Whether the file ends before the video does.
    holes : list of (int, int)
        Where the file is damaged: the last frame before it and the first after it, in ticks.
    """

    times: np.ndarray
    keys: np.ndarray
    shown: np.ndarray
    end: int
    tick: Fraction
    truncated: bool
    holes: list[tuple[int, int]]


def sample_indices(start: int, stop: int, num_frames: int) -> list[int]:
    """Pick the frames at the middles of N equal intervals of [start, stop); short clips repeat frames.

    Parameters
    ----------
    start, stop : int
        First frame, and the one after the last; stop > start.
    num_frames : int
        N.

    Returns
    -------
    list of int
        N frames, in order.

    Raises
    ------
    ValueError
        If there is nothing to pick from.
    """
    if stop <= start or num_frames < 1:
        raise ValueError(f"cannot pick {num_frames} of the frames from {start} to {stop}")
    return [start + (2 * index + 1) * (stop - start) // (2 * num_frames) for index in range(num_frames)]


def decode(request: Request) -> Decoded:
    """Decode a clip's N frames.

    Parameters
    ----------
    request : Request

    Returns
    -------
    Decoded

    Raises
    ------
    UndecodableError
        If the file does not hold the clip, or both decoders fail; with the reasons of both.
    """
    if request.end is not None and request.end <= (request.start or 0):
        raise UndecodableError(f"the segment from {request.start or 0:g} to {request.end:g} s has no length")
    reasons = []
    for name, read, failures in _readers(request.path):
        try:
            decoded = read(request)
        except failures as error:
            if not _memory_left():  # the machine's fault and not the clip's, whatever the decoder calls it
                raise MemoryError from None
            reasons.append(f"{name}: {getattr(error, 'strerror', None) or _shortened(error)}")
            continue
        if len({frame.shape for frame in decoded.frames}) > 1:
            raise UndecodableError("the size of the frames changes within the clip")
        return decoded
    raise UndecodableError("; ".join(reasons))


def _readers(path: Path) -> Iterator[tuple[str, Reader, tuple[type[Exception], ...]]]:
    """Yield the decoders, each with the errors that pass a clip on to the next; decord is loaded only when needed."""
    yield "PyAV", _read_av, (av.FFmpegError,)
    with _open(path) as container:
        if container.format.name not in INDEXED:
            return
    try:
        import decord
    except ImportError:  # decord has wheels for x86-64 alone
        return
    except OSError:  # its library cannot be loaded
        if not _memory_left():
            raise MemoryError from None
        return
    yield "decord", _read_decord, (decord.DECORDError, RuntimeError, IndexError)


def _memory_left() -> bool:
    """Whether there is memory for a clip: FFmpeg reports a lack of it for some damaged files as well."""
    try:
        bytearray(CLIP_MEMORY)
    except MemoryError:
        return False
    return True


def _shortened(error: Exception) -> str:
    """Shorten an error to what a list of many has room for, without the times and source lines of decord's."""
    lines = re.sub(r"\[\d\d:\d\d:\d\d\] \S+:\d+: ", "", str(error)).strip().split("\n")
    return lines[0][:120] or type(error).__name__


def _read_av(request: Request) -> Decoded:
    try:
        return _read_needed(request)
    except _FramesDifferError:
        return _read_everything(request)


def _read_needed(request: Request) -> Decoded:
    """Decode only the packets that the wanted frames depend on."""
    packets = _scan(request)
    shown = np.sort(packets.times[packets.shown])
    if not shown.size:
        raise UndecodableError("the video stream holds no frame")
    notes: set[str] = set()
    positions = _positions(shown, packets.end, packets.tick, request, notes, packets.truncated, packets.holes)
    moments = shown[positions].tolist()
    found: dict[int, np.ndarray] = {}
    with _open(request.path) as container:
        stream = _stream(container)
        pictures = Pictures(stream, request.short_side, notes)
        for frame in _decode_needed(container, stream, packets, set(moments)):
            found[int(frame.pts or 0)] = pictures.picture(frame)
    return Decoded([found[moment] for moment in moments], notes)


def _open(path: Path) -> av.container.InputContainer:
    try:
        container = av.open(str(path.absolute()), metadata_errors="replace")  # titles may be in any encoding
    except (av.FFmpegError, OSError) as error:
        reason = "the file is empty" if path.is_file() and not path.stat().st_size else error.strerror
        raise UndecodableError(f"not a video: {reason}") from None
    if PICTURE.search(container.format.name):
        container.close()
        raise UndecodableError("not a video: a picture")
    return container


def _stream(container: av.container.InputContainer) -> av.VideoStream:
    """Return the main video stream; the cover picture of a song is none."""
    stream = container.streams.best("video") if len(container.streams) else None
    if not isinstance(stream, av.VideoStream) or stream.disposition & Disposition.attached_pic:
        raise UndecodableError("no video stream")
    if stream.codec_context is None:
        raise UndecodableError("no decoder for its video stream")
    stream.codec_context.thread_count = 1  # clips are decoded in parallel, each in one thread
    return stream


def _scan(request: Request) -> _Packets:
    """Go through a file without decoding it."""
    times: list[int] = []
    keys: list[bool] = []
    shown: list[bool] = []
    damaged: list[int] = []  # packets before which the demuxer had to search for its place
    end, end_of_all, cut = 0, 0.0, False
    with _open(request.path) as container, _errors() as errors:
        stream = _stream(container)
        for packet in container.demux():
            if errors:
                damaged.append(len(times))
                errors.clear()
            video = packet.stream is stream
            if packet.pts is None:
                if video and packet.size:
                    raise _FramesDifferError
                continue
            stop = packet.pts + (packet.duration or 0)
            end_of_all = max(end_of_all, float(stop * packet.time_base))
            if video:
                times.append(packet.pts)
                keys.append(packet.is_keyframe)
                shown.append(not packet.is_discard)
                end, cut = max(end, stop), packet.is_corrupt
        if len(set(times)) < len(times):
            raise _FramesDifferError
        tick = _tick(stream)
        length = float((end - min(times, default=0)) * tick)
        if stream.duration is not None:
            declared = float(stream.duration * tick)
        else:
            declared = (container.duration or 0) / av.time_base
            length = end_of_all - (container.start_time or 0) / av.time_base
    truncated = cut or declared - length > max(0.5, declared / 50)  # headers round, and some estimate
    end = max(end, max(times, default=0) + 1)
    moments = np.array(times, np.int64)
    holes = list(_holes(moments, damaged))
    return _Packets(moments, np.array(keys, bool), np.array(shown, bool), end, tick, truncated, holes)


@contextmanager
def _errors() -> Iterator[list[tuple[int, str, str]]]:
    """Collect what FFmpeg complains about: a demuxer that lost its place goes on behind the damage, and says so."""
    level, skips = av.logging.get_level(), av.logging.get_skip_repeated()
    av.logging.set_level(av.logging.ERROR)
    av.logging.set_skip_repeated(False)  # two files may be damaged alike
    try:
        with av.logging.Capture() as errors:
            yield errors
    finally:
        av.logging.set_level(level)
        av.logging.set_skip_repeated(skips)


def _holes(times: np.ndarray, damaged: list[int]) -> Iterator[tuple[int, int]]:
    """Find where frames are gone: the damage lies in a pause much longer than those between other frames."""
    usual = np.median(np.diff(np.sort(times))) if len(times) > 1 else 0
    for index in damaged:
        if 0 < index < len(times):
            before, after = int(times[:index].max()), int(times[index:].min())
            if after - before > 2 * usual:
                yield before, after


def _tick(stream: av.VideoStream) -> Fraction:
    """Seconds per unit of the stream's times."""
    return stream.time_base or Fraction(1, av.time_base)


def _positions(
    times: np.ndarray,
    end: int,
    tick: Fraction,
    request: Request,
    notes: set[str],
    truncated: bool = False,
    holes: Sequence[tuple[int, int]] = (),
) -> list[int]:
    """Choose the frames on show at the middles of N equal intervals of the clip, be the frame rate fixed or not.

    Parameters
    ----------
    times : ndarray of int64, shape (F,)
        When each frame begins, in ticks, in order.
    end : int
        When the last one ends.
    tick : Fraction
        Seconds per tick.
    request : Request
    notes : set of str
        Gets what is doubtful.
    truncated, holes
        What the file lacks of the video. Clips that do not reach it are whole.

    Returns
    -------
    list of int, length N
        Positions in `times`.
    """
    origin, slack = int(times[0]), int(SLACK / tick)
    first = origin + round((request.start or 0) / tick)
    stop = end if request.end is None else origin + round(request.end / tick)
    if truncated and (request.end is None or stop > end):
        raise UndecodableError(f"truncated: the file ends {float((end - origin) * tick):.2f} s into the video")
    for before, after in holes:
        if first < after and stop > before:
            gap = f"from {float((before - origin) * tick):.2f} to {float((after - origin) * tick):.2f} s"
            raise UndecodableError(f"damaged: the file lacks what is shown {gap}")
    if first >= end:
        length = float((end - origin) * tick)
        raise UndecodableError(f"the clip starts at {request.start:g} s, but the video is {length:.2f} s long")
    if stop > end and float((stop - end) * tick) > LATE:
        notes.add(ENDS_LATE)
    moments = sample_indices(first, max(min(stop, end), first + 1), request.num_frames)
    return (np.searchsorted(times, np.array(moments) + slack, side="right") - 1).tolist()


def _needed(packets: _Packets, wanted: np.ndarray) -> np.ndarray:
    """Mark the packets to decode: from each key frame to the last wanted one before the next key frame.

    Frames that are shown before the key frame they follow in the file refer to the group before it as well.
    """
    needed = np.zeros(len(packets.times), bool)
    starts = [0, *(int(start) for start in np.flatnonzero(packets.keys) if start)]
    for group, (start, stop) in enumerate(zip(starts, [*starts[1:], len(needed)], strict=True)):
        hits = start + np.flatnonzero(wanted[start:stop])
        if hits.size:
            leading = group > 0 and packets.times[hits].min() < packets.times[start]
            needed[starts[group - 1] if leading else start : hits[-1] + 1] = True
    return needed


def _decode_needed(
    container: av.container.InputContainer, stream: av.VideoStream, packets: _Packets, moments: set[int]
) -> Iterator[av.VideoFrame]:
    """Yield the frames of the given moments, each once, in no particular order."""
    wanted = np.isin(packets.times, list(moments)) & packets.shown
    needed = _needed(packets, wanted)
    context = stream.codec_context
    skips = context.name in SKIPPABLE
    missing = set(moments)
    video = (packet for packet in container.demux(stream) if packet.size)
    for number, packet in enumerate(video):
        if number == len(needed):
            raise _FramesDifferError
        frames: list[av.VideoFrame] = []
        if needed[number]:
            context.skip_frame = "NONREF" if skips and not wanted[number] else "DEFAULT"
            frames = context.decode(packet)
        elif number and needed[number - 1]:
            frames = context.decode(None)  # what the decoder still holds back
            context.flush_buffers()
        yield from _take(frames, missing)
        if not missing:
            return
    yield from _take(context.decode(None), missing)
    if missing:
        raise _FramesDifferError


def _take(frames: list[av.VideoFrame], missing: set[int]) -> Iterator[av.VideoFrame]:
    for frame in frames:
        if frame.pts in missing:
            if frame.is_corrupt:
                raise _FramesDifferError
            missing.remove(frame.pts)
            yield frame


def _read_everything(request: Request) -> Decoded:
    """Decode all frames twice, first for their times, then for their pictures: slow, but right without any times.

    That is what old containers need (AVI, bare streams), and codecs with packets that show nothing (VP8).
    """
    with _open(request.path) as container:
        stream = _stream(container)
        tick, rate = _tick(stream), stream.average_rate
        stamps = [(frame.pts, frame.duration or 0) for frame in container.decode(stream)]
    if not stamps:
        raise UndecodableError("the video stream holds no frame")
    times = np.array([-1 if pts is None else pts for pts, _ in stamps], np.int64)
    end = int(times[-1]) + max(1, stamps[-1][1])
    notes: set[str] = set()
    if any(pts is None for pts, _ in stamps) or (np.diff(times) <= 0).any():
        notes.add(TIMES_GUESSED)
        times, end, tick = np.arange(len(stamps)), len(stamps), 1 / Fraction(rate or 25)
    positions = _positions(times, end, tick, request, notes)
    found: dict[int, np.ndarray] = {}
    with _open(request.path) as container:
        stream = _stream(container)
        pictures = Pictures(stream, request.short_side, notes)
        for number, frame in enumerate(container.decode(stream)):
            if number in positions:
                found[number] = pictures.picture(frame)
            if number >= positions[-1]:
                break
    return Decoded([found[position] for position in positions], notes)


def _read_decord(request: Request) -> Decoded:
    import decord

    decord.logging.set_level(decord.logging.QUIET)
    reader = decord.VideoReader(str(request.path.absolute()), num_threads=1)
    seconds = reader.get_frame_timestamp(np.arange(len(reader)))  # [F,2]: beginning and end of each frame
    ticks = np.rint(seconds * 10_000).astype(np.int64)
    notes = {SECOND_DECODER}
    positions = _positions(ticks[:, 0], int(ticks[-1, 1]), Fraction(1, 10_000), request, notes)
    pictures = [Image.fromarray(frame) for frame in reader.get_batch(positions).asnumpy()]
    size = scaled(*pictures[0].size, request.short_side)
    return Decoded([np.asarray(picture.resize(size, Image.Resampling.BICUBIC)) for picture in pictures], notes)
