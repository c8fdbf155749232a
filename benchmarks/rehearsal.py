"""A dress rehearsal of the real benchmarks at full size, against a server on this machine.

    python -m benchmarks.rehearsal msrvtt --folder .cache/rehearsal --output docs/rehearsal.md

The server has the trees of the real hosts: the published splits and captions (from `--reference`), and a few dozen
generated videos under all the published names. A clone of this checkout asks it in place of the real hosts, and then
runs what README.md tells a user to run.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import pickle
import subprocess
import sys
import threading
import time
import zipfile
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from itertools import cycle
from pathlib import Path

import av
import numpy as np
import open_clip
import psutil
import torch

from benchmarks.measure import machine

ROOT = Path(__file__).resolve().parents[1]
REPOSITORY = "raw.githubusercontent.com/JasonCodeMaker/CTVR/72b7652cb9ddbc81545861463f0deadad491b1d9"
ARCHIVE = "www.robots.ox.ac.uk/~maxbain/frozen-in-time/data/MSRVTT.zip"
PUBLISHED = {
    "data/MSRVTT_10_dataset.pkl": "MSRVTT_10_dataset.pkl",
    "data/MSRVTT_20_dataset.pkl": "MSRVTT_20_dataset.pkl",
    "datasets/MSRVTT/MSRVTT_CL_validation.csv": "MSRVTT_CL_validation.csv",
    "data/ACTNET_10_dataset.pkl": "ACTNET_10_dataset.pkl",
    "data/ACTNET_20_dataset.pkl": "ACTNET_20_dataset.pkl",
    "datasets/ACTNET/train_queries.json": "ACTNET_train_queries.json",
    "datasets/ACTNET/val_queries.json": "ACTNET_val_queries.json",
}
"""Paths in the benchmark's repository, and the names of the same files in the reference folder."""

VIDEOS = 10_000
RATE = 25
KINDS = {".mp4": "libx264", ".mkv": "libx264", ".webm": "libvpx-vp9"}


# What the hosts have


def write_clip(path: Path, seconds: float, seed: int, codec: str = "libx264", rate: int = RATE) -> None:
    """Encode a coloured texture that drifts behind a moving square, 320 x 240."""
    draw = np.random.default_rng(seed)
    size = (60 + 2, 80 + int(2 * seconds) + 2, 3)
    texture = draw.integers(0, 256, size).astype(np.uint8).repeat(4, 0).repeat(4, 1)
    colour, options = draw.integers(0, 256, 3), {"b": "150k"}
    options |= {"preset": "veryfast"} if codec == "libx264" else {"deadline": "realtime", "cpu-used": "8"}
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate, options=options)
        assert isinstance(stream, av.VideoStream)
        stream.width, stream.height, stream.pix_fmt = 320, 240, "yuv420p"
        for number in range(int(seconds * rate)):
            left = int(8 * number / rate)
            picture = texture[:240, left : left + 320].copy()
            top = int(100 + 90 * np.sin(number / rate + seed))
            picture[top : top + 50, (5 * number) % 270 :][:, :50] = colour
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, "rgb24")))
        container.mux(stream.encode())


def write_repository(web: Path, reference: Path) -> None:
    """Lay out the benchmark's repository, with an annotation file of MSR-VTT's form that has sentences for all."""
    for path, name in PUBLISHED.items():
        target = web / REPOSITORY / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes((reference / name).read_bytes())
    split = pickle.loads((reference / "MSRVTT_10_dataset.pkl").read_bytes())
    category = {
        video: int(number)
        for side in split.values()
        for task in side.values()
        for number, videos in task.items()
        for video in videos
    }
    lines = (reference / "MSRVTT_CL_validation.csv").read_text().splitlines()[1:]
    captions = cycle(line.split(",", 3)[3].strip('"') for line in lines)
    names = [f"video{number}" for number in range(VIDEOS)]
    sentences = [{"video_id": name, "caption": next(captions), "sen_id": 0} for name in names for _ in range(20)]
    videos = [
        {
            "video_id": name,
            "category": category.get(name, number % 20),
            "split": "test" if number >= 7010 else "validate" if number >= 6513 else "train",
        }
        for number, name in enumerate(names)
    ]
    content = json.dumps({"info": {}, "videos": videos, "sentences": sentences})
    (web / REPOSITORY / "datasets/MSRVTT/MSRVTT_data.json").write_text(content)


def write_archive(web: Path, clips: list[Path]) -> None:
    """Pack the clips under all names of MSR-VTT's archive, with its annotation file, which has no categories."""
    path = web / ARCHIVE
    path.parent.mkdir(parents=True)
    full = json.loads((web / REPOSITORY / "datasets/MSRVTT/MSRVTT_data.json").read_text())["sentences"]
    rows = [{"image_id": row["video_id"], "caption": row["caption"]} for row in full]
    contents = cycle(clip.read_bytes() for clip in clips)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("MSRVTT/annotation/MSR_VTT.json", json.dumps({"annotations": rows}))
        for number in range(VIDEOS):
            archive.writestr(f"MSRVTT/videos/all/video{number}.mp4", next(contents))
        for number in range(7010, VIDEOS):
            link = zipfile.ZipInfo(f"MSRVTT/high-quality/structured-symlinks/test/video{number}.mp4")
            link.external_attr = 0o120777 << 16
            archive.writestr(link, f"../../../videos/all/video{number}.mp4")


def write_activitynet(folder: Path, reference: Path) -> None:
    """Link clips that are long enough under the ids of both sides, half of them without the leading `v_`."""
    clips: dict[str, list[tuple[float, Path]]] = defaultdict(list)
    (folder / "clips").mkdir(parents=True)
    for seed, (seconds, suffix) in enumerate((s, k) for s in (30, 60, 120, 240, 480, 760) for k in KINDS):
        path = folder / f"clips/{seconds}{suffix}"
        write_clip(path, seconds, seed, KINDS[suffix], rate=5)
        clips[suffix].append((seconds, path))
    for side in ("train", "val"):
        (folder / "videos" / side).mkdir(parents=True)
        annotations = json.loads((reference / f"ACTNET_{side}_queries.json").read_text())
        for number, (video, annotation) in enumerate(annotations.items()):
            suffix = tuple(KINDS)[number % 7 % 3]
            clip = next(path for seconds, path in clips[suffix] if seconds > annotation["duration"])
            name = video if number % 2 else video.removeprefix("v_")
            os.link(clip, folder / f"videos/{side}/{name}{suffix}")


def write_weights(path: Path) -> None:
    """Store a ViT-B/32 of random weights, which takes as long as OpenAI's."""
    torch.manual_seed(0)
    torch.save(open_clip.create_model("ViT-B-32-quickgelu").state_dict(), path)


@contextmanager
def served(web: Path) -> Iterator[str]:
    """Serve a folder on this machine; yields the URL."""

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(web)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()


# What a user does


@dataclass
class Stage:
    """Seconds from the first to the last sight of a stage's process, and its most memory with its children's."""

    first: float
    last: float
    peak: int = 0


@dataclass
class Watched:
    """A command that ended, and the stages that were seen while it ran."""

    command: list[str]
    seconds: float
    status: int
    tail: str
    stages: dict[str, Stage] = field(default_factory=dict)


class User:
    """A clone of this checkout whose sources are the server's, and the commands that are run in it."""

    def __init__(self, folder: Path, url: str) -> None:
        self.folder = folder
        subprocess.run(["git", "clone", "--quiet", str(ROOT), str(folder)], check=True)
        for path in (folder / "conf/data").glob("*.yaml"):
            path.write_text(path.read_text().replace("https://", f"{url}/"))
        (folder / ".dvc/config.local").write_text(f"[core]\n    site_cache_dir = {folder.with_suffix('.notes')}\n")
        for command in (
            ("config", "user.email", "a@b.c"),
            ("config", "user.name", "rehearsal"),
            ("commit", "-qam", "sources on this machine"),
        ):
            subprocess.run(["git", *command], cwd=folder, check=True)

    def run(self, *command: str, until: str = "") -> Watched:
        """Run a command and watch its stages; stop it once the stage `until` has started."""
        print(f"{time.strftime('%H:%M:%S')} {' '.join(command)}", file=sys.stderr, flush=True)
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        environment = {**os.environ, "PATH": path, "DVC_NO_ANALYTICS": "1", "PYTHONPATH": str(self.folder)}
        stages: dict[str, Stage] = {}
        start = time.monotonic()
        with (self.folder.with_suffix(".log")).open("ab+") as log:
            begin = log.tell()
            process = subprocess.Popen(command, cwd=self.folder, env=environment, stdout=log, stderr=log)
            while process.poll() is None:
                watch(process.pid, stages)
                if until in stages and until:
                    for one in [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]:
                        one.terminate()
                    process.wait()
                    break
                time.sleep(0.25)
            seconds = time.monotonic() - start
            log.seek(begin)
            tail = log.read().decode(errors="replace").strip().split("\n")[-1]
        return Watched([*command], seconds, process.returncode, tail, stages)


def watch(pid: int, stages: dict[str, Stage]) -> None:
    """Note which stages run below a process, and their memory."""
    try:
        below = psutil.Process(pid).children(recursive=True)
        for process in below:
            words = process.cmdline()
            if "-m" not in words or not (name := words[words.index("-m") + 1]).startswith("stages."):
                continue
            name = name.removeprefix("stages.") + (f"@{int(words[-1]):02d}" if "--task" in words else "")
            now = time.monotonic()
            stage = stages.setdefault(name, Stage(now, now))
            stage.last = now
            family = [process, *process.children(recursive=True)]
            stage.peak = max(stage.peak, sum(one.memory_info().rss for one in family))
    except psutil.NoSuchProcess:
        pass


def size(path: Path) -> str:
    """Room that a file or folder takes on the disk, in words."""
    done = subprocess.run(["du", "-sb", str(path)], capture_output=True, text=True, check=False)
    return f"{int(done.stdout.split()[0]) / 1e6:,.0f} MB" if done.returncode == 0 else "nothing"


# What is written down


def rehearse(user: User, experiment: list[str]) -> Iterator[str]:
    """Run a user's commands one after another, and yield the lines of a section."""
    first = user.run("dvc", "exp", "run", *experiment)
    yield f"`{' '.join(first.command)}`: {outcome(first)}"
    yield from ("", "| stage | seconds | peak memory, MB |", "|---|---|---|")
    yield from stage_rows(first)
    if first.status:
        return
    numbers = json.loads((user.folder / "metrics/summary.json").read_text())
    yield from ("", f"R@1 {numbers['r1']:.2f}, BWF {numbers['bwf']:.2f}", "", "| on the disk | |", "|---|---|")
    for name in (
        "data/downloads",
        "data/raw",
        "data/frames",
        "data/gallery",
        "models",
        "metrics",
        "plots",
        ".dvc/cache",
    ):
        yield f"| `{name}` | {size(user.folder / name)} |"
    yield from ("", "| afterwards | seconds | |", "|---|---|---|")
    remote = str(user.folder.with_suffix(".remote"))
    steps: list[Callable[[], Watched]] = [
        partial(user.run, "dvc", "repro"),
        partial(user.run, "dvc", "status"),
        partial(user.run, "dvc", "remote", "add", "--default", "folder", remote),
        partial(user.run, "dvc", "push"),
        partial(user.run, "dvc", "pull"),
    ]
    for step in steps:
        done = step()
        yield f"| `{' '.join(done.command).replace(remote, 'FOLDER')}` | {done.seconds:.1f} | {outcome(done)} |"
    second = user.run("dvc", "exp", "run", *experiment, "-S", "train.lr_first=1e-5", until="train@01")
    found = "" if "train@01" in second.stages else second.tail
    yield f"| a second experiment, until its training starts | {second.seconds:.1f} | {found} |"


def outcome(done: Watched) -> str:
    """Say how a command ended."""
    return f"{done.seconds:.0f} s" if done.status == 0 else f"ended with {done.status}: {done.tail}"


def stage_rows(done: Watched) -> Iterator[str]:
    """A row for each stage; those that run once per task are summed."""
    groups: dict[str, list[Stage]] = defaultdict(list)
    for name, stage in done.stages.items():
        groups[name.partition("@")[0]].append(stage)
    for name, stages in groups.items():
        seconds = sum(stage.last - stage.first for stage in stages)
        times = f" ({len(stages)} times)" if len(stages) > 1 else ""
        yield f"| {name}{times} | {seconds:.1f} | {max(stage.peak for stage in stages) / 1e6:,.0f} |"


def main() -> None:
    """Parse the command line, set the stage and rehearse."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("data", choices=["msrvtt", "actnet"])
    parser.add_argument("--tasks", type=int, default=10, choices=[10, 20])
    parser.add_argument("--reference", type=Path, default=ROOT.parent / "shared", help="default: %(default)s")
    parser.add_argument("--folder", type=Path, required=True, help="where everything goes; 15 GB")
    parser.add_argument("--clips", type=int, default=24, help="different videos of MSR-VTT (default: %(default)s)")
    parser.add_argument("--random-clip", action="store_true", help="a ViT-B/32 of random weights, from a file")
    parser.add_argument("--output", type=Path, help="Markdown file to which the section is added")
    parser.add_argument("-S", dest="overrides", action="append", default=[], help="as for `dvc exp run -S`")
    args = parser.parse_args()
    reference, web = args.reference / "ctvr", args.folder / "web"
    args.folder.mkdir(parents=True, exist_ok=True)
    experiment = ["-S", f"data={args.data}", "-S", f"K={args.tasks}"]
    if not web.exists():
        write_repository(web, reference)
    if args.data == "msrvtt" and not (web / ARCHIVE).exists():
        clips = [args.folder / f"clip{number}.mp4" for number in range(args.clips)]
        for number, clip in enumerate(clips):
            write_clip(clip, 10 + 20 * number / len(clips), number)
        write_archive(web, clips)
    if args.data == "actnet":
        if not (args.folder / "activitynet").exists():
            write_activitynet(args.folder / "activitynet", reference)
        experiment += ["-S", f"data.videos={args.folder / 'activitynet/videos'}"]
    if args.random_clip:
        weights = args.folder / "random.pt"
        write_weights(weights)
        experiment += ["-S", f"backbone.weights={weights}"]
    for override in args.overrides:
        experiment += ["-S", override]
    lines = io.StringIO()
    with served(web) as url:
        user = User(args.folder / f"{args.data}-{args.tasks}", url)
        title = f"{args.data}, K = {args.tasks}" + (f", {', '.join(args.overrides)}" if args.overrides else "")
        commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True)
        print(f"## {title}\n\nCommit {commit.stdout.strip()}; {machine()}.\n", file=lines)
        for line in rehearse(user, experiment):
            print(line.replace(str(args.folder), "FOLDER"), file=lines)
            print(line, flush=True)
    if args.output:
        with args.output.open("a", encoding="utf-8") as stream:
            stream.write("\n" + lines.getvalue())


if __name__ == "__main__":
    main()
