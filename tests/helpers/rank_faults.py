"""Ranks that misbehave, in a module that a new process imports quickly; as a program, the stage that starts them."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

import torch

from structalign.training import launch
from structalign.util import distributed
from structalign.util.command import errors_in_one_line
from structalign.util.errors import UserError
from structalign.util.log import configure

CPU = torch.device("cpu")


def _work(seconds: float = 3600) -> None:
    """Be at work outside any collective, as a rank is that does not notice another's death."""
    Path(f"ready-{distributed.rank()}").touch()
    time.sleep(seconds)


def fail(rank: int) -> None:
    """Raise in one rank while the other waits for it in a collective."""
    if distributed.rank() == rank:
        raise UserError("no such video: a.mp4")
    distributed.all_reduce_sum(torch.ones(1))


def crash(rank: int) -> None:
    """Raise what no user can fix."""
    if distributed.rank() == rank:
        raise ValueError("wrong\nnumber")
    distributed.all_reduce_sum(torch.ones(1))


def die(rank: int) -> None:
    """Be killed while the other rank waits in a collective."""
    if distributed.rank() == rank:
        os.kill(os.getpid(), signal.SIGKILL)
    distributed.all_reduce_sum(torch.ones(1))


def die_unnoticed(rank: int) -> None:
    """Be killed while the other rank works."""
    if distributed.rank() == rank:
        os.kill(os.getpid(), signal.SIGKILL)
    _work()


def leave(rank: int) -> None:
    """End with a status of its own."""
    if distributed.rank() == rank:
        os._exit(7)
    _work()


def lose(rank: int) -> None:
    """Find a collective broken that no other rank broke."""
    if distributed.rank() == rank:
        raise distributed.CollectiveError("connection closed by peer")
    _work()


def stay(rank: int) -> None:
    """Train on, and on."""
    _work()


if __name__ == "__main__":
    configure()
    faults = {fault.__name__: fault for fault in (fail, die, die_unnoticed, leave, lose, stay)}
    with errors_in_one_line(debug=False):
        launch.run(2, CPU, faults[sys.argv[1]], int(sys.argv[2]))
