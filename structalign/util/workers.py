"""Processes that share a list of jobs, and a caller that never waits for a dead one.

Each process has a pipe of its own, a thread here that waits for it, and one job at a time. The pools of the standard
library, loky and pebble let all processes share a pipe: one that is killed while it holds it leaves all others
waiting for ever. benchmarks/README.md says how often.
"""

from __future__ import annotations

import copy
import os
import signal
import sys
import threading
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing import connection, get_context, parent_process
from multiprocessing.reduction import ForkingPickler
from queue import SimpleQueue
from types import ModuleType
from typing import Any, Generic, TypeVar

Job = TypeVar("Job")
Result = TypeVar("Result")

STARTS = 3
"""Times that a process is started before it is given up."""

AHEAD = 8
"""Jobs per process that may be done before an earlier one is; bounds memory."""


def exit_reason(exitcode: int) -> str:
    """Say how a process ended, from what `subprocess` and `multiprocessing` call its return code."""
    if exitcode >= 0:
        return f"ended with status {exitcode}"
    known = -exitcode in set(signal.Signals)  # real-time signals have no names
    return f"killed by {signal.Signals(-exitcode).name if known else f'signal {-exitcode}'}"


@dataclass(frozen=True)
class JobFailed:
    """Stands for the result of a job whose process died over it, or did not end in time.

    Attributes
    ----------
    exitcode : int or None
        Minus the number of the signal that killed the process, or its exit status; None if the job took too long.
    """

    exitcode: int | None

    def __str__(self) -> str:
        return "took too long" if self.exitcode is None else exit_reason(self.exitcode)


def parallel_map(
    function: Callable[[Job], Result], jobs: Sequence[Job], workers: int, timeout: float | None = None
) -> Iterator[Result | JobFailed]:
    """Call a function for each job in processes of their own.

    Parameters
    ----------
    function : callable
        A module's function. What it raises is raised here, when its turn comes.
    jobs : sequence
    workers : int
        Processes; results do not depend on how many.
    timeout : float, optional
        Seconds after which a process that is still at its job is killed.

    Yields
    ------
    The function's results in the order of `jobs`; a `JobFailed` if there is none. Another process takes the place of
    one that died.
    """
    pool = _Pool(function, min(workers, len(jobs)), timeout)
    try:
        yield from in_order(map(pool.submit, jobs), AHEAD * workers)
    finally:
        pool.close()


def in_order(submitted: Iterable[Future[Result]], ahead: int) -> Iterator[Result]:
    """Yield results in the order of submission, and submit at most `ahead` jobs whose results nobody has taken."""
    waiting: deque[Future[Result]] = deque()
    for future in submitted:
        waiting.append(future)
        if len(waiting) >= ahead:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def end_with_parent() -> None:
    """Let this process end as soon as the one that started it does, however that ends."""
    parent = parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


class _Pool(Generic[Job, Result]):
    """Processes, each with a thread that hands it jobs."""

    def __init__(self, function: Callable[[Job], Result], size: int, timeout: float | None) -> None:
        self.function, self.timeout = function, timeout
        self.jobs: SimpleQueue[tuple[Future[Result | JobFailed], Job] | None] = SimpleQueue()
        self.workers: list[_Worker] = []
        self.closed = False
        # Daemons: a program may end without `close`, and must not wait for jobs then.
        self.threads = [threading.Thread(target=self._serve, daemon=True) for _ in range(size)]
        for thread in self.threads:
            thread.start()

    def submit(self, job: Job) -> Future[Result | JobFailed]:
        future: Future[Result | JobFailed] = Future()
        self.jobs.put((future, job))
        return future

    def _serve(self) -> None:
        """Do one job after the other, in one process as long as it lives."""
        worker: _Worker | None = None
        while (item := self.jobs.get()) and not self.closed:
            future, job = item
            try:
                if worker is None or worker.ended:
                    worker = _Worker(self.function)
                    self.workers.append(worker)
                if not self.closed:  # asked again: `close` may have missed the new process
                    future.set_result(worker.call(job, self.timeout))
            except Exception as error:  # whatever the job raised
                future.set_exception(error)
        if worker is not None:
            worker.end()

    def close(self) -> None:
        """End all processes, and so the threads that wait for them."""
        self.closed = True
        for worker in self.workers:
            worker.kill()
        for _ in self.threads:
            self.jobs.put(None)
        for thread in self.threads:
            thread.join()


class _Worker:
    """A worker process and our end of its pipe."""

    _lock = threading.Lock()
    """Held to start and to reap processes, which multiprocessing does not expect of several threads."""

    def __init__(self, function: Callable[[Any], Any]) -> None:
        self.ended = False
        # Children of a fork server do not inherit the parent's threads and locks, which a forked one may hang on.
        context = get_context("forkserver")
        context.set_forkserver_preload([function.__module__])
        for attempt in range(1, STARTS + 1):
            self.pipe, theirs = context.Pipe()
            self.process = context.Process(target=_work, args=(theirs, function), daemon=True)
            try:
                with self._lock, _without_main():
                    self.process.start()
                break
            except (EOFError, ConnectionError):  # killed before it received its first job
                self.pipe.close()
                if attempt == STARTS:
                    raise ChildProcessError("processes die as they start, possibly out of memory") from None
            finally:
                theirs.close()  # the last copy on this side: from now on the pipe ends when the process does

    def call(self, job: Any, timeout: float | None) -> Any:
        """Do a job: return its result or a `JobFailed`, or raise what the job raised."""
        with suppress(ConnectionError):  # a dead one; reading its pipe says so
            self.pipe.send(job)
        if not self.pipe.poll(timeout):
            self.end()
            return JobFailed(None)
        try:
            result, error = self.pipe.recv()
        except (EOFError, OSError):
            self.end()
            return JobFailed(self.process.exitcode or 0)
        if error is not None:
            raise error
        return result

    def kill(self) -> None:
        with self._lock:
            self.process.kill()

    def end(self) -> None:
        self.ended = True
        with self._lock:
            self.process.kill()
            self.process.join()
        self.pipe.close()


@contextmanager
def _without_main() -> Iterator[None]:
    """Start processes that do not import the program again: it takes time and memory, and no job needs it.

    multiprocessing tells them of the main module by what this process has under that name.
    """
    main = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


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
            answer = ForkingPickler.dumps((function(job), None))
        except Exception as error:
            answer = ForkingPickler.dumps((None, _portable(error)))
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
