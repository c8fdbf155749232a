"""What the benchmarks share: times in turns, memory while something runs, and what machine it was."""

from __future__ import annotations

import os
import platform
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch


def machine() -> str:
    """Describe this machine in one line."""
    cpu = next(
        (line.split(":")[1].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")),
        platform.processor(),
    )
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ", no GPU"
    load = f"load {os.getloadavg()[0]:.1f}"
    return (
        f"{cpu}, {os.cpu_count()} cores, {memory:.0f} GB{gpu}; Python {platform.python_version()}, "
        f"torch {torch.__version__}, {torch.get_num_threads()} thread(s), {load}"
    )


def in_turns(
    variants: Mapping[str, Callable[[], object]], rounds: int, clock: Callable[[], float] = time.perf_counter
) -> dict[str, list[float]]:
    """Seconds of each variant in each round, after one to warm up.

    Variants take turns within a round, so that a slower or faster moment of the machine meets all of them.
    """
    times: dict[str, list[float]] = {name: [] for name in variants}
    for turn in range(rounds + 1):
        for name, variant in variants.items():
            start = clock()
            variant()
            if turn:
                times[name].append(clock() - start)
    return times


class PeakMemory:
    """Most memory of this process while the block ran, in MB above what it had at its start (`above`).

    Anonymous memory alone: pages of files that are mapped, such as a stored gallery, belong to the system's cache.
    """

    def __enter__(self) -> PeakMemory:
        self.start = self.peak = anonymous_memory()
        self.done = threading.Event()
        self.thread = threading.Thread(target=self._watch, daemon=True)
        self.thread.start()
        return self

    def _watch(self) -> None:
        while not self.done.wait(0.005):
            self.peak = max(self.peak, anonymous_memory())

    def __exit__(self, *_: object) -> None:
        self.done.set()
        self.thread.join()

    @property
    def above(self) -> float:
        """MB above the start; meant to be read after the block."""
        return (self.peak - self.start) / 2**20


def anonymous_memory() -> int:
    """Bytes of anonymous memory that this process holds now."""
    line = next(line for line in _lines("/proc/self/status") if line.startswith("RssAnon"))
    return int(line.split()[1]) * 1024


def _lines(path: str) -> list[str]:
    return Path(path).read_text(encoding="utf-8").splitlines()
