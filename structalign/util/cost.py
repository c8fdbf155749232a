"""Seconds and memory of trainings, kept outside of DVC because they differ from run to run.

Costs lie in `.cache/cost` of the project, also for experiments that DVC runs in temporary copies of it. A training is
known by its loss curve: the same curve means the same training, whichever branch or experiment it belongs to. On a
machine that has not run a training, its cost is unknown.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from structalign import paths
from structalign.util.errors import UserError
from structalign.util.files import atomic_write_json, project_folder, read_json


def training_id(curve: str) -> str:
    """Name of a training, from the text of its loss curve."""
    return hashlib.sha256(curve.encode()).hexdigest()[:12]


def keep_cost(training: str, cost: dict[str, float]) -> None:
    """Store what a training took under its `training_id`; an earlier measurement is replaced."""
    atomic_write_json(_path(training), cost)


def known_cost(training: str) -> dict[str, float]:
    """Return what a training took; empty if this machine has not run it, or its file is damaged."""
    try:
        return read_json(_path(training)) if training else {}
    except UserError:
        return {}


def _path(training: str) -> Path:
    return project_folder() / paths.COST / f"{training}.json"
