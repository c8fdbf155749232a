"""What all stages share: arguments, logging, and errors in one line."""

from __future__ import annotations

import argparse
import errno
import sys
from collections.abc import Callable

from structalign.config import Config
from structalign.errors import UserError
from structalign.log import configure, log


def run(stage: Callable[..., None], task: bool = False) -> None:
    """Run a stage as a program and exit with its status.

    Parameters
    ----------
    stage : callable
        The stage's `main(config)`, or `main(config, task)` where it runs once per task.
        Its docstring becomes the program's help.
    task : bool
        Whether the program takes `--task`.
    """
    parser = argparse.ArgumentParser(description=stage.__doc__)
    if task:
        parser.add_argument("--task", type=int, required=True, help="which task, from 1")
    parser.add_argument("--params", default="params.yaml", help="parameter file (default: %(default)s)")
    parser.add_argument("--debug", action="store_true", help="log details, and show tracebacks of errors")
    args = parser.parse_args()
    configure("DEBUG" if args.debug else "INFO")
    try:
        config = Config.load(args.params)
        if task:
            stage(config, _checked_task(args.task, config.K))
        else:
            stage(config)
    except (UserError, OSError, MemoryError, KeyboardInterrupt) as error:
        if args.debug:
            raise
        log.error(describe(error))
        sys.exit(130 if isinstance(error, KeyboardInterrupt) else 1)


def _checked_task(task: int, num_tasks: int) -> int:
    if not 1 <= task <= num_tasks:
        raise UserError(f"--task {task}: params.yaml has K = {num_tasks}, so tasks go from 1 to {num_tasks}")
    return task


def describe(error: BaseException) -> str:
    """Put an error into one line for the person at the keyboard."""
    if isinstance(error, KeyboardInterrupt):
        return "interrupted"
    if isinstance(error, MemoryError):
        return "out of memory: lower train.batch_size, evaluate.batch_size or frames.workers"
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return f"disk full while writing {error.filename or 'an output'}: free some space and run again"
    return " ".join(str(error).split())
