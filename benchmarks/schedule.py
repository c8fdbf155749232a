"""The whole MSRVTT-10 schedule on random frames and random weights: 10 tasks of 400 steps, and 10 evaluations.

    python -m benchmarks.schedule                ViT-B/32, batch 32, 12 frames: 4,000 steps

and a smoke run on a CPU:

    python -m benchmarks.schedule --clip tiny --tasks 2 --epochs 1 --captions 2 --test 6 \\
        train.batch_size=8 frames.num_frames=4

Everything that the stages do between reading stored frames and writing files: augmentation, training with every term
of the loss, class statistics, encoding of 2,990 test videos, and ranking for all queries seen so far.
"""

from __future__ import annotations

import argparse
import math
import os
import tempfile
import time
import zlib
from pathlib import Path

import numpy as np
import torch

from benchmarks.measure import machine
from benchmarks.step import architecture
from structalign import paths
from structalign.config.compose import compose
from structalign.config.schema import Config
from structalign.data.tasks import Sample
from structalign.evaluation.evaluate import recall_at_1
from structalign.model.clip import save_clip
from structalign.retrieval.gallery import TaskGallery
from structalign.training.learner import Learner
from structalign.training.loader import TrainingSet
from structalign.training.trainer import Trainer
from structalign.util.checkpoint import Checkpoint
from structalign.util.log import configure

CATEGORIES, SHOTS = 2, 16
"""Per task, and training videos per category."""
WORDS = [
    "man",
    "woman",
    "dog",
    "car",
    "kitchen",
    "game",
    "song",
    "red",
    "small",
    "fast",
    "talking",
    "playing",
    "running",
    "cooking",
    "on",
    "in",
    "with",
    "a",
    "the",
]


class RandomFrames:
    """Stands in for stored frames: noise that follows from the clip's id."""

    def __init__(self, frames: int, size: int) -> None:
        self.shape = (frames, size, size * 4 // 3, 3)

    def decoded_bytes(self, clips: list[str]) -> int:
        """Memory of the frames of clips."""
        return len(clips) * math.prod(self.shape)

    def read(self, clip: str) -> np.ndarray:
        """Frames (N, H, W, 3) of a clip."""
        return np.random.default_rng(zlib.crc32(clip.encode())).integers(0, 256, self.shape, dtype=np.uint8)


def samples(task: int, kind: str, videos: int, captions: int) -> list[Sample]:
    """Videos of a task, dealt to its categories in turn, with captions of ten random words."""
    draw = np.random.default_rng(zlib.crc32(f"{kind}-{task}".encode()))
    return [
        Sample(
            clip=f"{kind}-{task}-{number}",
            category=(task - 1) * CATEGORIES + number % CATEGORIES,
            captions=tuple(" ".join(draw.choice(WORDS, 10)) for _ in range(captions)),
        )
        for number in range(videos)
    ]


def random_clip(name: str) -> None:
    """Write a CLIP of random weights where learners look for theirs."""
    from open_clip.model import CLIP as OpenClip

    info = architecture(name)
    torch.manual_seed(0)
    paths.CLIP.mkdir(parents=True)
    save_clip(OpenClip(**info.model), info, paths.CLIP)


def run(config: Config, args: argparse.Namespace) -> None:
    """All tasks, one after the other; print what each took."""
    random_clip(args.clip)
    checkpoint, steps = Checkpoint(), 0
    galleries: list[TaskGallery] = []
    start = time.perf_counter()
    for task in range(1, config.K + 1):
        learner = Learner(config, CATEGORIES * config.K, checkpoint)
        store = RandomFrames(config.frames.num_frames, learner.retriever.image_size * 8 // 7)
        learner.start(task)
        learner.method.start_galleries(galleries)
        train = samples(task, "train", CATEGORIES * SHOTS, args.captions)
        data = TrainingSet(train, store, learner.retriever, config.machine.num_workers)  # type: ignore[arg-type]
        cost = Trainer(learner.method, data, config, task).run(Path(f"loss-{task}.csv"))
        learner.finish(task, data)
        checkpoint = learner.checkpoint(task, [])
        middle = time.perf_counter()
        test = samples(task, "test", args.test, 1)
        features = learner.encode_clips(store, [sample.clip for sample in test])  # type: ignore[arg-type]
        galleries.append(TaskGallery.from_samples(task, test, features))
        r1 = recall_at_1(learner.retriever, galleries, config.similarity)
        steps, speed = steps + cost.steps, cost.steps * config.train.batch_size / cost.seconds
        print(f"task {task}: {cost.steps} steps in {cost.seconds:.1f} s ({speed:.0f} videos/s), ", end="")
        print(f"evaluation {time.perf_counter() - middle:.1f} s, R@1 of noise {r1:.2f}", flush=True)
    total = time.perf_counter() - start
    print(machine())
    if torch.cuda.is_available():
        print(f"most GPU memory that tensors held: {torch.cuda.max_memory_allocated() / 2**30:.2f} GiB")
    print(f"{args.clip}, {steps} steps and {config.K} evaluations in {total:.1f} s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clip", default="ViT-B-32-quickgelu")
    parser.add_argument("--tasks", type=int, default=10)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--captions", type=int, default=20, help="per training video")
    parser.add_argument("--test", type=int, default=299, help="test videos per task")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="further parameters")
    args = parser.parse_args()
    configure("WARNING")
    os.environ.setdefault("STRUCTALIGN_PROGRESS", "0")
    layers = ["model.adapter_layers=2"] if args.clip == "tiny" else []
    with tempfile.TemporaryDirectory() as folder:
        given = ["data=msrvtt", f"K={args.tasks}", f"train.epochs={args.epochs}", *layers, *args.overrides]
        compose(given, Path(folder) / "params.yaml")
        os.chdir(folder)
        run(Config.load(), args)
        os.chdir("/")


if __name__ == "__main__":
    main()
