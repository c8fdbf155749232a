"""How often a pool of processes hangs when one of its processes is killed.

    python -m benchmarks.workers

Each trial shares 400 jobs of two milliseconds, with results of 300 KB, among two processes, and kills one at a random
moment of the first half second. A trial is a process of its own; one that has not ended after 20 seconds hangs, and
one that ends with an error did not survive the loss. loky and Pebble are tried where they are installed.
"""

from __future__ import annotations

import argparse
import importlib.util
import random
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from multiprocessing import get_context
from typing import Any

import psutil

from structalign.util.log import progress
from structalign.util.workers import parallel_map

JOBS, SIZE, WORKERS = 400, 300_000, 2
LIMIT = 20.0
"""Seconds after which a trial counts as hanging; undisturbed ones take less than one."""


def job(number: int) -> bytes:
    end = time.perf_counter() + 0.002
    while time.perf_counter() < end:
        pass
    return bytes([number % 256]) * SIZE


def standard() -> Iterator[Any]:
    from concurrent.futures import ProcessPoolExecutor

    with ProcessPoolExecutor(WORKERS, mp_context=get_context("forkserver")) as pool:
        yield from pool.map(job, range(JOBS))


def loky() -> Iterator[Any]:
    from loky import ProcessPoolExecutor
    from loky.backend import get_context as loky_context

    with ProcessPoolExecutor(WORKERS, context=loky_context("loky")) as pool:
        yield from pool.map(job, range(JOBS))


def pebble() -> Iterator[Any]:
    from pebble import ProcessPool

    with ProcessPool(WORKERS, context=get_context("forkserver")) as pool:
        yield from pool.map(job, range(JOBS)).result()


def ours() -> Iterator[Any]:
    yield from parallel_map(job, range(JOBS), WORKERS)


POOLS: dict[str, Callable[[], Iterator[Any]]] = {
    "concurrent.futures": standard,
    "loky": loky,
    "pebble": pebble,
    "structalign.util.workers": ours,
}


def trial(name: str, seed: int) -> None:
    """Use a pool, while one of its processes is killed."""
    draw = random.Random(seed)
    threading.Thread(target=kill_one, args=(0.5 * draw.random(),), daemon=True).start()
    for _ in POOLS[name]():
        pass


def kill_one(delay: float) -> None:
    """Kill the youngest process that works for this one."""
    while not (found := workers()):
        time.sleep(0.001)
    time.sleep(delay)
    (workers() or found)[-1].kill()


def workers() -> list[psutil.Process]:
    """The processes that do jobs: children of this one's fork server, or loky's own."""
    this = psutil.Process()
    family = this.children(recursive=True)
    return [process for process in family if process.ppid() != this.pid or "popen_loky" in str(process.cmdline())]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=60)
    parser.add_argument("--trial", nargs=2, metavar=("POOL", "SEED"), help="one trial, in this process")
    args = parser.parse_args()
    if args.trial:
        return trial(args.trial[0], int(args.trial[1]))
    names = [name for name in POOLS if name not in ("loky", "pebble") or importlib.util.find_spec(name)]
    outcomes: dict[str, Counter[str]] = {name: Counter() for name in names}
    for seed in progress(range(args.trials), desc="trials", unit="trial"):
        for name in names:
            outcomes[name][outcome(name, seed)] += 1
    print(f"\n{'pool':24}{'trials':>8}{'hung':>8}{'error':>8}")
    for name, counts in outcomes.items():
        print(f"{name:24}{args.trials:8}{counts['hung']:8}{counts['error']:8}")


def outcome(name: str, seed: int) -> str:
    """How a trial ended: hung, error or done."""
    command = [sys.executable, "-m", "benchmarks.workers", "--trial", name, str(seed)]
    running = psutil.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        return "error" if running.wait(LIMIT) else "done"
    except psutil.TimeoutExpired:
        for process in [*running.children(recursive=True), running]:
            process.kill()
        return "hung"


if __name__ == "__main__":
    main()
