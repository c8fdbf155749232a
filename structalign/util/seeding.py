"""What makes a run repeatable: every random number follows from one seed, every sum from one number of threads."""

from __future__ import annotations

import os
from typing import Literal

import numpy as np
import torch

from structalign.util.machine import available_cores


def derive_seed(seed: int, *path: int) -> int:
    """Mix the seed with a path (task, epoch, ...) into an independent one, the same on every machine."""
    return int(np.random.SeedSequence([seed, *path]).generate_state(1, np.uint64)[0] >> 1)


def generator(seed: int, *path: int) -> torch.Generator:
    """Make a CPU generator seeded by `derive_seed`."""
    return torch.Generator().manual_seed(derive_seed(seed, *path))


def configure_numerics(threads: int | Literal["auto"], deterministic: bool = False) -> None:
    """Compute with so many CPU threads, and on a GPU in full precision unless something else is asked for.

    Sums are grouped by thread, so their last bits depend on the number. The patch embedding, the only convolution,
    would otherwise be rounded to TF32, which changes features by up to 1e-4. Every stage calls this, because several
    may run in one process.
    """
    use_deterministic(deterministic)
    torch.set_num_threads(available_cores() if threads == "auto" else threads)
    torch.backends.cudnn.allow_tf32 = False


def use_deterministic(wanted: bool) -> None:
    """Choose whether PyTorch takes only algorithms that repeat bit for bit on a GPU; before the first GPU operation.

    The CPU's all do. Memory-efficient attention is left out because its backward pass does not.
    """
    if wanted:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when cuBLAS starts
    torch.use_deterministic_algorithms(wanted)
    torch.backends.cudnn.deterministic = wanted
    torch.backends.cudnn.benchmark = False
    torch.backends.cuda.enable_mem_efficient_sdp(not wanted)


def seed_everything(seed: int, *path: int) -> None:
    """Seed torch's own generators (dropout, router noise), on all devices."""
    torch.manual_seed(derive_seed(seed, *path))
