"""Processes that share a list of jobs, and a caller that never waits for a dead one.

Each process has a pipe of its own and one job at a time. The pools of the standard library, loky and pebble let all
processes share a pipe: one that is killed while it holds it leaves everybody waiting for ever. benchmarks/workers.py
counts how often.
"""

from __future__ import annotations

import copy
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import connection, get_context, parent_process
from multiprocessing.reduction import ForkingPickler
from typing import Any, Generic, TypeVar

Job = TypeVar("Job")
Result = TypeVar("Result")

STARTS = 3
"""Times that a process is started before it is given up."""

AHEAD = 8
"""Jobs per process that may be done before an earlier one is; bounds memory."""


@dataclass(frozen=True)
class Lost:
    """Stands for the result of a job whose process died over it, or did not end in time.

    Attributes
    ----------
    exitcode : int or None
        Minus the number of the signal that killed the process, or its exit status; None where it took too long.
    """

    exitcode: int | None

    def __str__(self) -> str:
        if self.exitcode is None:
            return "took too long"
        if self.exitcode < 0:
            return f"killed by {signal.Signals(-self.exitcode).name}"
        return f"ended with status {self.exitcode}"


@dataclass(frozen=True)
class _Raised:
    error: Exception


def share_out(
    function: Callable[[Job], Result], jobs: Sequence[Job], workers: int, patience: float | None = None
) -> Iterator[Result | Lost]:
    """Call a function for each job in processes of their own.

    Parameters
    ----------
    function : callable
        A module's function. What it raises is raised here, when its turn comes.
    jobs : sequence
    workers : int
        Processes; results do not depend on how many.
    patience : float, optional
        Seconds after which a process that is still at its job is killed.

    Yields
    ------
    The function's results in the order of `jobs`; a `Lost` where there is none. Another process takes a lost one's
    place.
    """
    crew = _Crew(function, jobs, workers, patience)
    try:
        for number in range(len(jobs)):
            crew.turn(number, wait=False)  # keeps all busy, even where this result is here already
            while number not in crew.done:
                crew.turn(number, wait=True)
            result = crew.done.pop(number)
            if isinstance(result, _Raised):
                raise result.error
            yield result
    finally:
        crew.end()


def end_with_parent() -> None:
    """Let this process end as soon as the one that started it does, however that ends."""
    parent = parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


class _Crew(Generic[Job, Result]):
    """The processes, the results that nobody has asked for yet, and how many jobs are given out."""

    def __init__(
        self, function: Callable[[Job], Result], jobs: Sequence[Job], workers: int, patience: float | None
    ) -> None:
        self.function, self.jobs, self.patience = function, jobs, patience
        self.done: dict[int, Result | Lost | _Raised] = {}
        self.given = 0
        self.workers: list[_Worker[Job, Result]] = []
        self.size = min(workers, len(jobs))

    def turn(self, first: int, wait: bool) -> None:
        """Take what is ready, or wait for it; then give out jobs, not too far ahead of the first missing one."""
        while len(self.workers) < self.size:
            self.workers.append(_Worker(self.function))
        for worker in self._ready(wait):
            number, result = worker.take()
            self.done[number] = result
            if isinstance(result, Lost):
                self.workers[self.workers.index(worker)] = _Worker(self.function)
        limit = min(len(self.jobs), first + AHEAD * len(self.workers))
        for worker in self.workers:
            if worker.number is None and self.given < limit:
                worker.give(self.given, self.jobs[self.given], self.patience)
                self.given += 1

    def _ready(self, wait: bool) -> list[_Worker[Job, Result]]:
        """Workers that have something to say, or have run out of time."""
        busy = {worker.pipe: worker for worker in self.workers if worker.number is not None}
        next_end = min((worker.deadline for worker in busy.values()), default=0.0)
        timeout = max(0.0, next_end - time.monotonic()) if wait else 0.0
        ready = connection.wait(list(busy), None if timeout == float("inf") else timeout)
        now = time.monotonic()
        return [worker for pipe, worker in busy.items() if pipe in ready or worker.deadline <= now]

    def end(self) -> None:
        for worker in self.workers:
            worker.end()


class _Worker(Generic[Job, Result]):
    """A process, this end of its pipe, and what it is at."""

    def __init__(self, function: Callable[[Job], Result]) -> None:
        # Children of a fork server do not inherit the parent's threads and locks, which a forked one may hang on.
        context = get_context("forkserver")
        context.set_forkserver_preload([function.__module__])
        for attempt in range(1, STARTS + 1):
            self.pipe, theirs = context.Pipe()
            self.process = context.Process(target=_work, args=(theirs, function), daemon=True)
            try:
                self.process.start()
                break
            except (EOFError, ConnectionError):  # killed before it had its orders
                self.pipe.close()
                if attempt == STARTS:
                    raise ChildProcessError("processes die as they start, perhaps for want of memory") from None
            finally:
                theirs.close()  # the last copy on this side: from now on the pipe ends when the process does
        self.number: int | None = None
        self.deadline = float("inf")

    def give(self, number: int, job: Job, patience: float | None) -> None:
        self.number = number
        self.deadline = float("inf") if patience is None else time.monotonic() + patience
        with suppress(ConnectionError):  # a dead one; reading its pipe says so
            self.pipe.send(job)

    def take(self) -> tuple[int, Result | Lost | _Raised]:
        """What became of its job: to be called where the pipe has something to say, or the time is over."""
        number, self.number = self.number, None
        assert number is not None
        if not self.pipe.poll():
            self.end()
            return number, Lost(None)
        try:
            return number, self.pipe.recv()
        except (EOFError, OSError):
            self.end()
            return number, Lost(self.process.exitcode or 0)

    def end(self) -> None:
        self.process.kill()
        self.process.join()
        self.pipe.close()


def _work(pipe: connection.Connection, function: Callable[[Any], Any]) -> None:
    """Do jobs until the pipe ends; silently, for the caller says what became of them."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the caller is interrupted as well, and ends this one
    sys.stderr = open(os.devnull, "w")  # noqa: SIM115 -- for as long as the process lives
    end_with_parent()
    while True:
        try:
            job = pipe.recv()
        except EOFError:
            return
        try:
            answer = ForkingPickler.dumps(function(job))
        except Exception as error:
            answer = ForkingPickler.dumps(_Raised(_portable(error)))
        pipe.send_bytes(answer)


def _portable(error: Exception) -> Exception:
    """An error that another process can raise, with its traceback as a note."""
    try:
        ForkingPickler.dumps(error)
        copy.copy(error)  # as unpickling does, this builds it again from its arguments
    except Exception:
        error = RuntimeError(f"{type(error).__name__}: {error}")
    error.add_note(traceback.format_exc())
    return error
