"""What a training step costs, and each regulariser in it: median step time, videos per second, share of the peak.

    python -m benchmarks.step                                                    the built-in model, 4 frames
    python -m benchmarks.step --clip ViT-B-32 --frames 12                        random weights of that size, on a GPU
    python -m benchmarks.step --clip ViT-B-32 --frames 4 --batch 4 --rounds 3    the same on a CPU
    python -m benchmarks.step --clip ViT-B-32-quickgelu --savings                the full step without each saving

A step is what training does with a batch that is on the device: losses, gradients, clipping, optimizer. Variants take
turns within each round, so that a slower or faster moment of the machine meets all of them. FLOPs are those of matrix
products, attention and convolutions. The peak is what one large matrix product reaches on this device in the same
precision, or what `--peak` says. On the CPU, processor time counts (summed over threads), so that other work on the
machine does not. `--savings` times the full step as it is, and with each of its savings undone. `--free` leaves glibc
to give freed memory back, which is a saving of the process: compare two runs.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from unittest import mock

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.measure import machine
from structalign.config.schema import Config
from structalign.methods.base import Batch, TrainingFeatures, total
from structalign.methods.structalign import StructAlign
from structalign.model.clip import ClipInfo
from structalign.model.fast_clip import QuickGELU, fuse_quick_gelu, skip_last_patches
from structalign.model.retriever import Retriever
from structalign.model.tiny_clip import INFO
from structalign.training.learner import compile_encoders
from structalign.training.trainer import autocast
from structalign.util.distributed import pick_device
from structalign.util.machine import keep_freed_memory, peak_memory_mb
from structalign.util.seeding import configure_numerics, generator

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
TASK = 2
"""The first task with a teacher and pseudo pairs."""


@dataclass(frozen=True)
class Setting:
    """What all variants share."""

    info: ClipInfo
    device: torch.device
    batch_size: int
    frames: int
    precision: str
    compiled: bool


@dataclass(frozen=True)
class Parts:
    """What a step works on."""

    retriever: Retriever
    teacher: Retriever
    batch: Batch

    def models(self) -> tuple[Retriever, Retriever]:
        """Both models."""
        return self.retriever, self.teacher


@contextmanager
def last_patches(parts: Parts) -> Iterator[None]:
    """The last vision block computes all tokens."""
    for model in parts.models():
        model.clip.visual.transformer.resblocks[-1].__dict__.pop("forward", None)
    yield
    for model in parts.models():
        skip_last_patches(model.clip.visual)


@contextmanager
def plain_quick_gelu(parts: Parts) -> Iterator[None]:
    """open_clip's own QuickGELU."""
    from open_clip.transformer import QuickGELU as Plain

    for model in parts.models():
        for module in list(model.modules()):
            for name, child in module.named_children():
                if isinstance(child, QuickGELU):
                    setattr(module, name, Plain())
    yield
    for model in parts.models():
        fuse_quick_gelu(model.clip)


def two_stems(_parts: Parts) -> AbstractContextManager[object]:
    """The teacher runs the frozen blocks below the first adapter itself."""
    return mock.patch.object(Retriever, "shares_stem", return_value=False)


@contextmanager
def padded_captions(parts: Parts) -> Iterator[None]:
    """Captions padded to the context length."""
    short = parts.batch.tokens
    parts.batch.tokens = nn.functional.pad(short, (0, parts.retriever.info.context_length - short.shape[1]))
    yield
    parts.batch.tokens = short


@contextmanager
def checkpointed(parts: Parts) -> Iterator[None]:
    """`model.checkpoint_vision`."""
    settings = parts.retriever.model
    parts.retriever.model = settings.model_copy(update={"checkpoint_vision": True})
    yield
    parts.retriever.model = settings


UNDONE: dict[str, list[Callable[[Parts], AbstractContextManager[object]]]] = {
    "as it is": [],
    "last block computes all tokens": [last_patches],
    "QuickGELU of open_clip": [plain_quick_gelu],
    "teacher's own frozen blocks": [two_stems],
    "these three": [last_patches, plain_quick_gelu, two_stems],
    "captions padded to the context": [padded_captions],
    "model.checkpoint_vision=true": [checkpointed],
}


def undoing(step: Callable[[], None], parts: Parts) -> dict[str, Callable[[], None]]:
    """The step as it is, and with some of its savings undone."""

    def changed(undo: list[Callable[[Parts], AbstractContextManager[object]]]) -> None:
        with ExitStack() as stack:
            for change in undo:
                stack.enter_context(change(parts))
            step()

    return {name: partial(changed, undo) for name, undo in UNDONE.items()}


def architecture(name: str) -> ClipInfo:
    """The built-in tiny model, or one of open_clip's."""
    if name == "tiny":
        model = INFO.model
    else:
        import open_clip

        model = open_clip.get_model_config(name)
    return ClipInfo(name, model, [0.5] * 3, [0.5] * 3)


def random_retriever(config: Config, setting: Setting) -> Retriever:
    from open_clip.model import CLIP

    torch.manual_seed(0)
    retriever = Retriever(CLIP(**setting.info.model), setting.info, config.model, config.K, seed=0)
    retriever.finish_task(1)
    if setting.compiled:
        compile_encoders(retriever)
    return retriever.to(setting.device)


def random_batch(retriever: Retriever, setting: Setting) -> Batch:
    count, size = setting.batch_size, setting.info.image_size
    batch = Batch(
        pixels=torch.randint(0, 256, (count, setting.frames, 3, size, size), dtype=torch.uint8),
        tokens=retriever.tokenize(["a red circle with a blue core falling over dark bars"] * count),
        category=torch.arange(count) % CATEGORIES,
        video=torch.arange(count),
    )
    return Batch(
        batch.pixels.to(setting.device), *(part.to(setting.device) for part in list(vars(batch).values())[1:4])
    )


def build(config: Config, setting: Setting) -> tuple[dict[str, Callable[[], None]], Parts]:
    """Make one training step for each variant: all with one model, one teacher, one batch and one optimizer."""
    retriever, teacher = random_retriever(config, setting), random_retriever(config, setting)
    teacher.requires_grad_(False).eval()
    retriever.prepare_task(TASK)
    retriever.train()
    batch = random_batch(retriever, setting)
    methods = {name: variant(config, weights, retriever, teacher) for name, weights in VARIANTS.items()}
    groups = [group for method in methods.values() for group in method.parameter_groups()]
    trained: list[nn.Parameter] = [weight for group in groups for weight in group["params"]]
    weights = list(dict.fromkeys(trained))
    fused = setting.device.type == "cuda"
    optimizer = torch.optim.AdamW(weights, lr=1e-6, fused=fused)

    def step(method: StructAlign) -> None:
        batch.stem = None  # as in a new batch
        with autocast(setting.precision, setting.device):
            loss = total(method.loss(batch))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()

    return {name: partial(step, method) for name, method in methods.items()}, Parts(retriever, teacher, batch)


def variant(config: Config, weights: dict[str, float], retriever: Retriever, teacher: Retriever) -> StructAlign:
    """StructAlign with some of its terms, in the midst of a later task."""
    changed = Config.parse({**config.model_dump(), "loss": {**config.loss.model_dump(), **OFF, **weights}})
    method = StructAlign(changed, retriever, CATEGORIES)
    method.start_task(TASK, teacher if method.teacher_kind(TASK) else None)
    method.start_epoch(generator(0))
    old = torch.arange(8).repeat_interleave(4)
    features = nn.functional.normalize(torch.randn(len(old), retriever.embed_dim), dim=-1)
    method.finish_task(TrainingFeatures(features, old, features, old))
    return method


def seconds_of(step: Callable[[], object], device: torch.device) -> float:
    """Time a call: on a GPU by the clock, until its work is done; on the CPU in processor time."""
    if device.type != "cuda":
        start = time.process_time()
        step()
        return time.process_time() - start
    torch.cuda.synchronize()
    start = time.perf_counter()
    step()
    torch.cuda.synchronize()
    return time.perf_counter() - start


def matrix_product_peak(device: torch.device, precision: str) -> float:
    """FLOP/s of one large matrix product: the best of a few."""
    size = 8192 if device.type == "cuda" else 1024
    one, other = (torch.randn(size, size, device=device) for _ in range(2))
    with autocast(precision, device):
        return 2 * size**3 / min(seconds_of(lambda: one @ other, device) for _ in range(6))


def flops(step: Callable[[], None]) -> int:
    counter = FlopCounterMode(display=False)
    with counter:
        step()
    return counter.get_total_flops()


def measure(steps: dict[str, Callable[[], None]], rounds: int, device: torch.device) -> dict[str, float]:
    """Median seconds of each step; the pass that counted FLOPs has warmed up."""
    times: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(rounds):
        for name, step in steps.items():
            times[name].append(seconds_of(step, device))
    return {name: statistics.median(values) for name, values in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clip", default="tiny")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--frames", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision", choices=("auto", "fp32", "bf16"), default="auto")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--savings", action="store_true")
    parser.add_argument("--free", action="store_true")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--adapter-layers", type=int, help="vision blocks with an adapter (default: params.yaml's)")
    parser.add_argument("--peak", type=float, help="TFLOP/s of the data sheet, in place of a measured matrix product")
    args = parser.parse_args()
    config = Config.load()
    if args.adapter_layers:
        model = {**config.model.model_dump(), "adapter_layers": args.adapter_layers}
        config = Config.parse({**config.model_dump(), "model": model})
    configure_numerics(args.threads or config.threads)
    if not args.free:
        keep_freed_memory()
    device = pick_device(args.device)
    setting = Setting(architecture(args.clip), device, args.batch, args.frames, args.precision, args.compile)
    steps, parts = build(config, setting)
    if args.savings:
        steps = undoing(steps["all"], parts)
    work = {name: flops(step) for name, step in steps.items()}
    medians = measure(steps, args.rounds, device)
    peak = args.peak * 1e12 if args.peak else matrix_product_peak(device, args.precision)
    print(machine())
    print(f"{args.clip}, batch {args.batch}, {args.frames} frames, precision {args.precision}")
    print(f"peak: {peak / 1e12:.3f} TFLOP/s")
    first = next(iter(medians))
    for name, seconds in medians.items():
        ratio, speed = seconds / medians[first], args.batch / seconds
        share = work[name] / seconds / peak
        print(f"{name:32}{seconds * 1000:9.1f} ms{ratio:7.3f} x {first}{speed:9.1f} videos/s{share:8.1%} of the peak")
    print(f"peak memory: {peak_memory_mb():.0f} MB of the process")


if __name__ == "__main__":
    main()
