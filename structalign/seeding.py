"""What makes a run repeatable: every random number follows from one seed, every sum from one number of threads."""

from __future__ import annotations

import os
from typing import Literal

import numpy as np
import torch


def derive_seed(seed: int, *path: int) -> int:
    """Mix the seed with a path (task, epoch, ...) into an independent one, the same on every machine."""
    return int(np.random.SeedSequence([seed, *path]).generate_state(1, np.uint64)[0] >> 1)


def generator(seed: int, *path: int) -> torch.Generator:
    """Make a CPU generator seeded by `derive_seed`."""
    return torch.Generator().manual_seed(derive_seed(seed, *path))


def use_threads(threads: int | Literal["auto"]) -> None:
    """Compute with so many CPU threads; sums are grouped by thread, so their last bits depend on the number."""
    torch.set_num_threads(len(os.sched_getaffinity(0)) if threads == "auto" else threads)


def seed_everything(seed: int, *path: int) -> None:
    """Seed torch's own generators (dropout, router noise), on all devices."""
    torch.manual_seed(derive_seed(seed, *path))
