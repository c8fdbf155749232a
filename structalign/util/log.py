"""Logging and progress bars, configured once for every stage."""

from __future__ import annotations

import io
import logging
import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import Any, TypeVar

from tqdm import tqdm

__all__ = ["configure", "log", "progress", "progress_bar", "without_logging"]

Item = TypeVar("Item")

log = logging.getLogger("structalign")

_SECONDS = 10.0  # between two lines of a bar that no terminal shows
_COLOURS = {"WARNING": "\033[33m", "ERROR": "\033[31m"}


class _Handler(logging.Handler):
    """Writes lines to stderr without tearing a progress bar."""

    def emit(self, record: logging.LogRecord) -> None:
        line = self.format(record)
        colour = _COLOURS.get(record.levelname) if sys.stderr.isatty() else None
        tqdm.write(f"{colour}{line}\033[0m" if colour else line, file=sys.stderr)


def configure(level: int | str = "INFO") -> None:
    """Send the project's log lines to stderr, from `level` on."""
    handler = _Handler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)-7s %(message)s", "%H:%M:%S"))
    log.handlers = [handler]
    log.propagate = False
    log.setLevel(level)


@contextmanager
def without_logging() -> Iterator[None]:
    """Silence all loggers of this process; for libraries that log what they raise as well."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(before)


class _Lines(tqdm):
    """A bar for a log: a line of its own every ten seconds, and none for what is done sooner."""

    def __init__(self, **keys: Any) -> None:
        bar = "{l_bar} {n_fmt}/{total_fmt} [{elapsed}<{remaining}, {rate_fmt}{postfix}]"
        super().__init__(file=io.StringIO(), bar_format=bar, delay=_SECONDS, mininterval=_SECONDS, **keys)

    def display(self, msg: str | None = None, pos: int | None = None) -> bool:
        """Write a line when tqdm would draw; an empty message clears a bar, and there is none."""
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
