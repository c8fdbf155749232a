"""Several devices train one task together: each encodes its share of every batch, all see the features of all.

The stage's own process is rank 0 and the only one that writes outputs. It starts a process for each further device
and ends them; they end by themselves when it dies, so that nothing of a killed stage lives on. Outside `ranks`,
everything here does what is right for a single process: shares are the whole, and gathering changes nothing.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from multiprocessing import connection, get_context, parent_process
from pathlib import Path
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

from structalign.errors import UserError
from structalign.log import configure, log

_PATIENCE = timedelta(hours=1)
"""How long a rank waits for another that is alive, such as rank 0 while it ranks test queries."""

_GRACE = 5.0
"""Seconds that rank 0 is given to notice by itself that another rank failed; a GPU's collectives never do."""

_LAST_WORDS = 60.0
"""Seconds that rank 0 waits to hear why another rank broke off: a process ends slowly on a busy machine."""

_LOST = 3
"""Exit status of a rank that ends because another did."""


class _RankLost(RuntimeError):
    """A collective broke off, because another rank is gone."""


def pick_device(name: str) -> torch.device:
    """Resolve `machine.device`: auto takes a GPU where there is one."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(f"machine.device = {name!r}: must be auto, cpu, cuda or cuda:N") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UserError(f"machine.device = {name!r}: this machine has no usable GPU; auto takes the CPU here")
    return device


def num_ranks(devices: int | Literal["auto"], device: str, batch_size: int) -> int:
    """Resolve `train.devices`: auto takes every visible GPU, and one process on the CPU or on a GPU named by number.

    Raises
    ------
    UserError
        Where a number is asked for that the machine, `machine.device` or the batch size has no room for.
    """
    kind = pick_device(device)
    gpus = torch.cuda.device_count() if kind.type == "cuda" else 0
    if devices == "auto":
        return min(gpus, batch_size) if gpus and kind.index is None else 1
    if devices > batch_size:
        raise UserError(f"train.devices = {devices} exceeds train.batch_size = {batch_size}: a device needs a pair")
    if devices > 1 and kind.index is not None:
        raise UserError(f"train.devices = {devices}, but machine.device = {device!r} names one; set it to auto")
    if gpus and devices > gpus:
        raise UserError(f"train.devices = {devices}: this machine has {gpus} visible GPUs; auto takes all of them")
    return devices


@contextmanager
def _together() -> Iterator[None]:
    """Tell a collective that breaks off from errors of a rank's own."""
    try:
        yield
    except RuntimeError as error:
        raise _RankLost(str(error)) from error


# Where this process stands


def size() -> int:
    """Processes that train together; 1 outside `ranks`."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Number of this process among them; 0 writes what the stage leaves."""
    return dist.get_rank() if size() > 1 else 0


def share(count: int) -> Sequence[int]:
    """Which of a joint batch's `count` rows this rank works on, equally many on every rank.

    Where they do not divide evenly, the last row fills up the last shares; `gather`'s result then ends with
    copies of it, which the caller cuts off, so that they have no gradient.
    """
    each = -(-count // size())
    return [min(row, count - 1) for row in range(rank() * each, (rank() + 1) * each)]


def gather(own: Tensor) -> Tensor:
    """Put the shares of all ranks together, in order; gradients flow back to every rank's own share.

    Parameters
    ----------
    own : Tensor, shape (b, ...)
        Of the same shape on every rank.

    Returns
    -------
    Tensor, shape (size() * b, ...)

    Notes
    -----
    Every rank has to compute the same loss from it. Then the loss summed over ranks has `size()` times the
    gradient of one, and `average_gradients` gives those of a single process with the joint batch, for weights used
    before the gathering and for weights used after it alike.
    """
    return own if size() == 1 else _Gather.apply(own)  # type: ignore[no-any-return]


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, own: Tensor) -> Tensor:
        ctx.rows = len(own)
        shares = [torch.empty_like(own, memory_format=torch.contiguous_format) for _ in range(size())]
        with _together():
            dist.all_gather(shares, own.contiguous())
        return torch.cat(shares)

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, *gradients: Tensor) -> Tensor:
        # What the other ranks' copies of the loss would send here equals this rank's own: no need to exchange it.
        rows = ctx.rows  # type: ignore[attr-defined]
        return gradients[0][rank() * rows : (rank() + 1) * rows] * size()


@torch.no_grad()
def average_gradients(weights: Sequence[Tensor]) -> None:
    """Replace the gradients of `weights` by their mean over ranks; those without one have none on any rank."""
    if size() == 1:
        return
    gradients = [weight.grad for weight in weights if weight.grad is not None]
    joint = torch.cat([gradient.flatten() for gradient in gradients])
    with _together():
        dist.all_reduce(joint)
    parts = joint.div_(size()).split([gradient.numel() for gradient in gradients])
    torch._foreach_copy_(gradients, [part.view_as(old) for part, old in zip(parts, gradients, strict=True)])


def add_up(own: Tensor) -> Tensor:
    """Sum a tensor over ranks; every rank gets the sum."""
    if size() > 1:
        with _together():
            dist.all_reduce(own)
    return own


def from_first(compute: Callable[[], float]) -> float:
    """Let rank 0 compute a number, and tell it to all."""
    if size() == 1:
        return compute()
    told: list[float | None] = [compute() if rank() == 0 else None]
    with _together():
        dist.broadcast_object_list(told, src=0)
    return float(told[0])  # type: ignore[arg-type]


# Starting and ending


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
        except _RankLost:  # the lost rank's own words say more
            others.blame()
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
    dist.init_process_group(
        "nccl" if device.type == "cuda" else "gloo",
        store=dist.FileStore(str(Path(folder) / "store"), count),
        rank=number,
        world_size=count,
        timeout=_PATIENCE,
    )
    try:
        yield
    finally:
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
    threading.Thread(target=_die_with_parent, daemon=True).start()
    os.environ["STRUCTALIGN_PROGRESS"] = "0"
    configure("CRITICAL")
    try:
        with _process_group(number, count, device, folder):
            follow(*args, folder)
    except _RankLost:
        sys.exit(_LOST)
    except Exception as error:
        words.send((" ".join(str(error).split()) or type(error).__name__, traceback.format_exc()))
        sys.exit(1)


def _die_with_parent() -> None:
    parent = parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


class _Others:
    """The processes of ranks 1 and up, and a thread that watches over them."""

    def __init__(
        self, count: int, device: torch.device, folder: str, follow: Callable[..., None], args: Sequence[Any]
    ) -> None:
        context = get_context("spawn")
        self.processes, self.words = [], []
        for number in range(1, count):
            ear, mouth = context.Pipe(duplex=False)
            process = context.Process(target=_follow, args=(number, count, device, folder, mouth, follow, args))
            process.start()
            mouth.close()
            self.processes.append(process)
            self.words.append(ear)
        self.count = count
        self.failure = ""
        self.failed, self.over = threading.Event(), threading.Event()
        self.watcher = threading.Thread(target=self._watch, daemon=True)
        self.watcher.start()

    def _watch(self) -> None:
        """Wait for the first that fails; if rank 0 hangs in a collective then, end it with one line."""
        waiting: dict[Any, int] = {process.sentinel: number for number, process in enumerate(self.processes, 1)}
        while waiting and not self.failure:
            for sentinel in connection.wait(list(waiting)):
                self._judge(waiting.pop(sentinel))
        if self.failure and not self.over.is_set():
            self.failed.set()
            if not self.over.wait(_GRACE):
                log.error(self.failure)
                self._kill()
                os._exit(1)

    def _judge(self, number: int) -> None:
        process, words = self.processes[number - 1], self.words[number - 1]
        process.join()
        if process.exitcode in (0, _LOST) or self.failure:
            return
        said, details = _last_words(words)
        if details:
            log.debug(details)
        code = process.exitcode or 0
        how = said or (f"killed by {signal.Signals(-code).name}" if code < 0 else f"ended with status {code}")
        self.failure = f"train.devices = {self.count}: rank {number} failed: {how}"

    def finish(self) -> None:
        """Wait until all have come to their end."""
        self.over.set()
        self.watcher.join()
        if self.failure:
            raise UserError(self.failure)

    def blame(self) -> None:
        """Raise what another rank failed of, if one did."""
        if self.failed.wait(_LAST_WORDS):
            raise UserError(self.failure) from None

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
