"""The record of one run, as the last evaluate stage left it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from safetensors import SafetensorError
from safetensors.numpy import load_file

from structalign.util.errors import UserError
from structalign.util.files import read_json

MODALITIES = ("text", "video")
TEST_SET_WARNING = "epoch picked on the test set"


@dataclass(frozen=True)
class Run:
    """Everything the last evaluation of one run recorded (`metrics/task-NN`).

    Attributes
    ----------
    method, variant, data : str
        Names of the method, of its variant (a file in conf/variant) and of the dataset.
    num_tasks : int
        Number of tasks K.
    seed : int
        Seed of the run.
    select : str
        Which epoch was kept: ``last``, ``best_on_val`` or ``best_on_test``.
    protocol : str
        Where the split comes from: ``published`` or ``fewshot``.
    data_fingerprint : str
        Hexadecimal digest of the data that were ranked.
    tasks : list of dict
        Per task: number, categories, queries, videos, missing videos, names of the categories.
    rows : list of dict
        Per task learnt so far: recall (percent), ranks, BWF and the row of A after it.
    cost : list of dict
        Per task: steps and trained parameters, and the id under which `structalign.util.cost` knows its seconds.
    loss : DataFrame
        Training curves of all tasks, a row for each step and term (`structalign.training.loss_curve`); empty for a
        method that trains nothing.
    features : dict of str to ndarray
        Class means, feature samples and drift; empty if the method keeps none.
    shown : dict
        Example queries with their results and pictures (`structalign.evaluation.examples.illustrate`).
    """

    method: str
    variant: str
    data: str
    num_tasks: int
    seed: int
    select: str
    protocol: str
    data_fingerprint: str
    tasks: list[dict[str, Any]]
    rows: list[dict[str, Any]]
    cost: list[dict[str, Any]] = field(default_factory=list)
    loss: pd.DataFrame = field(default_factory=pd.DataFrame)
    features: dict[str, np.ndarray] = field(default_factory=dict)
    shown: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Method and variant."""
        said = {"method": "", "released": " (as released)"}.get(self.variant, f" ({self.variant})")
        return f"{self.method}{said}"

    @property
    def label(self) -> str:
        """One line that says which run a number belongs to."""
        return f"{self.name} on {self.data}, K = {self.num_tasks}, seed {self.seed}"

    @property
    def warning(self) -> str:
        """What must stand beside every number of this run; empty for most runs."""
        return TEST_SET_WARNING if self.select == "best_on_test" else ""

    @property
    def categories(self) -> list[tuple[str, int]]:
        """Name and task of every category, indexed by its global id (ids follow the order of the tasks)."""
        found: list[tuple[str, int]] = []
        for task in self.tasks:
            names = task.get("category_names") or [str(len(found) + index) for index in range(task["categories"])]
            found += [(name, task["task"]) for name in names]
        return found


def read_run(folder: str | Path) -> Run:
    """Read the record of a run.

    Parameters
    ----------
    folder : path
        A folder `metrics/task-NN` as the evaluate stage writes it; all but `recall.json` may be absent.

    Returns
    -------
    Run

    Raises
    ------
    UserError
        If a file is damaged, or `recall.json` is missing, empty or lacks a key.
    """
    folder = Path(folder)
    path = folder / "recall.json"
    record = read_json(path)
    optional = {
        "cost": (folder / "cost.json", read_json),
        "loss": (folder / "loss.csv", _read_loss),
        "features": (folder / "features.safetensors", _read_features),
        "shown": (folder / "examples.json", _read_shown),
    }
    found = {name: read(file) for name, (file, read) in optional.items() if file.exists()}
    facts = ("method", "variant", "data", "seed", "select", "protocol", "data_fingerprint", "tasks", "rows")
    try:
        run = Run(num_tasks=record["K"], **{name: record[name] for name in facts}, **found)
    except KeyError as error:
        raise UserError(f"{path}: key {error} is missing; run the last evaluate stage again") from None
    if not run.rows:
        raise UserError(f"{path}: no rows; at least one evaluated task is needed")
    return run


def _read_shown(path: Path) -> dict[str, Any]:
    try:
        return read_json(path)["shown"]
    except (KeyError, TypeError):
        raise UserError(f"{path}: damaged; run the last evaluate stage again") from None


def _read_features(path: Path) -> dict[str, np.ndarray]:
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path}: damaged ({error}); run the last evaluate stage again") from None


def _read_loss(path: Path) -> pd.DataFrame:
    numbers = {"task": int, "step": int, "epoch": int, "lr": float, "value": float, "weighted": float}
    try:
        return pd.read_csv(path, dtype={**numbers, "term": str}, usecols=[*numbers, "term"])
    except ValueError as error:
        raise UserError(f"{path}: damaged ({error}); run the train stages again") from None
