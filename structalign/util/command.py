"""What every program shares: its command line, logging, and errors in one line."""

from __future__ import annotations

import argparse
import errno
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from structalign.util.errors import UserError
from structalign.util.log import configure, log

if TYPE_CHECKING:
    from rich.console import Console


def command_parser(about: str | None, epilog: str | None = None) -> argparse.ArgumentParser:
    """Make a parser whose help keeps the line ends of the program's docstring."""
    raw = argparse.RawDescriptionHelpFormatter
    return argparse.ArgumentParser(description=about, epilog=epilog, formatter_class=raw)


def console() -> Console:
    """Where tables are printed: as wide as the terminal, or 160 characters in a file or a pipe."""
    from rich.console import Console  # stages print no tables, and start without it

    return Console(width=None if sys.stdout.isatty() else 160)


def parse(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """Parse the command line, `--debug` included, and set logging up accordingly."""
    parser.add_argument("--debug", action="store_true", help="log details, and show tracebacks of errors")
    args = parser.parse_args()
    configure("DEBUG" if args.debug else "INFO")
    return args


@contextmanager
def errors_in_one_line(debug: bool) -> Iterator[None]:
    """End the program with one line if the user can fix what went wrong; `debug` lets the traceback through."""
    try:
        yield
    except (UserError, OSError, MemoryError, RuntimeError, KeyboardInterrupt) as error:
        if debug or (isinstance(error, RuntimeError) and not _out_of_memory(error)):
            raise
        log.error(describe_error(error))
        sys.exit(130 if isinstance(error, KeyboardInterrupt) else 1)


def _out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out; PyTorch says so with a RuntimeError of its own on a GPU and with another on the CPU."""
    words = ("out of memory", "can't allocate memory")
    return isinstance(error, MemoryError) or any(word in str(error).lower() for word in words)


def describe_error(error: BaseException) -> str:
    """Put an error into one line for the person at the keyboard."""
    if isinstance(error, KeyboardInterrupt):
        return "interrupted"
    if _out_of_memory(error) and not isinstance(error, UserError | OSError):
        return "out of memory: raise train.devices, or lower train.batch_size, evaluate.batch_size or machine.workers"
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return f"disk full while writing {error.filename or 'an output'}: free some space and run again"
    return " ".join(str(error).split())
