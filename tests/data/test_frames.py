"""Decoding and packing: the right frames of every kind of video, and one clear line for what is no video."""

from __future__ import annotations

import builtins
import errno
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages import frames as stage
from structalign.config.schema import FramesConfig
from structalign.data import decode as video
from structalign.data import frames, pictures
from structalign.data.clips import Clip, write_manifest
from structalign.data.decode import Decoded, Request, UndecodableError, decode, sample_indices
from structalign.data.frames import extract, in_reading_order
from structalign.data.store import FrameStore
from structalign.util.errors import UserError
from structalign.util.files import fresh_dir, read_json
from structalign.util.log import configure
from tests.helpers import params, worker_faults
from tests.helpers.video_files import (
    blank,
    counted,
    cut,
    moving,
    numbers,
    rotate,
    write_described,
    write_interlaced,
    write_video,
)

ROOT = Path(__file__).resolve().parents[2]


def read(path: Path, num_frames: int = 6, start: float | None = None, end: float | None = None) -> list[np.ndarray]:
    return decode(Request(path, start, end, num_frames, short_side=10_000)).frames


def plain(path: Path) -> list[np.ndarray]:
    """All frames of the main video stream, by plain sequential decoding."""
    with av.open(str(path)) as container:
        frames = container.decode(container.streams.best("video"))
        return [frame.to_ndarray(format="rgb24", interpolation="BICUBIC") for frame in frames]


def same(frames: list[np.ndarray], others: list[np.ndarray]) -> bool:
    return len(frames) == len(others) and all(map(np.array_equal, frames, others))


# Which frames


@given(st.integers(0, 10**6), st.integers(1, 10**5), st.integers(1, 64))
def test_samples_are_the_middles_of_equal_intervals(start: int, length: int, num_frames: int) -> None:
    picked = sample_indices(start, start + length, num_frames)
    assert len(picked) == num_frames
    assert picked == sorted(picked)
    for index, frame in enumerate(picked):
        middle = start + (index + 0.5) * length / num_frames
        assert start <= frame < start + length
        assert frame <= middle + 1e-6 < frame + 1 + 1e-3


def test_samples_of_short_clips_repeat_frames() -> None:
    assert sample_indices(7, 8, 4) == [7, 7, 7, 7]
    assert sample_indices(0, 3, 6) == [0, 0, 1, 1, 2, 2]
    assert sample_indices(0, 6, 6) == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize("arguments", [(3, 3, 1), (4, 3, 1), (0, 3, 0)])
def test_nothing_to_sample_from(arguments: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match="cannot pick"):
        sample_indices(*arguments)


KINDS = [
    ("plain.mp4", "libx264", {}),
    ("short-groups.mkv", "libx264", {"g": "5"}),
    ("open-groups.mp4", "libx264", {"g": "8", "x264-params": "open-gop=1:scenecut=0"}),
    ("no-b-frames.mp4", "libx264", {"bf": "0"}),
    ("stream.ts", "libx264", {"g": "10"}),
    ("hevc.mp4", "libx265", {"x265-params": "log-level=none:keyint=10"}),
    ("bare.h264", "libx264", {}),
    ("old.avi", "mpeg4", {"b": "2M"}),
    ("older.mpg", "mpeg2video", {"b": "2M"}),
    ("vp8.webm", "libvpx", {"b": "2M"}),
    ("vp9.webm", "libvpx-vp9", {"b": "2M"}),
    ("av1.mp4", "libsvtav1", {"preset": "12"}),
]
INDEXED = KINDS[:6]  # packets tell the times of frames


@pytest.mark.parametrize(("name", "codec", "options"), KINDS, ids=[kind[0] for kind in KINDS])
def test_frames_equal_those_of_sequential_decoding(
    tmp_path: Path, name: str, codec: str, options: dict[str, str]
) -> None:
    path = write_video(tmp_path / name, moving(50), codec, rate=25, options=options)
    everything = plain(path)
    assert len(everything) == 50
    assert same(read(path, 7), [everything[index] for index in sample_indices(0, 50, 7)])


@pytest.mark.parametrize(("name", "codec", "options"), INDEXED[:5], ids=[kind[0] for kind in INDEXED[:5]])
def test_parts_of_a_video(tmp_path: Path, name: str, codec: str, options: dict[str, str]) -> None:
    path = write_video(tmp_path / name, moving(50), codec, rate=25, options=options)
    everything = plain(path)
    for first, last in ((0, 10), (13, 37), (37, 50), (21, 22)):
        expected = [everything[index] for index in sample_indices(first, last, 4)]
        assert same(read(path, 4, first / 25, last / 25), expected)


def test_every_frame_of_every_place_can_be_alone(tmp_path: Path) -> None:
    """Reading little must not depend on where the little lies between key frames."""
    path = write_video(tmp_path / "a.mp4", moving(30), rate=25, options=KINDS[2][2])
    for number, expected in enumerate(plain(path)):
        assert np.array_equal(read(path, 1, number / 25, (number + 1) / 25)[0], expected)


@pytest.mark.parametrize(("name", "codec", "options"), INDEXED, ids=[kind[0] for kind in INDEXED])
def test_only_what_is_needed_is_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, codec: str, options: dict[str, str]
) -> None:
    path = write_video(tmp_path / name, moving(50), codec, rate=25, options=options)
    monkeypatch.setattr(video, "_read_everything", lambda _: pytest.fail("decoded everything"))
    needed, masks = video._needed, []

    def noted(*arguments: Any) -> np.ndarray:
        masks.append(needed(*arguments))
        return masks[-1]

    monkeypatch.setattr(video, "_needed", noted)
    for first in range(0, 50, 3):
        read(path, 1, first / 25, (first + 1) / 25)
    assert len(masks[0]) == 50
    assert not masks[0].all()


def test_variable_rate_samples_what_is_on_show(tmp_path: Path) -> None:
    begins = [0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 1, 2, 3]
    path = write_video(tmp_path / "a.mp4", counted(10), times=begins)
    # middles: 0.25, 0.75, 1.25, 1.75, 2.25, 2.75 s
    assert numbers(read(path, 6, 0, 3)) == [2, 6, 7, 7, 8, 8]
    assert numbers(read(path, 2, 1.2, 1.4)) == [7, 7]
    assert numbers(read(path, 3, 0.1, 0.4)) == [1, 2, 3]


def test_times_count_from_the_first_frame(tmp_path: Path) -> None:
    path = write_video(tmp_path / "late.mkv", counted(20), times=[5 + number / 10 for number in range(20)])
    assert numbers(read(path, 4, 1.0, 1.4)) == [10, 11, 12, 13]


def test_one_frame_and_fewer_than_asked(tmp_path: Path) -> None:
    assert numbers(read(write_video(tmp_path / "one.mp4", counted(1)), 3)) == [0, 0, 0]
    assert numbers(read(write_video(tmp_path / "two.mp4", counted(2)), 5)) == [0, 0, 1, 1, 1]


def test_an_end_beyond_the_video_is_its_end(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", counted(24))
    assert numbers(read(path, 3, 0.5, 90)) == sample_indices(12, 24, 3)


def test_sound_longer_than_the_picture_changes_nothing(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mkv", counted(24), sound=5)
    assert numbers(read(path, 3)) == sample_indices(0, 24, 3)


# What they look like


def test_rotated_videos_come_upright(tmp_path: Path) -> None:
    frames = counted(6)
    for frame in frames:
        frame[:24, :32] = 250  # the corner at the top left
    upright = read(rotate(write_video(tmp_path / "a.mp4", frames)), 2)[1]
    assert upright.shape == (64, 48, 3)
    assert upright[:32, 24:].mean() > 200  # a quarter turn clockwise brings it to the top right
    assert upright[:32, :24].mean() < 100
    assert upright[32:].mean() < 100


def test_odd_sizes(tmp_path: Path) -> None:
    frames = read(write_video(tmp_path / "a.mp4", counted(12, 27, 35), pixels="yuv444p"), 4)
    assert {frame.shape for frame in frames} == {(27, 35, 3)}
    assert numbers(frames) == sample_indices(0, 12, 4)


def test_ten_bits(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", moving(12), pixels="yuv420p10le", options={"crf": "4"})
    everything = plain(path)
    frames = read(path, 4)
    assert same(frames, [everything[index] for index in sample_indices(0, 12, 4)])
    assert abs(frames[0].mean() - moving(12)[1].mean()) < 5


def test_frames_are_scaled_down_and_never_up(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", counted(6, 90, 160))
    assert decode(Request(path, None, None, 1, 45)).frames[0].shape == (45, 80, 3)
    assert decode(Request(path, None, None, 1, 128)).frames[0].shape == (90, 160, 3)
    tall = write_video(tmp_path / "b.mp4", counted(6, 160, 90))
    assert decode(Request(tall, None, None, 1, 45)).frames[0].shape == (80, 45, 3)


def notes(path: Path) -> set[str]:
    return decode(Request(path, None, None, 4, 10_000)).notes


def disc(width: int, height: int, shape: float) -> np.ndarray:
    """A white disc as it is stored in pixels that are `shape` times as wide as high."""
    across = (np.arange(width) - width / 2) * shape
    down = np.arange(height) - height / 2
    inside = across[None, :] ** 2 + down[:, None] ** 2 < (height / 3) ** 2
    return np.where(inside[..., None], 255, 0).astype(np.uint8).repeat(3, axis=-1)


@pytest.mark.parametrize("shape", [Fraction(4, 3), Fraction(3, 4), Fraction(2)])
@pytest.mark.parametrize("turned", [False, True])
def test_pixels_that_are_not_square(tmp_path: Path, shape: Fraction, turned: bool) -> None:
    path = write_described(tmp_path / "a.mp4", [disc(120, 96, float(shape))] * 4, "yuv420p", shape)
    frame = read(rotate(path) if turned else path)[0]
    bright = frame.mean(axis=-1) > 128
    width, height = (int(bright.any(axis=axis).sum()) for axis in (0, 1))
    assert abs(width - height) <= 2
    assert max(frame.shape[:2]) >= 120, "no line of pixels is thrown away"
    assert notes(path) == {pictures.PIXEL_SHAPE}


def test_pixels_of_an_impossible_shape_are_taken_for_square(tmp_path: Path) -> None:
    path = write_described(tmp_path / "a.mp4", [disc(120, 96, 1)] * 4, "yuv420p", Fraction(30))
    assert read(path)[0].shape == (96, 120, 3)
    assert notes(path) == {pictures.ODD_PIXEL_SHAPE}


def combing(frames: list[np.ndarray]) -> float:
    """How much each line differs from the mean of its neighbours."""
    lines = np.stack(frames).mean(axis=-1)
    return float(np.abs(lines[:, 1:-1] - (lines[:, :-2] + lines[:, 2:]) / 2).mean())


def test_interlaced_frames_are_not_combed(tmp_path: Path) -> None:
    bars = []
    for number in range(24):
        bars.append(np.full((96, 128, 3), 40, np.uint8))
        bars[-1][:, 4 + 4 * number : 20 + 4 * number] = 220
    path = write_interlaced(tmp_path / "a.mp4", bars)
    assert combing(plain(path)) > 5
    frames = read(path, 4)
    assert combing(frames) < 0.5
    for frame, expected in zip(frames, sample_indices(0, 12, 4), strict=True):
        moments = bars[2 * expected : 2 * expected + 2]
        assert min(abs(frame.astype(int) - moment).mean() for moment in moments) < 4, "one of the two moments"
    assert notes(path) == {pictures.INTERLACED}


PATCHES = np.array([(200, 40, 40), (40, 180, 60), (50, 60, 200), (210, 200, 40), (200, 170, 140), (128, 128, 128)])


def light(patches: np.ndarray) -> np.ndarray:
    """Linear light of sRGB colours, 1 for white."""
    coded = patches / 255
    return np.where(coded <= 0.04045, coded / 12.92, ((coded + 0.055) / 1.055) ** 2.4)


def pq(light: np.ndarray) -> np.ndarray:
    """SMPTE ST 2084 for a white of 203 cd/m^2."""
    power = np.power(light * 203 / 10_000, 2610 / 16384)
    return np.power((3424 / 4096 + 2413 / 128 * power) / (1 + 2392 / 128 * power), 2523 / 32)


def hlg(light: np.ndarray) -> np.ndarray:
    """ARIB STD-B67 for a white of 203 cd/m^2 on a display of 1,000 cd/m^2."""
    shown = light * 203 / 1000
    luminance = shown @ [0.2627, 0.6780, 0.0593]
    scene = shown * (luminance ** ((1 - 1.2) / 1.2))[..., None]
    bright = 0.17883277 * np.log(np.maximum(12 * scene - 0.28466892, 1e-9)) + 0.55991073
    return np.where(scene <= 1 / 12, np.sqrt(3 * scene), bright)


CURVES = [
    (pictures.PQ, pq, pictures.HDR),
    (pictures.HLG, hlg, pictures.HDR),
    (1, lambda light: light ** (1 / 2.4), pictures.WIDE_GAMUT),
]


@pytest.mark.parametrize(("transfer", "curve", "note"), CURVES)
def test_hdr_and_wide_gamut_come_as_bt709(
    tmp_path: Path, transfer: int, curve: Callable[[np.ndarray], np.ndarray], note: str
) -> None:
    to_bt2020 = np.linalg.inv(pictures.TO_BT709)
    signal = np.clip(curve(light(PATCHES) @ to_bt2020.T), 0, 1)  # [6,3]
    frame = np.rint(signal * 65535).astype(np.uint16).reshape(2, 3, 3).repeat(32, 0).repeat(32, 1)
    colours = {"color_primaries": 9, "color_trc": transfer, "colorspace": 0}
    path = write_described(tmp_path / "a.mp4", [frame] * 4, "gbrp10le", **colours)
    shown = read(path)[0].reshape(2, 32, 3, 32, 3).mean(axis=(1, 3)).reshape(6, 3)
    assert np.abs(shown - PATCHES).mean() < 2
    assert notes(path) == {note}


def test_highlights_keep_their_structure() -> None:
    steps = np.array([0.5, 1, 2, 4]) * 203
    signal = pq(steps / 203)[:, None].repeat(3, axis=1)
    shown = pictures.to_bt709(signal, pictures.PQ, pictures.BT709)[:, 0]
    assert (np.diff(shown.astype(int)) > 0).all()
    assert shown[1] > 230


def test_ordinary_videos_are_left_as_they_are(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", moving(12))
    assert notes(path) == set()
    assert decode(Request(path, 0, 0.6, 2, 64)).notes == set(), "containers round"
    assert decode(Request(path, 0, 5, 2, 64)).notes == {video.ENDS_LATE}
    bare = write_video(tmp_path / "a.h264", moving(12))
    assert notes(bare) == {video.TIMES_GUESSED}


# What is refused


def refusal(path: Path, start: float | None = None, end: float | None = None) -> str:
    with pytest.raises(UndecodableError) as error:
        read(path, 6, start, end)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.webm"])
def test_truncated_videos(tmp_path: Path, name: str) -> None:
    codec = "libvpx-vp9" if name == "a.webm" else "libx264"
    options = {"movflags": "faststart"} if name == "a.mp4" else {}
    path = tmp_path / name
    with av.open(str(path), "w", options=options) as container:
        stream = container.add_stream(codec, rate=10, options={"g": "10"})
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for picture in moving(60):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, "rgb24")))
        container.mux(stream.encode())
    whole = read(path, 4, 0, 2)
    cut(path, 0.6)
    assert "truncated" in refusal(path)
    assert "truncated" in refusal(path, 3, 6)
    assert same(read(path, 4, 0, 2), whole)  # what lies before the cut is intact


@pytest.mark.parametrize(("name", "codec"), [("a.webm", "libvpx-vp9"), ("a.mkv", "libx264"), ("a.mp4", "libx264")])
def test_a_hole_in_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, codec: str) -> None:
    path = write_video(tmp_path / name, moving(100, 120, 160), codec, rate=10, options={"g": "10"})
    whole = read(path, 4, 0, 3)
    blank(path, 0.5, 0.7)
    monkeypatch.setitem(sys.modules, "decord", None)
    refusal(path)
    refusal(path, 3, 8)
    assert same(read(path, 4, 0, 3), whole), "what lies before the hole is intact"


def test_a_pause_is_no_hole(tmp_path: Path) -> None:
    times = [*np.arange(10) / 10, *(10 + np.arange(10) / 10)]
    for name in ("a.mkv", "a.mp4"):
        path = write_video(tmp_path / name, counted(20), times=times)
        assert numbers(read(path, 4, 0.5, 10.5)) == [9, 9, 9, 9]


def test_a_segment_without_length(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", counted(24))
    assert "from 0.5 to 0.5 s has no length" in refusal(path, 0.5, 0.5)


def test_a_playlist_cannot_make_the_machine_fetch(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"http://127.0.0.1:{server.getsockname()[1]}/a.ts"
        playlist = f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{url}\n#EXT-X-ENDLIST\n"
        (tmp_path / "list.m3u8").write_text(playlist)
        refusal(tmp_path / "list.m3u8")
        server.setblocking(False)
        with pytest.raises(BlockingIOError):
            server.accept()


def test_the_second_decoder_gives_the_same_frames(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("decord")
    path = write_video(tmp_path / "a.mp4", moving(50), rate=25)
    expected = read(path, 7, 0.4, 1.6)

    def fail(request: Request) -> Decoded:
        raise av.InvalidDataError(1, "broken")

    monkeypatch.setattr(video, "_read_av", fail)
    assert same(read(path, 7, 0.4, 1.6), expected)
    assert notes(path) == {video.SECOND_DECODER}


@pytest.mark.parametrize("left", [False, True])
def test_a_decoder_short_of_memory_does_not_blame_the_clip(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, left: bool
) -> None:
    path = write_video(tmp_path / "a.mp4", counted(4))

    def fail(request: Request) -> Decoded:
        av.error.err_check(-errno.ENOMEM)
        pytest.fail("PyAV knows no such error")

    monkeypatch.setattr(video, "_read_av", fail)
    monkeypatch.setattr(video, "_memory_left", lambda: left)
    monkeypatch.setitem(sys.modules, "decord", None)
    if left:
        assert "memory" in refusal(path)
    else:
        with pytest.raises(MemoryError):
            read(path)


@pytest.mark.parametrize("left", [[False], [True, False], [True, True]])
def test_a_lack_of_memory_by_another_name_does_not_blame_the_clip_either(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, left: list[bool]
) -> None:
    """PyAV calls it damaged data, and the second decoder's library cannot be loaded."""
    path = write_video(tmp_path / "a.mp4", counted(4))
    imported, answers = builtins.__import__, iter(left)

    def fail(request: Request) -> Decoded:
        av.error.err_check(-errno.EINVAL)
        pytest.fail("PyAV knows no such error")

    def no_library(name: str, *rest: Any) -> Any:
        if name == "decord":
            raise OSError("libdecord.so: failed to map segment from shared object")
        return imported(name, *rest)

    monkeypatch.setattr(video, "_read_av", fail)
    monkeypatch.setattr(video, "_memory_left", lambda: next(answers))
    monkeypatch.setattr(builtins, "__import__", no_library)
    if all(left):
        assert "PyAV: Invalid argument" in refusal(path)
    else:
        with pytest.raises(MemoryError):
            read(path)


def test_without_the_second_decoder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_video(tmp_path / "a.mp4", moving(50), options={"movflags": "faststart"})
    content = bytearray(path.read_bytes())
    media = content.index(b"mdat") + 200
    content[media : media + 2000] = os.urandom(2000)
    path.write_bytes(content)
    monkeypatch.setitem(sys.modules, "decord", None)
    reason = refusal(path)
    assert "PyAV" in reason
    assert "decord" not in reason


# Real files


def test_real_videos(shared: Path) -> None:
    for name, count in (("nasa_13013.mp4", 390), ("flipping_a_pancake.mkv", 310)):
        everything = plain(shared / "videos" / name)
        assert len(everything) == count
        expected = [everything[index] for index in sample_indices(0, count, 12)]
        assert same(read(shared / "videos" / name, 12), expected)


def test_cases_that_users_reported(shared: Path) -> None:
    cases = shared / "cases"
    bright = read(cases / "sar43.mp4")[0][..., 0] > 128
    width, height = (int(bright.any(axis=axis).sum()) for axis in (0, 1))
    assert abs(width - height) <= 2
    assert combing(read(cases / "inter.mp4")) < 0.1 * combing(plain(cases / "inter.mp4"))
    shown = read(cases / "hdr_pq.mp4")[0].reshape(2, 64, 3, 64, 3)[:, 8:56, :, 8:56].mean(axis=(1, 3)).reshape(6, 3)
    assert np.abs(shown - PATCHES).mean() < 2
    assert "damaged: the file lacks what is shown from 7.96 to 12.00 s" in refusal(cases / "hole.webm")


def test_real_odd_videos(shared: Path) -> None:
    videos = shared / "videos"
    assert read(videos / "video_0.mov")[0].shape == (320, 568, 3)
    assert read(videos / "video_90.mov")[0].shape == (568, 320, 3)
    unordered = plain(videos / "unordered.mov")
    assert same(read(videos / "unordered.mov", 4), unordered)
    assert "Invalid data" in refusal(videos / "corrupted.mp4")


# Packing


def settings(**changes: int) -> FramesConfig:
    values = {"num_frames": 4, "short_side": 32, "quality": 95, "shard_mb": 1, "allow_missing": 0}
    return FramesConfig(**(values | changes))


def clip(name: str, file: str, start: float | None = None, end: float | None = None) -> Clip:
    return Clip(name, file, start, end, "cat", "train", ("a caption",))


@pytest.fixture
def videos(tmp_path: Path) -> Path:
    for number in range(6):
        write_video(tmp_path / f"raw/{number}.mp4", counted(12 + number))
    return tmp_path / "raw"


@pytest.fixture
def clips(videos: Path) -> list[Clip]:
    whole = [clip(f"clip{number}", f"{number}.mp4") for number in range(6)]
    return in_reading_order([*whole, clip("part", "3.mp4", 0.25, 0.5)])


def pack(
    clips: list[Clip], videos: Path, folder: Path, workers: int = 1, keep: Path | None = None, **changes: int
) -> FrameStore:
    with fresh_dir(folder) as fresh:
        extract(clips, videos, fresh, settings(**changes), workers, keep)
    return FrameStore(folder)


def test_store_gives_back_the_frames(clips: list[Clip], videos: Path, tmp_path: Path) -> None:
    store = pack(clips, videos, tmp_path / "frames")
    assert sorted(store.ids) == sorted(item.id for item in clips)
    assert store.missing == []
    for number in range(6):
        frames = store.read(f"clip{number}")
        assert (frames.shape, frames.dtype) == ((4, 32, 43, 3), np.uint8)
        assert numbers(frames) == sample_indices(0, 12 + number, 4)
    assert numbers(store.read("part")) == sample_indices(6, 12, 4)


def test_the_number_of_processes_changes_no_byte(clips: list[Clip], videos: Path, tmp_path: Path) -> None:
    clips = [*clips, clip("lost", "no.mp4")]
    contents = []
    for workers in (1, 2, 3):
        folder = tmp_path / str(workers)
        pack(clips, videos, folder, workers, allow_missing=1)
        contents.append({path.name: path.read_bytes() for path in folder.iterdir()})
    assert contents[0] == contents[1] == contents[2]
    assert set(contents[0]) == {"shard-0000.zip", "index.json", "missing.json"}
    with zipfile.ZipFile(tmp_path / "1/shard-0000.zip") as archive:
        assert {entry.date_time for entry in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}  # not the time of day


def test_shards_have_a_size(videos: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    noise = [rng.integers(0, 256, (240, 320, 3), np.uint8) for _ in range(4)]
    write_video(videos / "noise.mp4", noise, options={"qp": "1"})
    clips = [clip(f"c{number}", "noise.mp4") for number in range(9)]
    store = pack(clips, videos, tmp_path / "frames", short_side=240, quality=100)
    shards = sorted((tmp_path / "frames").glob("*.zip"))
    assert [path.name for path in shards] == [f"shard-{number:04d}.zip" for number in range(len(shards))]
    assert len(shards) > 1
    assert all(path.stat().st_size < 2 * 2**20 for path in shards)
    assert np.array_equal(store.read("c0"), store.read("c8"))


def test_all_undecodable_clips_are_listed_at_once(clips: list[Clip], videos: Path, tmp_path: Path) -> None:
    (videos / "empty.mp4").touch()
    bad = [clip("bad1", "empty.mp4"), clip("bad2", "none.mp4"), clip("bad3", "0.mp4", 100)]
    with pytest.raises(UserError) as error:
        pack([*clips, *bad], videos, tmp_path / "frames", workers=2)
    line = str(error.value)
    assert "3 of 10 clips" in line
    assert "frames.allow_missing=3" in line
    for name, reason in (("bad1", "the file is empty"), ("bad2", "no such file"), ("bad3", "starts at 100 s")):
        assert name in line
        assert reason in line
    assert "\n" not in line
    assert not list(tmp_path.glob("*frames*"))


def test_allowed_missing_clips_are_left_out_and_noted(clips: list[Clip], videos: Path, tmp_path: Path) -> None:
    store = pack([*clips, clip("bad", "none.mp4")], videos, tmp_path / "frames", allow_missing=1)
    noted = json.loads((tmp_path / "frames/missing.json").read_text())
    assert noted == [{"clip": "bad", "video": "none.mp4", "reason": "no such file"}]
    assert store.missing == ["bad"]
    assert "bad" not in store.ids
    with pytest.raises(UserError, match=r"bad \(it could not be decoded\)"):
        store.read("bad")


def test_what_was_changed_is_counted(
    clips: list[Clip], videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    configure()
    for name in ("wide", "wider"):
        write_described(videos / f"{name}.mp4", counted(6), "yuv420p", Fraction(4, 3))
    odd = [clip(name, f"{name}.mp4") for name in ("wide", "wider")]
    store = pack([*clips, *odd], videos, tmp_path / "frames", workers=2)
    assert store.notes == {pictures.PIXEL_SHAPE: ["wide", "wider"]}
    lines = capsys.readouterr().err.splitlines()
    assert [line for line in lines if f"2 {pictures.PIXEL_SHAPE} (such as wide)" in line]


def test_a_store_of_nothing_is_refused(videos: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="1 of 1 clips cannot be decoded: bad"):
        pack([clip("bad", "none.mp4")], videos, tmp_path / "frames", allow_missing=5)


def test_a_long_list_is_shortened(videos: Path, tmp_path: Path) -> None:
    bad = [clip(f"bad{number:02d}", "none.mp4") for number in range(25)]
    with pytest.raises(UserError, match="and 15 more, all in the log") as error:
        pack(bad, videos, tmp_path / "frames")
    assert "bad09" in str(error.value)
    assert "bad10" not in str(error.value)


def test_a_full_disk(clips: list[Clip], videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(zipfile.ZipFile, "writestr", full)
    with pytest.raises(UserError, match="disk full while packing frames"):
        pack(clips, videos, tmp_path / "frames")
    assert not list(tmp_path.glob("*frames*"))


def decoders() -> list[psutil.Process]:
    """The decoding processes: children of this process's fork server."""
    servers = psutil.Process().children()
    return [process for server in servers for process in server.children()]


def test_a_killed_decoder_is_reported(videos: Path, tmp_path: Path) -> None:
    write_video(videos / "long.mp4", moving(300, 120, 160))
    clips = [clip(f"c{number}", "long.mp4") for number in range(200)]

    def kill() -> None:
        deadline = time.monotonic() + 60
        while not (found := decoders()) and time.monotonic() < deadline:
            time.sleep(0.01)
        found[0].kill()

    killer = threading.Thread(target=kill)
    killer.start()
    with pytest.raises(UserError, match=r"process died \(killed by SIGKILL, .*\) while it read long\.mp4"):
        pack(clips, videos, tmp_path / "frames", workers=2)
    killer.join()
    assert not list(tmp_path.glob("*frames*"))


@pytest.mark.slow
def test_a_video_that_crashes_a_decoder_is_named_like_any_other_bad_one(
    videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(frames, "_decode_one", worker_faults.crash_on_a_bad_video)
    monkeypatch.setattr(frames, "TIMEOUT", 12.0)
    clips = [clip(name, f"{name}.mp4") for name in ("crashes", "hangs", *(f"{number}" for number in range(6)))]
    store = pack(clips, videos, tmp_path / "frames", workers=2, allow_missing=2)
    assert store.missing == ["crashes", "hangs"]
    assert len(store.ids) == 6
    reasons = [item["reason"] for item in read_json(tmp_path / "frames/missing.json")]
    assert reasons == ["decoding it crashed (killed by SIGSEGV)", "decoding it took too long"]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "codec"), [("a.mp4", "libx264"), ("a.mkv", "mpeg4"), ("a.avi", "mpeg4")])
def test_damage_of_any_kind_is_one_line_about_the_clip(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, codec: str
) -> None:
    """Decoders fail in ways of their own; none of them may end the stage."""
    monkeypatch.setattr(frames, "TIMEOUT", 60.0)
    whole = write_video(tmp_path / name, moving(30), codec).read_bytes()
    draw = np.random.default_rng(0)
    jobs = []
    for number in range(60):
        content = bytearray(whole)
        for place in draw.integers(len(content) if number % 2 else 1000, size=1 + number % 7):  # headers are dense
            content[place] = draw.integers(256)
        path = tmp_path / f"{number}-{name}"
        path.write_bytes(content)
        jobs.append(frames.Job(tmp_path, Request(Path(path.name), None, None, 4, 48), 95, None))
    results = list(frames._decode_in_processes(jobs, 2))
    assert len(results) == len(jobs)
    assert all("\n" not in result if isinstance(result, str) else len(result[0]) == 4 for result in results)
    assert any(isinstance(result, str) for result in results)


@pytest.mark.slow
def test_decoders_end_with_a_killed_stage(videos: Path, tmp_path: Path) -> None:
    write_video(videos / "long.mp4", moving(300, 120, 160))
    script = tmp_path / "script.py"
    script.write_text(
        "import sys\n"
        "from pathlib import Path\n"
        "from structalign.config.schema import FramesConfig\n"
        "from structalign.data.frames import extract\n"
        "from structalign.data.clips import Clip\n"
        "if __name__ == '__main__':\n"
        "    clips = [Clip(f'c{n}', 'long.mp4', None, None, 'cat', 'train', ('a',)) for n in range(2000)]\n"
        "    frames = FramesConfig(num_frames=4, short_side=32, quality=95, shard_mb=1, allow_missing=0)\n"
        "    extract(clips, Path(sys.argv[1]), Path(sys.argv[2]), frames, 2)\n"
    )
    (tmp_path / "out").mkdir()
    command = [sys.executable, str(script), str(videos), str(tmp_path / "out")]
    process = subprocess.Popen(command, env=os.environ | {"PYTHONPATH": str(ROOT)}, stderr=subprocess.DEVNULL)
    family: list[psutil.Process] = []
    deadline = time.monotonic() + 60
    while len(family) < 4 and time.monotonic() < deadline:  # fork server, resource tracker, two decoders
        family = psutil.Process(process.pid).children(recursive=True)
        time.sleep(0.02)
    assert len(family) >= 4
    process.send_signal(signal.SIGKILL)
    process.wait()
    _, alive = psutil.wait_procs(family, timeout=20)
    for orphan in alive:
        orphan.kill()
    assert not alive


# What an unfinished run leaves


def damage(file: Path) -> None:
    """Overwrite a video in a way that nothing but its bytes tells."""
    status = file.stat()
    file.write_bytes(bytes(status.st_size))
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))


def zipped(videos: Path) -> Path:
    archive = videos.parent / "videos.zip"
    with zipfile.ZipFile(archive, "w") as made:
        for file in sorted(videos.glob("*.mp4")):
            made.write(file, file.name)
    return archive


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def stopped(clips: list[Clip], videos: Path, keep: Path) -> None:
    """Decode, and stop over a clip that cannot be decoded."""
    with pytest.raises(UserError, match="the other clips are kept"):
        pack([*clips, clip("bad", "none.mp4")], videos, keep.parent / "stopped", keep=keep)


def test_a_run_goes_on_where_another_stopped(clips: list[Clip], videos: Path, tmp_path: Path) -> None:
    pack(clips, videos, tmp_path / "whole")
    stopped(clips, videos, tmp_path / "keep")
    for file in videos.glob("*.mp4"):
        damage(file)  # so that nothing can be decoded
    pack(clips, videos, tmp_path / "resumed", keep=tmp_path / "keep")
    assert contents(tmp_path / "resumed") == contents(tmp_path / "whole")


def test_what_was_found_about_clips_is_kept_with_them(videos: Path, tmp_path: Path) -> None:
    write_described(videos / "wide.mp4", counted(6), "yuv420p", Fraction(4, 3))
    clips = [clip("wide", "wide.mp4")]
    stopped(clips, videos, tmp_path / "keep")
    damage(videos / "wide.mp4")
    store = pack(clips, videos, tmp_path / "frames", keep=tmp_path / "keep")
    assert store.notes == {pictures.PIXEL_SHAPE: ["wide"]}


def test_a_changed_video_is_decoded_again(clips: list[Clip], videos: Path, tmp_path: Path) -> None:
    stopped(clips, videos, tmp_path / "keep")
    write_video(videos / "0.mp4", counted(30))
    store = pack(clips, videos, tmp_path / "frames", keep=tmp_path / "keep")
    assert numbers(store.read("clip0")) == sample_indices(0, 30, 4)
    assert numbers(store.read("clip1")) == sample_indices(0, 13, 4)


@pytest.mark.slow
def test_kept_clips_of_other_parameters_are_not_taken(clips: list[Clip], videos: Path, tmp_path: Path) -> None:
    stopped(clips, videos, tmp_path / "keep")
    for changes in ({"num_frames": 3}, {"short_side": 16}, {"quality": 30}):
        folder = tmp_path / next(iter(changes))
        pack(clips, videos, folder, keep=tmp_path / "keep", **changes)
        pack(clips, videos, tmp_path / "plain", **changes)
        assert contents(folder) == contents(tmp_path / "plain")


@pytest.mark.slow
def test_an_archive_changes_video_by_video(clips: list[Clip], videos: Path, tmp_path: Path) -> None:
    stopped(clips, zipped(videos), tmp_path / "keep")
    kept = set((tmp_path / "keep").iterdir())
    write_video(videos / "0.mp4", counted(30))
    store = pack(clips, zipped(videos), tmp_path / "frames", keep=tmp_path / "keep")
    assert numbers(store.read("clip0")) == sample_indices(0, 30, 4)
    assert len(set((tmp_path / "keep").iterdir()) - kept) == 1


@pytest.mark.slow
def test_a_clip_whose_copy_was_cut_off_is_decoded_again(clips: list[Clip], videos: Path, tmp_path: Path) -> None:
    pack(clips, videos, tmp_path / "whole")
    stopped(clips, videos, tmp_path / "keep")
    for number, file in enumerate(sorted((tmp_path / "keep").iterdir())):
        file.write_bytes(file.read_bytes()[: -1 - 200 * number])
    pack(clips, videos, tmp_path / "resumed", keep=tmp_path / "keep")
    assert contents(tmp_path / "resumed") == contents(tmp_path / "whole")


def test_no_room_to_keep_clips(clips: list[Clip], videos: Path, tmp_path: Path) -> None:
    keep = tmp_path / "keep"
    keep.touch()  # no folder can be made here
    assert len(pack(clips, videos, tmp_path / "frames", keep=keep).ids) == len(clips)


# Damaged stores


def test_unknown_clip(clips: list[Clip], videos: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no frames of clip other"):
        pack(clips, videos, tmp_path / "frames").read("other")


def test_threads_may_share_a_store(clips: list[Clip], videos: Path, tmp_path: Path) -> None:
    store = pack(clips, videos, tmp_path / "frames")
    expected = {name: store.read(name) for name in store.ids}
    fresh = FrameStore(tmp_path / "frames")
    names = store.ids * 20
    with ThreadPoolExecutor(8) as pool:
        for name, frames in zip(names, pool.map(fresh.read, names), strict=True):
            assert np.array_equal(frames, expected[name])


# The stage


@pytest.fixture
def raw(videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the stage looks for videos."""
    folder = tmp_path / "data/raw" / params.config().data.name
    folder.parent.mkdir(parents=True)
    videos.rename(folder)
    monkeypatch.chdir(tmp_path)
    return folder


def test_stage(clips: list[Clip], raw: Path) -> None:
    config = params.config()
    write_manifest(clips, raw / "manifest.jsonl")
    stage.main(config)
    store = FrameStore(Path("data/frames"))
    assert sorted(store.ids) == sorted(item.id for item in clips)
    assert store.read("part").shape[0] == config.frames.num_frames


@pytest.mark.slow
def test_the_stage_forgets_kept_clips_when_it_succeeds(clips: list[Clip], raw: Path) -> None:
    write_manifest([*clips, clip("bad", "none.mp4")], raw / "manifest.jsonl")
    with pytest.raises(UserError, match="are kept"):
        stage.main(params.config())
    assert len(list(Path(".cache/frames").rglob("*.zip"))) == len(clips)
    for file in raw.glob("*.mp4"):
        damage(file)
    stage.main(params.config("frames.allow_missing=1"))
    assert FrameStore(Path("data/frames")).missing == ["bad"]
    assert not Path(".cache/frames").exists()
