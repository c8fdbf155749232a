"""Compare runs over the same seeds: mean and spread per run, and paired differences against a reference."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd
from scipy import stats


@dataclass(frozen=True)
class Paired:
    """Difference of two runs over the seeds that both have.

    Attributes
    ----------
    mean : float
        Mean of run minus reference, in percentage points.
    low, high : float
        Confidence interval of that mean (Student's t); NaN with fewer than two common seeds.
    seeds : int
        Number of common seeds.
    """

    mean: float
    low: float
    high: float
    seeds: int

    def __str__(self) -> str:
        if self.seeds < 2:
            return f"{self.mean:+.2f}"
        return f"{self.mean:+.2f} [{self.low:+.2f}, {self.high:+.2f}]"


def paired_difference(run: pd.Series, reference: pd.Series, confidence: float = 0.95) -> Paired:
    """Compare two runs seed by seed.

    Published gaps are about one point, less than seeds differ among themselves; the pairs share data, order and
    initialisation, so their difference is the sharper measure.

    Parameters
    ----------
    run, reference : Series
        Values indexed by seed.
    confidence : float
        Level of the interval.
    """
    both = pd.concat([run, reference], axis=1, join="inner").dropna()
    difference = (both.iloc[:, 0] - both.iloc[:, 1]).to_numpy()
    mean = float(difference.mean()) if len(difference) else float("nan")
    if len(difference) < 2:
        return Paired(mean, float("nan"), float("nan"), len(difference))
    error = stats.sem(difference)
    if error == 0:
        return Paired(mean, mean, mean, len(difference))
    low, high = stats.t.interval(confidence, len(difference) - 1, loc=mean, scale=error)
    return Paired(mean, float(low), float(high), len(difference))


def spread(values: pd.Series) -> str:
    """Mean and sample standard deviation as `12.34 ± 0.56`."""
    return f"{values.mean():.2f} ± {values.std(ddof=1):.2f}" if len(values) > 1 else f"{values.mean():.2f}"


def named_warnings(runs: pd.DataFrame) -> list[str]:
    """Warnings that must stand beside numbers, each with the runs that it concerns: `label: warning`."""
    if "warning" not in runs:
        return []
    marked = runs.dropna(subset="warning")
    groups = marked.groupby("warning", sort=True).label.unique()
    return [f"{', '.join(labels)}: {warning}" for warning, labels in groups.items() if warning]


def comparison_table(runs: pd.DataFrame, labels: Sequence[str], reference: str) -> pd.DataFrame:
    """Tabulate runs: a row a label, in the given order.

    Parameters
    ----------
    runs : DataFrame
        A row a run: label, seed, r1 (percent), bwf (points), trained_parameters, train_seconds.
    labels : sequence of str
        Which labels, in which order; those without a finished run are left out.
    reference : str
        The label that the others are paired with.

    Returns
    -------
    DataFrame of str, ready to print.
    """
    base = runs[runs.label == reference].set_index("seed")
    rows = []
    for label in labels:
        group = runs[runs.label == label].set_index("seed")
        if group.empty:
            continue
        row = {"run": label, "seeds": str(len(group)), "R@1": spread(group.r1), "BWF": spread(group.bwf)}
        for column, name in (("r1", "R@1"), ("bwf", "BWF")):
            same = label == reference or base.empty
            row[f"{name} - {reference} [95%]"] = "" if same else str(paired_difference(group[column], base[column]))
        row["trained parameters"] = f"{int(group.trained_parameters.max()):,}"
        if "train_seconds" in group:  # known only if this machine ran them
            row["training, s"] = f"{group.train_seconds.mean():.0f}"
        rows.append(row)
    return pd.DataFrame(rows)


def to_markdown(table: pd.DataFrame) -> str:
    """Write a table as Markdown."""
    lines = ["| " + " | ".join(table.columns) + " |", "|" + "---|" * len(table.columns)]
    lines += ["| " + " | ".join(map(str, row)) + " |" for row in table.itertuples(index=False)]
    return "\n".join(lines) + "\n"
