"""Files that are no video, or none that can be used: one line about the file. And odd ones that can be."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from structalign.data.decode import Request, UndecodableError, decode, sample_indices
from tests.helpers.video_files import counted, cut, numbers, patch, write_empty_mp4, write_sound, write_video


def read(path: Path, start: float | None = None, end: float | None = None) -> list[np.ndarray]:
    return decode(Request(path, start, end, 4, short_side=10_000)).frames


def picture(path: Path, kind: str) -> None:
    Image.new("RGB", (64, 48), "red").save(path, kind)


def unknown_codec(path: Path) -> None:
    patch(write_video(path, counted(6), "mpeg4"), b"V_MPEG4/ISO/ASP", b"V_MYSTERY/OF/AL")


def two_sizes(path: Path) -> None:
    parts = [write_video(path.with_name(f"{size}.h264"), counted(12, size, 64)) for size in (48, 96)]
    path.write_bytes(b"".join(part.read_bytes() for part in parts))


PLAYLIST = "#EXTM3U\n#EXTINF:1,\n/etc/passwd\n#EXT-X-ENDLIST\n"


@pytest.mark.parametrize(
    ("name", "write", "said"),
    [
        ("a.mp4", Path.touch, "not a video: the file is empty"),
        ("a.mp4", lambda path: path.write_text("not a video\n" * 100), "not a video: Inv"),
        ("a.m3u8", lambda path: path.write_text(PLAYLIST), "not a video"),
        ("a.mp4", lambda path: picture(path, "JPEG"), "not a video: a picture"),
        ("a.mp4", lambda path: picture(path, "PNG"), "not a video: a picture"),
        ("a.mp4", lambda path: cut(write_video(path, counted(24)), 0.5), "not a video"),
        ("a.m4a", write_sound, "no video stream"),
        ("a.mp4", write_empty_mp4, "no video stream"),
        ("a.mkv", unknown_codec, "no decoder for its video stream"),
        ("a.h264", two_sizes, "size of the frames changes"),
    ],
    ids=[
        *("empty", "text", "playlist of the machine's files", "JPEG", "PNG", "cut before its index", "sound only"),
        *("no stream", "unknown codec", "two sizes"),
    ],
)
def test_files_that_are_not_videos_are_refused(
    tmp_path: Path, name: str, write: Callable[[Path], object], said: str
) -> None:
    write(tmp_path / name)
    with pytest.raises(UndecodableError, match=said) as caught:
        read(tmp_path / name)
    assert "\n" not in str(caught.value)


def test_a_clip_after_the_end_of_its_video(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", counted(24))
    with pytest.raises(UndecodableError, match=r"the clip starts at 1\.5 s, but the video is 1\.00 s long"):
        read(path, 1.5, 2)


def test_a_title_that_is_not_utf_8_is_no_obstacle(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mkv", counted(24), title="caf#")
    patch(path, b"caf#", "café".encode("latin-1"))
    assert numbers(read(path)) == sample_indices(0, 24, 4)
