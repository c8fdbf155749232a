"""Logging and progress bars, configured once for every stage."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator
from typing import TypeVar

from loguru import logger as log
from tqdm import tqdm

__all__ = ["configure", "log", "progress", "progress_bar"]

Item = TypeVar("Item")

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


def progress_bar(total: int | None = None, desc: str = "", unit: str = "it") -> tqdm:
    """A bar on a terminal; elsewhere (a log file, a queue worker) at most one line every ten seconds."""
    terminal = sys.stderr.isatty()
    return tqdm(
        total=total,
        desc=desc,
        unit=unit,
        dynamic_ncols=terminal,
        mininterval=0.1 if terminal else 10.0,
        disable=os.environ.get("STRUCTALIGN_PROGRESS") == "0",
    )


def progress(items: Iterable[Item], total: int | None = None, desc: str = "", unit: str = "it") -> Iterator[Item]:
    """Iterate over `items` behind a `progress_bar`."""
    if total is None and hasattr(items, "__len__"):
        total = len(items)  # type: ignore[arg-type]
    with progress_bar(total, desc, unit) as bar:
        for item in items:
            yield item
            bar.update()
