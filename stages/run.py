"""What all stages share: arguments, logging, and errors in one line."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from structalign import paths
from structalign.config.pipeline import is_code, stage_entry
from structalign.config.schema import Config
from structalign.util.command import command_parser, errors_in_one_line, parse
from structalign.util.errors import UserError
from structalign.util.machine import keep_freed_memory

_PATTERNS = {
    "${key}": "NN",
    "${item.previous}": "(NN-1)",
    "${last}": "K",
    "${data.name}": "DATA",
    "${annotations}": "data.csv or conf/data/DATA.yaml",
}


def run(stage: Callable[..., None], task: bool = False) -> None:
    """Run a stage as a program and exit with its status.

    Parameters
    ----------
    stage : callable
        The stage's `main(config)`, or `main(config, task)` if it runs once per task.
        Its docstring becomes the program's help.
    task : bool
        Whether the program takes `--task`.
    """
    name = Path(sys.argv[0]).stem
    parser = command_parser(stage.__doc__, describe_io(name))
    if task:
        parser.add_argument("--task", type=int, required=True, help="which task, from 1")
    parser.add_argument("--params", default="params.yaml", help="parameter file (default: %(default)s)")
    args = parse(parser)
    keep_freed_memory()
    with errors_in_one_line(args.debug):
        config = Config.load(args.params)
        with single_instance(name + (f"-{args.task:02d}" if task else "")):
            if task:
                stage(config, _checked_task(args.task, config.K))
            else:
                stage(config)


def describe_io(name: str) -> str:
    """Say what a stage reads, from which parameters, and what it writes, as `dvc.yaml` declares it.

    Returns
    -------
    str
        Lines for the end of the stage's help; modules of the program itself are left out.
    """
    stage = stage_entry(name)
    rows = {
        "reads": [item for item in stage.get("deps", []) if not is_code(item)],
        "parameters": stage.get("params", []),
        "writes": [next(iter(item)) if isinstance(item, dict) else item for item in _outputs(stage)],
    }
    lines = [f"  {label:11} {', '.join(items) or 'nothing'}" for label, items in rows.items()]
    for pattern, word in _PATTERNS.items():
        lines = [line.replace(pattern, word) for line in lines]
    return "\n".join(["as dvc.yaml has it:", *lines]) if stage else ""


def _outputs(stage: dict[str, Any]) -> list[Any]:
    return [*stage.get("outs", []), *stage.get("metrics", [])]


@contextmanager
def single_instance(name: str) -> Iterator[None]:
    """Hold the lock of a stage: if `dvc` is killed its child lives on, and two of a stage must never write at once.

    Raises
    ------
    UserError
        If another process runs the same stage in this folder; the message gives its number.
    """
    paths.LOCKS.mkdir(parents=True, exist_ok=True)
    owner = paths.LOCKS / f"{name}.pid"
    try:
        with FileLock(paths.LOCKS / f"{name}.lock", timeout=0):
            owner.write_text(str(os.getpid()), encoding="utf-8")
            yield
    except Timeout:
        process = owner.read_text(encoding="utf-8")
        raise UserError(
            f"stage {name} is still running here as process {process}: let it end, or stop it with `kill {process}`"
        ) from None


def _checked_task(task: int, num_tasks: int) -> int:
    if not 1 <= task <= num_tasks:
        raise UserError(f"--task {task}: params.yaml has K = {num_tasks}, so tasks go from 1 to {num_tasks}")
    return task
