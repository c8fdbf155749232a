"""Start and end the processes that train one task together.

The stage's own process is rank 0 and the only one that writes outputs. It starts a process for each further device
and ends them; they end by themselves when it dies, so that nothing of a killed stage lives on.
"""

from __future__ import annotations

import os
import signal
import socket
import tempfile
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from multiprocessing import connection, get_context
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from structalign.util.distributed import RankLost, together
from structalign.util.errors import UserError
from structalign.util.log import configure, log
from structalign.util.workers import end_with_parent

_PATIENCE = timedelta(hours=1)
"""How long a rank waits for another that is alive, such as rank 0 while it ranks test queries."""

_GRACE = 5.0
"""Seconds that rank 0 is given to notice by itself that another rank failed; a GPU's collectives never do."""

_LAST_WORDS = 60.0
"""Seconds that rank 0 waits to hear why another rank broke off: a process ends slowly on a busy machine."""

_LOST = 3
"""Exit status of a rank whose collective broke off, as it does where another is gone."""


@contextmanager
def ranks(count: int, device: torch.device, follow: Callable[..., None], *args: Any) -> Iterator[None]:
    """Be rank 0 of `count` within the block, while further processes run `follow(*args, folder)`.

    Parameters
    ----------
    count : int
        With 1, nothing happens.
    device : device
        A GPU: rank r works on the r-th visible one. Otherwise all work on the CPU.
    follow : callable
        A module's function that takes part in what the block does. `folder` is there to write into; it is
        deleted in the end.

    Raises
    ------
    UserError
        Where a further process fails: its number, and what it said.
    """
    if count == 1:
        yield
        return
    _stay_on_this_machine()
    with tempfile.TemporaryDirectory(prefix="structalign-", ignore_cleanup_errors=True) as folder:
        others = _Others(count, device, folder, follow, args)
        try:
            with _process_group(0, count, device, folder):
                yield
            others.finish()
        except RankLost as error:  # the lost rank's own words say more
            others.blame(error)
            raise
        finally:
            others.end()


def _stay_on_this_machine() -> None:
    """Let processes on the CPU talk over the loopback interface, whatever the machine's name resolves to."""
    loopback = [name for _, name in socket.if_nameindex() if name.startswith("lo")]
    if loopback:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", loopback[0])


@contextmanager
def _process_group(number: int, count: int, device: torch.device, folder: str) -> Iterator[None]:
    """Meet the other ranks through a file, so that no port is open to others or taken already."""
    if device.type == "cuda":
        torch.cuda.set_device(number)
    with together():  # a rank may be gone before all have met
        dist.init_process_group(
            "nccl" if device.type == "cuda" else "gloo",
            store=dist.FileStore(str(Path(folder) / "store"), count),
            rank=number,
            world_size=count,
            timeout=_PATIENCE,
        )
    whole = False
    try:
        yield
        whole = True
    finally:
        # NCCL's end is a collective of its own: where a rank is gone it may never return.
        if whole or device.type != "cuda":
            dist.destroy_process_group()


def _follow(
    number: int,
    count: int,
    device: torch.device,
    folder: str,
    words: connection.Connection,
    follow: Callable[..., None],
    args: Sequence[Any],
) -> None:
    """Run a further rank: silent but for the line that rank 0 prints if this one fails."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # rank 0 is interrupted as well, and ends this one
    end_with_parent()
    os.environ["STRUCTALIGN_PROGRESS"] = "0"
    configure("CRITICAL")
    try:
        with _process_group(number, count, device, folder):
            follow(*args, folder)
    except Exception as error:
        words.send((" ".join(str(error).split()) or type(error).__name__, traceback.format_exc()))
        os._exit(_LOST if isinstance(error, RankLost) else 1)  # whatever a GPU's library would still wait for


class _Others:
    """The processes of ranks 1 and up, and a thread that watches over them."""

    def __init__(
        self, count: int, device: torch.device, folder: str, follow: Callable[..., None], args: Sequence[Any]
    ) -> None:
        context = get_context("spawn")
        self.processes, self.words = [], []
        try:
            for number in range(1, count):
                ear, mouth = context.Pipe(duplex=False)
                process = context.Process(target=_follow, args=(number, count, device, folder, mouth, follow, args))
                process.start()
                mouth.close()
                self.processes.append(process)
                self.words.append(ear)
        except BaseException:  # such as want of memory, or Ctrl-C
            self._kill()
            raise
        self.count = count
        self.failure = ""
        self.only_broken = False  # whether that is all that is known
        self.failed, self.over = threading.Event(), threading.Event()
        self.watcher = threading.Thread(target=self._watch, daemon=True)
        self.watcher.start()

    def _watch(self) -> None:
        """Wait for the first that fails; if rank 0 hangs in a collective then, end it with one line."""
        waiting: dict[Any, int] = {process.sentinel: number for number, process in enumerate(self.processes, 1)}
        broken = ""  # what the first said whose collective broke off; another may say why
        while waiting and not self.failure:
            ready = connection.wait(list(waiting), _GRACE if broken else None)
            for sentinel in ready:
                self.failure, lost = self._judge(waiting.pop(sentinel))
                broken = broken or lost
                if self.failure:
                    break
            if broken and not self.failure and not (ready and waiting):
                self.failure, self.only_broken = broken, True
        if self.failure and not self.over.is_set():
            self.failed.set()
            if not self.over.wait(_GRACE):
                log.error(self.failure)
                self._kill()
                os._exit(1)

    def _judge(self, number: int) -> tuple[str, str]:
        """Say how a rank that has ended failed, or how a collective of its broke off; nothing where it did not."""
        process, words = self.processes[number - 1], self.words[number - 1]
        process.join()
        code = process.exitcode or 0
        if code == 0:
            return "", ""
        said, details = _last_words(words)
        if details:
            log.debug(details)
        how = said or (f"killed by {signal.Signals(-code).name}" if code < 0 else f"ended with status {code}")
        failure = f"train.devices = {self.count}: rank {number} failed: {how}"
        return ("", failure) if code == _LOST else (failure, "")

    def finish(self) -> None:
        """Wait until all have come to their end."""
        self.over.set()
        self.watcher.join()
        if self.failure:
            raise UserError(self.failure)

    def blame(self, own: RankLost) -> None:
        """Raise what another rank failed of, if one did; where its collective broke off, rank 0's may say why."""
        if self.failed.wait(_LAST_WORDS):
            raise UserError(self.failure + (f"; rank 0: {own}" if self.only_broken else "")) from None

    def end(self) -> None:
        """End those that still run."""
        self.over.set()
        self._kill()
        self.watcher.join()

    def _kill(self) -> None:
        for process in self.processes:
            process.kill()
        for process in self.processes:
            process.join()


def _last_words(words: connection.Connection) -> tuple[str, str]:
    try:
        return words.recv() if words.poll() else ("", "")
    except EOFError:
        return "", ""
