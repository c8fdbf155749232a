"""How fast clips become stored frames, against the usual ways: `python -m benchmarks.frames`.

The videos are like MSR-VTT's: 20 s, 320 x 240, H.264, made here. Every reader takes the same 12 frames. The reader
to beat seeks to each frame with OpenCV and writes it as PNG (needs `pip install opencv-python-headless`; without it,
its line is left out). Speed is videos per second of processor time, all threads together, on one core.
"""

from __future__ import annotations

import argparse
import importlib.util
import io
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import av
import numpy as np
from PIL import Image

from structalign.data.decode import Request, decode, sample_indices

FRAMES, SIDE, SECONDS, RATE, HEIGHT, WIDTH = 12, 256, 20, 30, 240, 320


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--videos", type=int, default=8, help="different videos (default: %(default)s)")
    parser.add_argument("--quality", type=int, default=95, help="JPEG quality (default: %(default)s)")
    args = parser.parse_args()
    cores = os.sched_getaffinity(0)
    print(f"{platform.processor() or platform.machine()}, {len(cores)} cores, {args.videos} videos")
    with tempfile.TemporaryDirectory() as folder:
        paths = [make_video(Path(folder) / f"{number}.mp4", number) for number in range(args.videos)]
        one_core(paths, args.quality, min(cores))
        os.sched_setaffinity(0, cores)
        several_cores(paths * 4, args.quality, len(cores))


def one_core(paths: list[Path], quality: int, core: int) -> None:
    readers: dict[str, Callable[[Path], list[bytes]]] = {
        "structalign: needed packets, JPEG": lambda path: store(path, quality),
        "PyAV, every frame, JPEG": lambda path: jpegs(pyav_sequential(path), quality),
    }
    if importlib.util.find_spec("decord"):
        readers["decord, resize afterwards, JPEG"] = lambda path: jpegs(decord_batch(path, False), quality)
        readers["decord, resize on decoding, JPEG"] = lambda path: jpegs(decord_batch(path, True), quality)
    if importlib.util.find_spec("cv2"):
        readers["OpenCV, seek per frame, PNG"] = opencv_seek
    os.sched_setaffinity(0, {core})
    rates, sizes = {}, {}
    for name, reader in readers.items():
        reader(paths[0])
        rates[name] = 1 / statistics.median(seconds(reader, path) for path in paths for _ in range(3))
        sizes[name] = statistics.mean(sum(map(len, reader(path))) for path in paths)
    base = list(readers)[-1]
    print(
        f"\n{'reader, one core':36}{'videos/s':>10}{'KB/video':>10}{'speed':>8}{'bytes':>8}   (against the last line)"
    )
    for name in readers:
        speed, share = rates[name] / rates[base], sizes[name] / sizes[base]
        print(f"{name:36}{rates[name]:10.1f}{sizes[name] / 1e3:10.0f}{speed:7.2f}x{share:8.2f}")


def several_cores(paths: list[Path], quality: int, workers: int) -> None:
    print(f"\n{f'structalign, {workers} workers':36}{'videos/s':>10}")
    pools: dict[str, Executor] = {
        "threads": ThreadPoolExecutor(workers),
        "processes": ProcessPoolExecutor(workers, mp_context=get_context("forkserver")),
    }
    for name, pool in pools.items():
        with pool:
            list(pool.map(store, paths[: 2 * workers], [quality] * 2 * workers))
            begin = time.perf_counter()
            list(pool.map(store, paths, [quality] * len(paths)))
            print(f"{name:36}{len(paths) / (time.perf_counter() - begin):10.1f}")


def seconds(reader: Callable[[Path], list[bytes]], path: Path) -> float:
    """Processor time, of all threads."""
    begin = time.process_time()
    reader(path)
    return time.process_time() - begin


def store(path: Path, quality: int) -> list[bytes]:
    """What the stage does with a clip."""
    return jpegs(decode(Request(path, None, None, FRAMES, SIDE)).frames, quality)


def pyav_sequential(path: Path) -> list[np.ndarray]:
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_count = 1
        wanted = set(sample_indices(0, stream.frames, FRAMES))
        frames = enumerate(container.decode(stream))
        return [frame.to_ndarray(format="rgb24") for number, frame in frames if number in wanted]


def decord_batch(path: Path, resize: bool) -> list[np.ndarray]:
    import decord

    # These videos are smaller than what is stored; to see what resizing costs, decord makes them a little smaller.
    size = {"width": WIDTH * 9 // 10, "height": HEIGHT * 9 // 10} if resize else {}
    reader = decord.VideoReader(str(path), num_threads=1, **size)
    return list(reader.get_batch(sample_indices(0, len(reader), FRAMES)).asnumpy())


def opencv_seek(path: Path) -> list[bytes]:
    import cv2

    cv2.setNumThreads(1)
    reader = cv2.VideoCapture(str(path))
    images = []
    for index in sample_indices(0, int(reader.get(cv2.CAP_PROP_FRAME_COUNT)), FRAMES):
        reader.set(cv2.CAP_PROP_POS_FRAMES, index)
        images.append(cv2.imencode(".png", reader.read()[1])[1].tobytes())
    return images


def jpegs(frames: list[np.ndarray], quality: int) -> list[bytes]:
    images = []
    for frame in frames:
        buffer = io.BytesIO()
        Image.fromarray(frame).save(buffer, "JPEG", quality=quality)
        images.append(buffer.getvalue())
    return images


def make_video(path: Path, seed: int) -> Path:
    """A camera that pans over a textured scene in which three things move, with a camera's noise."""
    rng = np.random.default_rng(seed)
    scene = np.zeros((2 * HEIGHT, 2 * WIDTH, 3))
    for cells, strength in ((6, 120), (24, 60), (96, 40), (240, 20)):  # texture at all scales, as in nature
        noise = Image.fromarray(rng.integers(0, 256, (cells, cells, 3), np.uint8))
        scene += strength / 256 * np.asarray(noise.resize((2 * WIDTH, 2 * HEIGHT), Image.Resampling.BICUBIC))
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    phases, colors = rng.uniform(0, 6, (3, 2)), rng.integers(0, 256, (3, 3))
    grain = rng.normal(0, 3, (8, HEIGHT, WIDTH, 1))
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=RATE)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        for number in range(SECONDS * RATE):
            top = int(HEIGHT / 2 * (1 + np.sin(number / 97 + phases[0, 0])))
            left = int(WIDTH / 2 * (1 + np.cos(number / 131 + phases[0, 1])))
            frame = scene[top : top + HEIGHT, left : left + WIDTH].copy()
            for (across, down), color in zip(phases, colors, strict=True):
                center_x = WIDTH / 2 * (1 + np.sin(number / 31 + across))
                center_y = HEIGHT / 2 * (1 + np.cos(number / 23 + down))
                frame[(x - center_x) ** 2 + (y - center_y) ** 2 < 900] = color
            frame += grain[number % 8]
            picture = av.VideoFrame.from_ndarray(frame.clip(0, 255).astype(np.uint8), "rgb24")
            container.mux(stream.encode(picture))
        container.mux(stream.encode())
    return path


if __name__ == "__main__":
    main()
