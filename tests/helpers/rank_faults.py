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


def fail(folder: str) -> None:
    raise UserError("no such video: a.mp4")


def die(folder: str) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def wait(folder: str) -> None:
    distributed.add_up(torch.ones(1))


def lose(folder: str) -> None:
    raise distributed.RankLost("connection closed by peer")


def stay(folder: str) -> None:
    time.sleep(3600)


if __name__ == "__main__":
    configure()
    launch._GRACE = 0.1
    with errors_in_one_line(debug=False), launch.ranks(2, CPU, {"die": die, "lose": lose, "stay": stay}[sys.argv[1]]):
        Path("ready").touch()
        time.sleep(3600)  # as a GPU's collective does that waits for a dead rank
