"""What a training step costs, and each regulariser in it: median step time, videos per second, share of the peak.

    python -m benchmarks.step                                           the built-in model, default parameters
    python -m benchmarks.step --clip ViT-B-32-quickgelu data=msrvtt     random weights of that size, on a GPU
    python -m benchmarks.step --clip ViT-B-32-quickgelu --rounds 3 data=msrvtt frames.num_frames=4 \\
        train.batch_size=4                                              the same, small enough for a CPU
    python -m benchmarks.step --clip ViT-B-32-quickgelu --savings data=actnet

A step is what training does with a batch that is on the device: losses, gradients, clipping, optimizer. Variants take
turns within each round, so that a slower or faster moment of the machine meets all of them. FLOPs are those of matrix
products, attention and convolutions. The peak is what one large matrix product reaches on this device in the same
precision, or what `--peak` says. On the CPU, processor time counts (summed over threads), so that other work on the
machine does not. `--savings` times the full step as it is, with each of its savings undone, and with two options that
change its cost. `--free` leaves glibc to give freed memory back, which is a saving of the process: compare two runs.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from unittest import mock

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.measure import machine
from structalign.config.compose import compose
from structalign.config.schema import Config
from structalign.methods.base import Batch, TrainingFeatures, total
from structalign.methods.structalign import StructAlign
from structalign.model.adapters import LoRAAttention
from structalign.model.clip import ClipInfo
from structalign.model.fast_clip import QuickGELU, fuse_quick_gelu, skip_last_patches
from structalign.model.retriever import Retriever
from structalign.pretraining.tiny_clip import INFO
from structalign.training.graphs import graphed_encoders, replaying
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


def mixtures_apart(_parts: Parts) -> AbstractContextManager[object]:
    """The text tower's mixtures of q, k and v are computed one by one."""

    def one_by_one(attention: LoRAAttention, query: Tensor, _key: Tensor) -> list[Tensor]:
        return [attention.updates[name](query) for name in "qkv"]

    return mock.patch.object(LoRAAttention, "_updates", one_by_one)


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


def half_precision(_parts: Parts) -> AbstractContextManager[object]:
    """`train.precision=bf16`."""
    plain = autocast
    return mock.patch.dict(globals(), autocast=lambda _, device: plain("bf16", device))


UNDONE: dict[str, list[Callable[[Parts], AbstractContextManager[object]]]] = {
    "as it is": [],
    "last block computes all tokens": [last_patches],
    "QuickGELU of open_clip": [plain_quick_gelu],
    "teacher's own frozen blocks": [two_stems],
    "these three": [last_patches, plain_quick_gelu, two_stems],
    "mixtures of q, k, v apart": [mixtures_apart],
    "captions padded to the context": [padded_captions],
    "model.checkpoint_vision=true": [checkpointed],
    "train.precision=bf16": [half_precision],
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


def random_retriever(config: Config, info: ClipInfo, device: torch.device) -> Retriever:
    from open_clip.model import CLIP

    torch.manual_seed(0)
    retriever = Retriever(CLIP(**info.model), info, config.model, config.K, seed=0)
    retriever.finish_task(1)
    if config.train.compile:
        compile_encoders(retriever)
    return retriever.to(device)


def random_batch(config: Config, retriever: Retriever) -> Batch:
    count, size = config.train.batch_size, retriever.image_size
    batch = Batch(
        pixels=torch.randint(0, 256, (count, config.frames.num_frames, 3, size, size), dtype=torch.uint8),
        tokens=retriever.tokenize(["a red circle with a blue core falling over dark bars"] * count),
        category=torch.arange(count) % CATEGORIES,
        video=torch.arange(count),
    )
    device = retriever.device
    return Batch(batch.pixels.to(device), *(part.to(device) for part in list(vars(batch).values())[1:4]))


def build(config: Config, info: ClipInfo, device: torch.device) -> tuple[dict[str, Callable[[], None]], Parts]:
    """Make one training step for each variant: all with one model, one teacher, one batch and one optimizer."""
    retriever, teacher = (random_retriever(config, info, device) for _ in range(2))
    teacher.requires_grad_(False).eval()
    retriever.prepare_task(TASK)
    retriever.train()
    batch = random_batch(config, retriever)
    methods = {name: variant(config, weights, retriever, teacher) for name, weights in VARIANTS.items()}
    groups = [group for method in methods.values() for group in method.parameter_groups()]
    trained: list[nn.Parameter] = [weight for group in groups for weight in group["params"]]
    weights = list(dict.fromkeys(trained))
    optimizer = torch.optim.AdamW(weights, lr=1e-6, fused=True)
    graphs = graphed_encoders(methods["all"], config)

    def step(method: StructAlign) -> None:
        batch.stem = None  # as in a new batch
        with autocast(config.train.precision, device), replaying(graphs):
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


def gpu_memory(step: Callable[[], None], device: torch.device) -> str:
    """Most memory of the GPU that tensors hold during a step, models included; nothing on the CPU."""
    if device.type != "cuda":
        return ""
    torch.cuda.reset_peak_memory_stats(device)
    step()
    return f"{torch.cuda.max_memory_allocated(device) / 2**30:7.2f} GiB"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clip", default="tiny")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--savings", action="store_true")
    parser.add_argument("--free", action="store_true")
    parser.add_argument("--peak", type=float, help="TFLOP/s of the data sheet, in place of a measured matrix product")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="parameters, as for `structalign params`")
    args = parser.parse_args()
    config = composed(args.overrides)
    configure_numerics(config.threads, config.train.deterministic)
    if not args.free:
        keep_freed_memory()
    device, batch_size = pick_device(config.machine.device), config.train.batch_size
    steps, parts = build(config, architecture(args.clip), device)
    if args.savings:
        steps = undoing(steps["all"], parts)
    work = {name: flops(step) for name, step in steps.items()}
    medians = measure(steps, args.rounds, device)
    peak = args.peak * 1e12 if args.peak else matrix_product_peak(device, config.train.precision)
    print(machine())
    print(f"{args.clip} {' '.join(args.overrides)}: {batch_size} videos of {config.frames.num_frames} frames")
    print(f"peak: {peak / 1e12:.3f} TFLOP/s")
    first = next(iter(medians))
    for name, seconds in medians.items():
        ratio, speed = seconds / medians[first], batch_size / seconds
        share = work[name] / seconds / peak
        line = f"{name:32}{seconds * 1000:9.1f} ms{ratio:7.3f} x {first}{speed:9.1f} videos/s{share:8.1%} of the peak"
        print(line + gpu_memory(steps[name], device))
    print(f"peak memory: {peak_memory_mb():.0f} MB of the process")


def composed(overrides: list[str]) -> Config:
    """The default parameters with overrides, whatever params.yaml says."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "params.yaml"
        compose(overrides, path)
        return Config.load(path)


if __name__ == "__main__":
    main()
