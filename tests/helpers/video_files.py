"""Small videos of every odd kind, encoded on the spot."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

STEP, BASE = 4, 12


def require_encoder(name: str) -> None:
    """Skip a test if the installed PyAV cannot encode what it needs."""
    try:
        av.codec.Codec(name, "w")
    except av.codec.codec.UnknownCodecError:
        pytest.skip(f"PyAV has no encoder {name} here")


def counted(count: int, height: int = 48, width: int = 64) -> list[np.ndarray]:
    """Plain frames whose brightness tells their number; at most 60."""
    return [np.full((height, width, 3), BASE + STEP * number, np.uint8) for number in range(count)]


def numbers(frames: Iterable[np.ndarray]) -> list[int]:
    """The numbers of decoded `counted` frames."""
    return [round((float(frame.mean()) - BASE) / STEP) for frame in frames]


def moving(count: int, height: int = 48, width: int = 64) -> list[np.ndarray]:
    """Textured frames that pan over a picture, so that frames really refer to each other."""
    picture = np.random.default_rng(0).integers(0, 256, (height // 4, width // 4 + count, 3), np.uint8)
    picture = picture.repeat(4, 0).repeat(4, 1)
    return [picture[:, 2 * number : 2 * number + width] for number in range(count)]


def write_video(
    path: Path,
    frames: Sequence[np.ndarray],
    codec: str = "libx264",
    rate: int = 24,
    pixels: str = "yuv420p",
    times: Sequence[float] | None = None,
    options: dict[str, str] | None = None,
    sound: float = 0.0,
    title: str = "",
) -> Path:
    """Encode RGB frames; `times` (seconds) makes the frame rate variable, `sound` adds so many seconds of silence."""
    require_encoder(codec)
    path.parent.mkdir(parents=True, exist_ok=True)
    height, width = frames[0].shape[:2]
    with av.open(str(path), "w") as container:
        if title:
            container.metadata["title"] = title
        stream = container.add_stream(codec, rate=rate, options=options or {})
        stream.width, stream.height, stream.pix_fmt = width, height, pixels
        if times is not None:
            stream.codec_context.time_base = Fraction(1, 1000)
        audio = container.add_stream("aac", rate=16000) if sound else None
        for number, picture in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(picture, "rgb24")
            if times is not None:
                frame.pts, frame.time_base = round(times[number] * 1000), Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
        if audio is not None:
            _silence(container, audio, sound)
    return path


def write_described(
    path: Path, frames: Sequence[np.ndarray], pixels: str, shape: Fraction | None = None, **colours: int
) -> Path:
    """Encode with libx265 frames of `pixels` whose stream says how they are to be shown."""
    require_encoder("libx265")
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx265", rate=10, options={"x265-params": "log-level=none:lossless=1"})
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = pixels
        if shape:
            stream.codec_context.sample_aspect_ratio = shape
        for name, value in colours.items():
            setattr(stream.codec_context, name, value)
        for picture in frames:
            frame = av.VideoFrame.from_ndarray(picture, "rgb48le" if picture.dtype == np.uint16 else "rgb24")
            container.mux(stream.encode(frame.reformat(format=pixels)))
        container.mux(stream.encode())
    return path


def write_interlaced(path: Path, frames: Sequence[np.ndarray], rate: int = 25) -> Path:
    """Weave pairs of pictures into frames: even lines from the first, odd lines from the second."""
    woven = [first.copy() for first in frames[::2]]
    for frame, second in zip(woven, frames[1::2], strict=True):
        frame[1::2] = second[1::2]
    return write_video(path, woven, rate=rate, options={"flags": "+ildct+ilme", "x264-params": "tff=1:qp=4"})


def blank(path: Path, start: float, stop: float) -> Path:
    """Overwrite a share of a file with zeros."""
    content = bytearray(path.read_bytes())
    first, last = int(len(content) * start), int(len(content) * stop)
    content[first:last] = bytes(last - first)
    path.write_bytes(content)
    return path


def write_sound(path: Path, seconds: float = 1.0) -> Path:
    """A file with sound only."""
    with av.open(str(path), "w") as container:
        _silence(container, container.add_stream("aac", rate=16000), seconds)
    return path


def patch(path: Path, old: bytes, new: bytes) -> Path:
    """Put other bytes, as many, in place of those that a file holds once."""
    content = path.read_bytes()
    if content.count(old) != 1 or len(new) != len(old):
        raise ValueError(f"{path}: {old!r} is there {content.count(old)} times")
    path.write_bytes(content.replace(old, new))
    return path


def write_empty_mp4(path: Path) -> Path:
    """An MP4 whose index is in order and names no stream."""

    def box(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", 8 + len(content)) + kind + content

    header = box(b"mvhd", bytes(12) + struct.pack(">II", 1000, 1000) + bytes(80))
    path.write_bytes(box(b"ftyp", b"isom\0\0\2\0isom") + box(b"moov", header) + box(b"mdat", bytes(100)))
    return path


def _silence(container: av.container.OutputContainer, stream: av.AudioStream, seconds: float) -> None:
    for start in range(0, int(seconds * 16000), 1024):
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
        frame.sample_rate, frame.pts = 16000, start
        container.mux(stream.encode(frame))
    container.mux(stream.encode())


def rotate(path: Path) -> Path:
    """Tell players of an MP4 to turn it by 90 degrees clockwise, as a telephone held upright does."""
    content = bytearray(path.read_bytes())
    matrix = content.rindex(b"tkhd") + 44
    one, last = 1 << 16, 1 << 30
    content[matrix : matrix + 36] = struct.pack(">9i", 0, one, 0, -one, 0, 0, 0, 0, last)
    path.write_bytes(content)
    return path


def cut(path: Path, share: float) -> Path:
    """Cut off the end of a file."""
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    return path
