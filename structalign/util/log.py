"""Logging and progress bars, configured once for every stage."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Iterable, Iterator
from datetime import datetime
from typing import Any, TypeVar

from loguru import logger as log
from tqdm import tqdm

__all__ = ["configure", "log", "progress", "progress_bar"]

Item = TypeVar("Item")

_SECONDS = 10.0  # between two lines of a bar that no terminal shows
_FORMAT = "<green>{time:HH:mm:ss}</green> <level>{level: <7}</level> {message}"


def configure(level: str = "INFO") -> None:
    """Send log lines to stderr at `level`, written so that they do not tear a progress bar."""
    log.remove()
    log.add(
        lambda line: tqdm.write(line, file=sys.stderr, end=""),
        format=_FORMAT,
        level=level,
        colorize=sys.stderr.isatty(),
    )


class _Lines(tqdm):
    """A bar for a log: a line of its own every ten seconds, and none for what is done sooner."""

    def __init__(self, **keys: Any) -> None:
        bar = "{l_bar} {n_fmt}/{total_fmt} [{elapsed}<{remaining}, {rate_fmt}{postfix}]"
        super().__init__(file=io.StringIO(), bar_format=bar, delay=_SECONDS, mininterval=_SECONDS, **keys)

    def display(self, msg: str | None = None, pos: int | None = None) -> bool:
        """Write a line where tqdm would draw; an empty message would wipe the bar away, and there is none."""
        if msg is None:
            # not through `log`: a thread of tqdm's may be here, holding a lock that `log` waits for
            print(f"{datetime.now():%H:%M:%S}         {self}", file=sys.stderr, flush=True)
        return True


def progress_bar(total: int | None = None, desc: str = "", unit: str = "it") -> tqdm:
    """A bar on a terminal; elsewhere (a log file, a queue worker) at most one line every ten seconds."""
    keys = {"total": total, "desc": desc, "unit": unit, "disable": os.environ.get("STRUCTALIGN_PROGRESS") == "0"}
    return tqdm(dynamic_ncols=True, **keys) if sys.stderr.isatty() else _Lines(**keys)


def progress(items: Iterable[Item], total: int | None = None, desc: str = "", unit: str = "it") -> Iterator[Item]:
    """Iterate over `items` behind a `progress_bar`."""
    if total is None and hasattr(items, "__len__"):
        total = len(items)  # type: ignore[arg-type]
    with progress_bar(total, desc, unit) as bar:
        for item in items:
            yield item
            bar.update()
