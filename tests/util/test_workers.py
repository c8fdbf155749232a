"""Processes that share jobs: results in order, and an end whatever dies when."""

from __future__ import annotations

import itertools
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from multiprocessing.context import ForkServerProcess
from pathlib import Path

import psutil
import pytest

from structalign.util.workers import AHEAD, STARTS, JobFailed, parallel_map
from tests.helpers import worker_faults as faults

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("workers", [1, 2, 5])
@pytest.mark.parametrize("count", [0, 1, 60])
def test_results_come_in_the_order_of_jobs(workers: int, count: int) -> None:
    assert list(parallel_map(faults.double, range(count), workers)) == [2 * number for number in range(count)]


def test_errors_of_a_job_are_raised_in_the_caller() -> None:
    results = parallel_map(faults.refuse, range(10), 2)
    assert [next(results) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(EOFError, match=r"^three") as error:
        next(results)
    assert "in refuse" in error.value.__notes__[0]


@pytest.mark.parametrize(
    ("job", "kind", "words"),
    [
        (faults.refuse_in_particular, RuntimeError, r"^Particular: 0 at here"),
        (faults.give_what_cannot_travel, Exception, r"(?i)pickle"),
    ],
)
def test_an_unpicklable_result_is_an_error_and_not_a_dead_process(
    job: Callable[[int], object], kind: type[Exception], words: str
) -> None:
    with pytest.raises(kind, match=words):
        list(parallel_map(job, range(1), 1))


@pytest.mark.parametrize("failures", [STARTS - 1, STARTS])
def test_a_process_that_dies_as_it_starts_is_started_again(monkeypatch: pytest.MonkeyPatch, failures: int) -> None:
    starts = itertools.count(1)
    start = ForkServerProcess.start

    def fail(process: ForkServerProcess) -> None:
        if next(starts) <= failures:
            raise EOFError
        start(process)

    monkeypatch.setattr(ForkServerProcess, "start", fail)
    if failures < STARTS:
        assert list(parallel_map(faults.double, range(3), 1)) == [0, 2, 4]
    else:
        with pytest.raises(ChildProcessError, match="die as they start"):
            list(parallel_map(faults.double, range(3), 1))


def test_a_dead_process_costs_its_job_alone() -> None:
    jobs = [0, signal.SIGSEGV, 0, 0, signal.SIGKILL, -7, 0]
    results = list(parallel_map(faults.die_of, jobs, 2))
    assert results == [0, JobFailed(-signal.SIGSEGV), 0, 0, JobFailed(-signal.SIGKILL), JobFailed(7), 0]
    assert [str(result) for result in results if isinstance(result, JobFailed)] == [
        "killed by SIGSEGV",
        "killed by SIGKILL",
        "ended with status 7",
    ]


@pytest.mark.slow
def test_a_job_that_hangs_is_given_up() -> None:
    begin = time.monotonic()
    results = list(parallel_map(faults.sleep, [0, 600, 0, 0.1], 2, timeout=10))
    assert results == [0, JobFailed(None), 0, 0.1]
    assert str(results[1]) == "took too long"
    assert time.monotonic() - begin < 300


def workers_of_this_process() -> list[psutil.Process]:
    """Children of its fork server."""
    return [process for server in psutil.Process().children() for process in server.children()]


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(16))
def test_a_process_killed_at_any_moment_stops_nothing(seed: int) -> None:
    # Large results fill the pipe, so that many die halfway through one; early ones while the others are starting.
    draw = random.Random(seed)
    delay = draw.choice([0.01, 0.1]) * draw.random()

    over = threading.Event()

    def kill() -> None:
        while not workers_of_this_process() and not over.is_set():
            time.sleep(0.001)
        time.sleep(delay)
        for victim in workers_of_this_process()[-1:]:
            victim.kill()

    killer = threading.Thread(target=kill, daemon=True)
    killer.start()
    results = list(parallel_map(faults.large, range(100), 2))
    over.set()
    killer.join(60)
    assert not killer.is_alive()
    lost = [result for result in results if isinstance(result, JobFailed)]
    assert set(lost) <= {JobFailed(-signal.SIGKILL)}
    assert len(lost) <= 1
    assert all(result in (faults.large(number), *lost) for number, result in enumerate(results))


def test_processes_end_when_the_caller_stops_early() -> None:
    results: Iterator[object] = parallel_map(faults.large, range(300), 2)
    next(results)
    family = workers_of_this_process()
    assert len(family) == 2
    results.close()  # type: ignore[attr-defined]
    _, alive = psutil.wait_procs(family, timeout=60)
    assert not alive


def test_jobs_are_not_done_far_ahead(tmp_path: Path) -> None:
    results = parallel_map(faults.leave_mark, [(tmp_path, number) for number in range(200)], 2)
    next(results)
    assert len(list(tmp_path.iterdir())) <= 2 * AHEAD
    assert len(list(results)) == 199


@pytest.mark.slow
def test_processes_do_not_import_the_program_that_starts_them(tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(
        "from structalign.util.workers import parallel_map\n"
        "from tests.helpers.worker_faults import double\n"
        "print('imported')\n"
        "if __name__ == '__main__':\n"
        "    print(list(parallel_map(double, [1, 2, 3], 2)))\n"
    )
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{tmp_path}"}
    for command in (["program.py"], ["-m", "program"]):
        done = subprocess.run(
            [sys.executable, *command], cwd=tmp_path, env=environment, text=True, capture_output=True, check=True
        )
        assert done.stdout.splitlines() == ["imported", "[2, 4, 6]"]
        assert done.stderr == ""
