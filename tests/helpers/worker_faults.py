"""Jobs that go wrong, in a module that a new process imports quickly."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from structalign.data.decoded import Packed
    from structalign.data.frames import Job


def double(number: int) -> int:
    return 2 * number


def leave_mark(job: tuple[Path, int]) -> None:
    folder, number = job
    (folder / str(number)).touch()
    if number == 0:
        time.sleep(1)


def large(number: int) -> bytes:
    return bytes([number % 256]) * 300_000


def refuse(number: int) -> int:
    if number == 3:
        raise EOFError("three")
    return number


class Particular(Exception):
    """An error that cannot be rebuilt from its message, as some libraries' cannot."""

    def __init__(self, code: int, place: str) -> None:
        super().__init__(f"{code} at {place}")


def refuse_in_particular(number: int) -> int:
    raise Particular(number, "here")


def give_what_cannot_travel(number: int) -> object:
    return lambda: number


def die_of(number: int) -> int:
    """End by the signal of that number; 0 does not, and a negative one is an exit status."""
    if number < 0:
        os._exit(-number)
    if number:
        os.kill(os.getpid(), number)
    return number


def sleep(seconds: float) -> float:
    time.sleep(seconds)
    return seconds


def crash_on_a_bad_video(job: Job) -> Packed | str:
    from structalign.data import frames

    if job.request.path.stem == "crashes":
        os.kill(os.getpid(), signal.SIGSEGV)
    if job.request.path.stem == "hangs":
        time.sleep(600)
    return frames._decode_one(job)
