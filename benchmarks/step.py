"""What each regulariser adds to a training step: median step time against SCL alone, on the same batch.

    python -m benchmarks.step                    the built-in model and batch
    python -m benchmarks.step --clip ViT-B-32    random weights of that size, 12 frames

Variants take turns within each round, so that a slower or faster moment of the machine meets all of them.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable

import torch

from structalign.config import Config
from structalign.method.base import Batch, TrainingFeatures
from structalign.method.structalign import StructAlign
from structalign.model.backbone import ClipInfo
from structalign.model.pretrain import ARCHITECTURE
from structalign.model.retriever import Retriever
from structalign.seeding import generator
from structalign.train import autocast, pick_device

OFF = {"crp_weight": 0.0, "etf_weight": 0.0, "pseudo_weight": 0.0}
VARIANTS = {
    "SCL alone": {},
    "+ CRP": {"crp_weight": 10.0},
    "+ ETF": {"etf_weight": 0.1},
    "+ pseudo features": {"pseudo_weight": 0.5},
    "+ ETF + pseudo features": {"etf_weight": 0.1, "pseudo_weight": 0.5},
    "all": {"crp_weight": 10.0, "etf_weight": 0.1, "pseudo_weight": 0.5},
}
CATEGORIES = 20


def architecture(name: str) -> ClipInfo:
    """The built-in tiny model, or one of open_clip's."""
    if name == "tiny":
        model = json.loads(ARCHITECTURE.read_text(encoding="utf-8"))
    else:
        import open_clip

        model = open_clip.get_model_config(name)
    return ClipInfo(name, model, [0.5] * 3, [0.5] * 3)


def build(config: Config, info: ClipInfo, batch_size: int, frames: int, task: int) -> Callable[[], None]:
    """Make a function that does one training step of a task, always on the same batch."""
    from open_clip.model import CLIP

    device = pick_device(config.machine.device)
    torch.manual_seed(0)
    retriever = Retriever(CLIP(**info.model), info, config.model, config.K, seed=0).to(device)
    method = StructAlign(config, retriever, CATEGORIES)
    teacher = None
    if method.teacher_kind(task):
        teacher = Retriever(CLIP(**info.model), info, config.model, config.K, seed=0).to(device)
        teacher.requires_grad_(False).eval()
    retriever.finish_task(1)
    retriever.prepare_task(task)
    method.start_task(task, teacher)
    method.start_epoch(generator(0))
    width, old = retriever.embed_dim, torch.arange(8).repeat_interleave(4)
    features = torch.nn.functional.normalize(torch.randn(len(old), width), dim=-1)
    method.finish_task(TrainingFeatures(features, old, features, old))
    batch = Batch(
        pixels=torch.randint(0, 256, (batch_size, frames, 3, info.image_size, info.image_size), dtype=torch.uint8),
        tokens=retriever.tokenize(["a red circle with a blue core falling over dark bars"] * batch_size),
        category=torch.arange(batch_size) % CATEGORIES,
        video=torch.arange(batch_size),
    )
    batch = Batch(*(tensor.to(device) for tensor in vars(batch).values()))
    optimizer = torch.optim.AdamW(method.parameter_groups())
    retriever.train()

    def step() -> None:
        with autocast(config.train.precision, device):
            total = method.loss(batch)["total"]
        optimizer.zero_grad(set_to_none=True)
        total.backward()
        optimizer.step()
        if device.type == "cuda":
            torch.cuda.synchronize()

    return step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clip", default="tiny")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--frames", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=10)
    args = parser.parse_args()
    base = Config.load().model_dump()
    info = architecture(args.clip)
    steps = {}
    for name, weights in VARIANTS.items():
        config = Config.parse({**base, "loss": {**base["loss"], **OFF, **weights}})
        steps[name] = build(config, info, args.batch, args.frames, task=2)
    times: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(args.rounds + 1):
        for name, step in steps.items():
            start = time.perf_counter()
            step()
            if turn:  # the first round warms up
                times[name].append(time.perf_counter() - start)
    reference = statistics.median(times["SCL alone"])
    print(f"{args.clip}, batch {args.batch}, {args.frames} frames, {torch.get_num_threads()} threads")
    for name, values in times.items():
        median = statistics.median(values)
        print(f"{name:26} {median * 1000:8.1f} ms   {median / reference:.2f} x SCL alone")


if __name__ == "__main__":
    main()
