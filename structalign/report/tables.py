"""Turning what the last evaluation left into tables: the summary, and long-form CSVs for DVC's plots.

The CSVs have fixed names and the same columns whatever the method and the number of tasks, because DVC
compares two revisions file by file. What a method does not have (no loss, no drift) gives a table with a
header and no rows, or an empty cell.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file

from structalign.evaluation.metric_table import COST, METRICS, computed
from structalign.report.published import published_results
from structalign.util.cost import known_cost, training_id
from structalign.util.errors import UserError
from structalign.util.files import read_json

MODALITIES = ("text", "video")
TEST_SET_WARNING = "epoch picked on the test set"

_FINGERPRINT_DIGITS = 12  # enough to tell data apart, short enough for a column of `dvc exp show`

Table = list[dict[str, Any]]


@dataclass(frozen=True)
class Run:
    """Everything the last evaluation of one run recorded (`metrics/task-NN`).

    Attributes
    ----------
    method, variant, data : str
        Names of the method, of its variant (``method`` or ``released``) and of the dataset.
    num_tasks : int
        Number of tasks K.
    seed : int
        Seed of the run.
    select : str
        Which epoch was kept: ``last`` or ``best_on_test``.
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
    loss : list of dict
        Training curves of all tasks, one row for each step and term; empty for a method that trains nothing.
    features : dict of str to ndarray
        Class means, feature samples and drift; empty where the method keeps none.
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
    loss: list[dict[str, Any]] = field(default_factory=list)
    features: dict[str, np.ndarray] = field(default_factory=dict)
    shown: dict[str, Any] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """One line that says which run a number belongs to."""
        method = f"{self.method} (as released)" if self.variant == "released" else self.method
        return f"{method} on {self.data}, K = {self.num_tasks}, seed {self.seed}"

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
        Where a file is damaged, or `recall.json` is missing, empty or lacks a key.
    """
    folder = Path(folder)
    path = folder / "recall.json"
    cost, loss, features = (folder / name for name in ("cost.json", "loss.csv", "features.safetensors"))
    examples = folder / "examples.json"
    record = read_json(path)
    try:
        run = Run(
            method=record["method"],
            variant=record["variant"],
            data=record["data"],
            num_tasks=record["K"],
            seed=record["seed"],
            select=record["select"],
            protocol=record["protocol"],
            data_fingerprint=record["data_fingerprint"],
            tasks=record["tasks"],
            rows=record["rows"],
            cost=read_json(cost) if cost.exists() else [],
            loss=_read_loss(loss) if loss.exists() else [],
            features=_read_features(features) if features.exists() else {},
            shown=_read_shown(examples) if examples.exists() else {},
        )
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


def check_same_data(runs: Mapping[str, Mapping[str, Any]]) -> None:
    """Refuse to compare runs that ranked different data.

    Parameters
    ----------
    runs : mapping of str to mapping
        Per revision its `summary.json` or `recall.json`: whatever has ``data_fingerprint``.

    Raises
    ------
    UserError
        Naming the first revision and the first one that differs from it.
    """
    fingerprints = {
        name: str(run.get("data_fingerprint", "none"))[:_FINGERPRINT_DIGITS] for name, run in runs.items()
    }
    for name, fingerprint in fingerprints.items():
        first = next(iter(fingerprints))
        if fingerprint == "none" or fingerprint != fingerprints[first]:
            raise UserError(
                f"cannot compare {first} (data {fingerprints[first]}) with {name} (data {fingerprint}): "
                "they ranked different data; compare revisions with equal data, frames and split parameters"
            )


def summary(run: Run) -> dict[str, Any]:
    """Final numbers of a run, flat, for `dvc metrics` and `dvc exp show`.

    Parameters
    ----------
    run : Run

    Returns
    -------
    dict
        Every metric of `METRICS` that was recorded, trained parameters, missing videos, and what a comparison needs
        to know: ``select``, ``warning`` (only if the epoch was picked on the test set), ``data_fingerprint`` and
        ``training``, the id that `cost_of` takes. Seconds and memory differ from run to run and are not in it.
    """
    numbers: dict[str, Any] = {
        metric.key: run.rows[-1][metric.key] for metric in METRICS if metric.key in run.rows[-1]
    }
    if run.cost:
        numbers["trained_parameters"] = max(task["trained_parameters"] for task in run.cost)
    numbers["missing_videos"] = sum(task.get("missing", 0) for task in run.tasks)
    rounded = {key: round(value, 4) if isinstance(value, float) else value for key, value in numbers.items()}
    rounded["select"] = run.select
    if run.warning:
        rounded["warning"] = run.warning
    rounded["data_fingerprint"] = run.data_fingerprint[:_FINGERPRINT_DIGITS]
    rounded["training"] = training_id(" ".join(task["training"] for task in run.cost))
    return rounded


def cost_of(run: Run) -> dict[str, float]:
    """Seconds and memory of a run (the keys of `COST`), as far as this machine has measured them."""
    none = {"seconds": 0.0, "peak_memory_mb": 0.0}
    tasks = [{**task, **(known_cost(task["training"]) if task["steps"] else none)} for task in run.cost]
    return {key: round(value, 2) for key, value in computed(COST, tasks).items()}


def recall_table(run: Run) -> Table:
    """One row per learnt task: every metric over all tasks seen by then."""
    return [
        {"after": row["after"], **{metric.key: row.get(metric.key) for metric in METRICS}, "select": run.select}
        for row in run.rows
    ]


def accuracy_table(run: Run) -> Table:
    """The lower triangle of A, a row a cell: R@1 (percent) of a task's queries within its own gallery."""
    return [
        {"after": row["after"], "task": task, "r1": value, "select": run.select}
        for row in run.rows
        for task, value in enumerate(row["A"], start=1)
    ]


def loss_table(run: Run) -> Table:
    """Training curves of all tasks in long form, with `global_step`, the step counted on from task to task."""
    table: Table = []
    offset = 0
    for task in sorted({row["task"] for row in run.loss}):
        rows = [row for row in run.loss if row["task"] == task]
        table += [{**row, "global_step": offset + row["step"]} for row in rows]
        offset += max(row["step"] for row in rows)
    return table


def drift_table(run: Run) -> Table:
    """Cosine between a class's mean when learnt and its mean after each task, a row a class and task."""
    table: Table = []
    classes = run.features.get("classes", np.zeros(0, dtype=int))
    for modality in MODALITIES:
        cosines = run.features.get(f"drift/{modality}", np.zeros((0, len(classes))))  # [t, C]
        for after, row in enumerate(cosines, start=1):
            for category, cosine in zip(classes, row, strict=True):
                if math.isfinite(cosine):
                    name, learnt_in = run.categories[int(category)]
                    table.append(
                        {
                            "after": after,
                            "learnt_in": learnt_in,
                            "category": name,
                            "modality": modality,
                            "cosine": float(cosine),
                        }
                    )
    return table


def frame_table(run: Run) -> Table:
    """How near the classes of each task are to the frame after each task: means over their classes, in long form."""
    learnt_in = [task for _, task in run.categories]
    table: Table = []
    for row in run.rows:
        for modality, measures in row.get("by_class", {}).items():
            for measure, values in measures.items():
                for task in range(1, row["after"] + 1):
                    own = [value for value, learnt in zip(values, learnt_in, strict=False) if learnt == task]
                    facts = {"after": row["after"], "learnt_in": task, "modality": modality, "measure": measure}
                    table.append({**facts, "value": float(np.mean(own))})
    return table


def geometry_table(run: Run) -> Table:
    """Neural-collapse measures of the class means by task and modality, in long form."""
    return [
        {"after": row["after"], "modality": modality, "measure": measure, "value": value}
        for row in run.rows
        for modality, measures in row.get("geometry", {}).items()
        for measure, value in measures.items()
        if isinstance(value, int | float)
    ]


def published_table(run: Run) -> Table:
    """Set the final R@1 and BWF beside what is published on the benchmark; elsewhere the run stands alone."""
    benchmark = f"{run.data.upper()}-{run.num_tasks}"
    published = published_results(benchmark) if run.protocol == "published" else []
    table: Table = [
        {
            "benchmark": benchmark,
            "method": result.method,
            "r1": result.r1,
            "bwf": result.bwf,
            "source": "published",
            "select": "best_on_test",
        }
        for result in published
    ]
    final = run.rows[-1]
    own = {
        "benchmark": benchmark,
        "method": f"{run.method} (this run)",
        "r1": final["r1"],
        "bwf": final.get("bwf", 0.0),
        "source": "this run",
        "select": run.select,
    }
    return [*table, own]


TABLES = {
    "recall_by_task": (
        recall_table,
        ("after", *(metric.key for metric in METRICS), "select"),
    ),
    "accuracy_matrix": (accuracy_table, ("after", "task", "r1", "select")),
    "loss": (loss_table, ("task", "step", "global_step", "term", "value", "weighted", "lr")),
    "drift": (drift_table, ("after", "learnt_in", "category", "modality", "cosine")),
    "geometry": (geometry_table, ("after", "modality", "measure", "value")),
    "frame": (frame_table, ("after", "learnt_in", "modality", "measure", "value")),
    "published": (published_table, ("benchmark", "method", "r1", "bwf", "source", "select")),
}


def to_csv(table: Iterable[Mapping[str, Any]], columns: tuple[str, ...]) -> str:
    """Lay a table out as CSV; an absent value is an empty cell, a float keeps six significant digits."""
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    for row in table:
        writer.writerow({column: _cell(row.get(column)) for column in columns})
    return text.getvalue()


def _cell(value: Any) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _read_features(path: Path) -> dict[str, np.ndarray]:
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path}: damaged ({error}); run the last evaluate stage again") from None


def _read_loss(path: Path) -> list[dict[str, Any]]:
    """Rows of a training curve in long form (`structalign.training.loss_curve`)."""
    rows = []
    with path.open(encoding="utf-8", newline="") as stream:
        for line, row in enumerate(csv.DictReader(stream), start=2):
            try:
                numbers = {key: float(row[key]) for key in ("value", "weighted", "lr")}
                rows.append({"task": int(row["task"]), "step": int(row["step"]), "term": row["term"], **numbers})
            except (TypeError, ValueError, KeyError):
                raise UserError(
                    f"{path}, line {line}: not a row of a loss curve; run the train stages again"
                ) from None
    return rows
