"""Tables of one run: its summary, and the CSV files behind figures and `dvc plots`.

The CSV files have fixed names and the same columns whatever the method and the number of tasks, because DVC compares
two revisions file by file. What a method does not have (no loss, no drift) gives a table without rows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from structalign import paths
from structalign.evaluation.geometry import GEOMETRY
from structalign.evaluation.metric_table import COST, METRICS, Metric, computed
from structalign.report.run import MODALITIES, Run
from structalign.util.cost import keep_cost, known_cost, training_id
from structalign.util.errors import UserError
from structalign.util.files import atomic_write_json, atomic_write_text

PUBLISHED_NOTE = "published numbers: epoch picked on the test set"
"""The benchmark's authors keep the epoch with the best R@1 on the test queries (METHOD.md, section 4)."""

TERM_NAMES = {  # a term without an entry is shown under its own name
    "scl": "contrastive (SCL)",
    "crp": "relation preserving (CRP)",
    "etf": "ETF alignment",
    "pseudo": "contrastive with pseudo features",
    "distill": "distillation",
    "cross": "cross-task",
}

_PUBLISHED = Path(__file__).with_name("published.csv")
_FINGERPRINT_DIGITS = 12  # enough to tell data apart, short enough for a column of `dvc exp show`


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
        ``training``, the id under which `util.cost.known_cost` finds seconds and memory, which differ from run to
        run and are not in it.
    """
    numbers: dict[str, Any] = {
        metric.key: run.rows[-1][metric.key] for metric in METRICS if metric.key in run.rows[-1]
    }
    if run.cost:
        numbers["trained_parameters"] = max(task["trained_parameters"] for task in run.cost)
    numbers["missing_videos"] = sum(task.get("missing", 0) for task in run.tasks)
    numbers["changed_or_doubtful"] = sum(sum(task.get("notes", {}).values()) for task in run.tasks)
    rounded = {key: round(value, 4) if isinstance(value, float) else value for key, value in numbers.items()}
    rounded["select"] = run.select
    if run.warning:
        rounded["warning"] = run.warning
    rounded["data_fingerprint"] = run.data_fingerprint[:_FINGERPRINT_DIGITS]
    rounded["training"] = training_id(" ".join(task["training"] for task in run.cost))
    return rounded


def cost_of(run: Run) -> dict[str, float]:
    """Seconds and memory of a run (the keys of `COST`), if this machine has measured them."""
    none = {"seconds": 0.0, "peak_memory_mb": 0.0}
    tasks = [{**task, **(known_cost(task["training"]) if task["steps"] else none)} for task in run.cost]
    return {key: round(value, 2) for key, value in computed(COST, tasks).items()}


def recall_table(run: Run) -> pd.DataFrame:
    """Every metric over all seen tasks, a row after each task."""
    rows = [{"after": row["after"], **{metric.key: row.get(metric.key) for metric in METRICS}} for row in run.rows]
    return pd.DataFrame(rows).assign(select=run.select)


def metric_table(run: Run) -> pd.DataFrame:
    """The metrics that figures or headlines show, in long form: after, panel, value."""
    shown = [metric for metric in METRICS if metric.panel or metric.headline]
    rows = [
        {"after": row["after"], "panel": _panel(metric), "value": row[metric.key], "select": run.select}
        for metric in shown
        for row in run.rows
        if row.get(metric.key) is not None
    ]
    return pd.DataFrame(rows)


def _panel(metric: Metric) -> str:
    """Title of a panel that shows one metric alone."""
    ideal = "" if metric.ideal is None or not metric.better else f" (ideal {metric.ideal:g})"
    return f"{metric.name} {metric.direction}{ideal}".strip()


def accuracy_table(run: Run) -> pd.DataFrame:
    """The lower triangle of A, a row a cell: R@1 (percent) of a task's queries within its own gallery."""
    rows = [
        {"after": row["after"], "task": task, "r1": value}
        for row in run.rows
        for task, value in enumerate(row["A"], start=1)
    ]
    return pd.DataFrame(rows).assign(select=run.select)


def category_table(run: Run) -> pd.DataFrame:
    """After the last task: R@1 (percent) of each category's queries over all seen videos, and its training videos."""
    counts = [count for task in run.tasks for count in task.get("train_videos", ())]
    rows = [
        {"category": name, "learnt_in": task, "train_videos": count, "r1": r1}
        for (name, task), count, r1 in zip(run.categories, counts, run.rows[-1].get("category_r1", ()), strict=False)
    ]
    return pd.DataFrame(rows).assign(select=run.select)


def loss_table(run: Run) -> pd.DataFrame:
    """Training curves of all tasks; `global_step` counts on from task to task."""
    if run.loss.empty:
        return run.loss
    ends = run.loss.groupby("task").step.max().cumsum().shift(fill_value=0)
    names = run.loss.term.map(lambda term: TERM_NAMES.get(term, term))
    return run.loss.assign(global_step=run.loss.step + run.loss.task.map(ends), panel=names)


def drift_table(run: Run) -> pd.DataFrame:
    """Cosine between a class's mean when learnt and its mean after each task, a row a class and task."""
    classes = run.features.get("classes", np.zeros(0, dtype=int))
    parts = []
    for modality in MODALITIES:
        cosines = run.features.get(f"drift/{modality}", np.zeros((0, len(classes))))  # [t,C]
        after, column = np.nonzero(np.isfinite(cosines))
        names, learnt_in = (
            zip(*(run.categories[int(classes[index])] for index in column), strict=True) if len(column) else ((), ())
        )
        columns = {"after": after + 1, "learnt_in": learnt_in, "category": names, "cosine": cosines[after, column]}
        parts.append(
            pd.DataFrame(columns).assign(modality=modality, panel=f"{modality} ↑ higher is better (ideal 1)")
        )
    return pd.concat(parts)


def etf_table(run: Run) -> pd.DataFrame:
    """How close the classes of each task are to the simplex ETF after each task: means over their classes."""
    learnt_in = [task for _, task in run.categories]
    rows = [
        {"after": row["after"], "learnt_in": task, "modality": modality, "measure": measure, "value": value}
        for row in run.rows
        for modality, measures in row.get("by_class", {}).items()
        for measure, values in measures.items()
        for task, value in pd.Series(values).groupby(learnt_in[: len(values)]).mean().items()
    ]
    return _with_panels(pd.DataFrame(rows))


def geometry_table(run: Run) -> pd.DataFrame:
    """Measures of neural collapse by task and modality."""
    rows = [
        {"after": row["after"], "modality": modality, "measure": measure, "value": value}
        for row in run.rows
        for modality, measures in row.get("geometry", {}).items()
        for measure, value in measures.items()
    ]
    return _with_panels(pd.DataFrame(rows))


def _with_panels(table: pd.DataFrame) -> pd.DataFrame:
    titles = {measure.key: _panel(measure) for measure in GEOMETRY}
    return table if table.empty else table.assign(panel=table.measure.map(titles))


def published_results(benchmark: str) -> pd.DataFrame:
    """Published results on a benchmark such as ``MSRVTT-10`` (METHOD.md, section 6); empty for an unknown one.

    Returns
    -------
    DataFrame
        method, benchmark, r1 (percent), bwf (points), trained_parameters_millions.
    """
    table = pd.read_csv(_PUBLISHED)
    return table[table.benchmark == benchmark]


def published_table(run: Run) -> pd.DataFrame:
    """The final R@1 and BWF of the run, below what is published on its benchmark, if anything is."""
    benchmark = f"{run.data.upper()}-{run.num_tasks}"
    known = published_results(benchmark if run.protocol == "published" else "")
    final = run.rows[-1]
    note = f"this run; {run.warning}" if run.warning else "this run"
    own = {"method": f"{run.name} ({note})", "r1": final["r1"], "bwf": final.get("bwf", 0.0), "source": "this run"}
    rows = [
        *known.assign(source="published", select="best_on_test").to_dict("records"),
        {**own, "select": run.select},
    ]
    return pd.DataFrame(rows).assign(benchmark=benchmark)


_LONG = ("modality", "measure", "value", "panel")
TABLES: dict[str, tuple[Callable[[Run], pd.DataFrame], Sequence[str]]] = {
    "recall_by_task": (recall_table, ("after", *(metric.key for metric in METRICS), "select")),
    "metrics": (metric_table, ("after", "panel", "value", "select")),
    "accuracy_matrix": (accuracy_table, ("after", "task", "r1", "select")),
    "recall_by_category": (category_table, ("category", "learnt_in", "train_videos", "r1", "select")),
    "loss": (loss_table, ("task", "step", "global_step", "term", "value", "weighted", "lr", "panel")),
    "drift": (drift_table, ("after", "learnt_in", "category", "modality", "cosine", "panel")),
    "geometry": (geometry_table, ("after", *_LONG)),
    "etf": (etf_table, ("after", "learnt_in", *_LONG)),
    "published": (published_table, ("benchmark", "method", "r1", "bwf", "source", "select")),
}
"""Tables by the names of their files, each with its columns."""


def tables(run: Run) -> dict[str, pd.DataFrame]:
    """Make all tables of a run, each with all of its columns."""
    return {name: make(run).reindex(columns=list(columns)) for name, (make, columns) in TABLES.items()}


def to_csv(table: pd.DataFrame) -> str:
    """Write a table as CSV; floats keep six significant digits."""
    return table.to_csv(index=False, lineterminator="\n", float_format="%.6g")


def write_tables(run: Run) -> dict[str, Any]:
    """Write the CSVs under `plots/` and the summary, note what the training took, and return the summary."""
    for name, table in tables(run).items():
        atomic_write_text(paths.PLOTS / f"{name}.csv", to_csv(table))
    numbers = summary(run)
    atomic_write_json(paths.SUMMARY, numbers)
    if cost := cost_of(run):
        keep_cost(numbers["training"], cost)
    return numbers


def outcome(run: Run, numbers: Mapping[str, Any]) -> str:
    """Say in a line how a run ended, from its `summary`."""
    cost = cost_of(run)
    return (
        f"{run.label}: R@1 {numbers['r1']:.2f}, BWF {numbers['bwf']:.2f}"
        + (f", training {cost['train_seconds']:.0f} s" if "train_seconds" in cost else "")
        + (f" ({run.warning})" if run.warning else "")
    )
