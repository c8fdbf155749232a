"""Compare runs over the same seeds: means, paired differences with their significance, and recall by task."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import stats

from structalign.evaluation.metric_table import COST, METRICS

CONFIDENCE = 0.95
EXACT = 2**16
"""Sign patterns of a test: all, if there are at most as many."""


MEANS = [metric for metric in METRICS if metric.headline]
"""Metrics of which the table gives mean and standard deviation."""

DIFFERENCES = [metric for metric in METRICS if metric.key in ("r1", "bwf")]
"""Metrics that are paired with the reference."""


@dataclass(frozen=True)
class Paired:
    """Difference of two runs over the seeds that both have.

    Attributes
    ----------
    mean : float
        Mean of run minus reference, in percentage points.
    low, high : float
        95% confidence interval of that mean (Student's t); NaN with fewer than two common seeds.
    p : float
        Two-sided p-value of the exact sign-flip permutation test; NaN with fewer than two common seeds.
    seeds : int
        Number of common seeds.
    """

    mean: float
    low: float
    high: float
    p: float
    seeds: int

    def __str__(self) -> str:
        if self.seeds < 2:
            return f"{self.mean:+.2f}"
        return f"{self.mean:+.2f} [{self.low:+.2f}, {self.high:+.2f}], p = {self.p:.3g}"


def paired_difference(run: pd.Series, reference: pd.Series) -> Paired:
    """Compare two runs seed by seed.

    Published gaps are about one point, less than seeds differ among themselves; the pairs share data, order and
    initialisation, so their difference is the sharper measure. Under the hypothesis of no difference its sign is
    as likely to be the other one for every seed: the test takes all 2^n sign patterns.

    Parameters
    ----------
    run, reference : Series
        Values indexed by seed.
    """
    both = pd.concat([run, reference], axis=1, join="inner").dropna()
    difference = (both.iloc[:, 0] - both.iloc[:, 1]).to_numpy(dtype=float)
    mean = float(difference.mean()) if len(difference) else float("nan")
    if len(difference) < 2:
        return Paired(mean, float("nan"), float("nan"), float("nan"), len(difference))
    if np.ptp(difference) == 0:
        low, high = mean, mean
    else:
        spread = stats.sem(difference)
        low, high = map(float, stats.t.interval(CONFIDENCE, len(difference) - 1, loc=mean, scale=spread))
    return Paired(mean, low, high, sign_flip_p(difference), len(difference))


def sign_flip_p(difference: np.ndarray) -> float:
    """Two-sided p-value of the exact sign-flip permutation test of a zero mean.

    Parameters
    ----------
    difference : ndarray, shape (n,)
        One a pair. All 2^n sign patterns are taken, so that p is at least 2 / 2^n; beyond 16 pairs, 2^16 random ones.
    """
    test = stats.permutation_test(
        (difference,), np.mean, permutation_type="samples", n_resamples=EXACT, vectorized=True, rng=0
    )
    return float(test.pvalue)


def spread(values: pd.Series) -> str:
    """Mean and sample standard deviation as `12.34 ± 0.56`."""
    deviation = f" ± {values.std(ddof=1):.2f}" if len(values) > 1 else ""
    return f"{values.mean():.2f}{deviation}"


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
        A row a run: label, seed, r1, r5, r10 (percent), medr, bwf (points), and of `COST` what is known.
    labels : sequence of str
        Which labels, in which order; those without a finished run are left out.
    reference : str
        The label that the others are paired with.

    Returns
    -------
    DataFrame of str, ready to print.
    """
    by_label = {label: group.set_index("seed") for label, group in runs.groupby("label")}
    base = by_label.get(reference)
    rows = []
    for label in (label for label in labels if label in by_label):
        group = by_label[label]
        row = {"run": label, "seeds": str(len(group))}
        row |= {metric.label: spread(group[metric.key]) for metric in MEANS if metric.key in group}
        for metric in DIFFERENCES:
            pair = group[metric.key], base[metric.key] if base is not None else None
            difference = "" if pair[1] is None or label == reference else paired_difference(*pair)
            row[f"{metric.label} - {reference} [95%]"] = str(difference)
        known = [cost for cost in COST if cost.key in group and group[cost.key].notna().any()]
        row |= {", ".join(filter(None, (cost.label, cost.unit))): f"{group[cost.key].mean():,.0f}" for cost in known}
        rows.append(row)
    return pd.DataFrame(rows).fillna("")


def notes(runs: pd.DataFrame) -> list[str]:
    """Sentences that must stand below the table: how to read its differences, and warnings."""
    seeds = runs.seed.nunique()
    reading = (
        "Means ± sample standard deviation. Differences are paired by seed, with Student's 95% interval and the "
        f"p-value of the exact sign-flip permutation test: over {seeds} seeds it cannot go below {2 / 2**seeds:.3g}. "
        "It is not corrected for the number of rows."
    )
    return [reading] * (seeds > 1) + [f"{warning}." for warning in named_warnings(runs)]
