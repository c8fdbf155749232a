"""The benchmark authors' published results, as data to set a run against (METHOD.md section 6)."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

_TABLE = Path(__file__).with_name("published.csv")

# The benchmark's authors keep the epoch with the best R@1 on the test queries (METHOD.md section 4).
PUBLISHED_NOTE = "published numbers: epoch picked on the test set"


@dataclass(frozen=True)
class Published:
    """One method's result on one benchmark.

    Attributes
    ----------
    method : str
        The method's name as its authors write it.
    benchmark : str
        Dataset and number of tasks, such as ``MSRVTT-10``.
    r1 : float
        Recall at 1 after the last task, percent.
    bwf : float
        Backward forgetting after the last task, percentage points; lower is better.
    trained_parameters_millions : float
        Trained parameters, millions.
    """

    method: str
    benchmark: str
    r1: float
    bwf: float
    trained_parameters_millions: float


def published_results(benchmark: str) -> list[Published]:
    """Results published for one benchmark, in the table's order; empty for an unknown benchmark.

    Parameters
    ----------
    benchmark : str
        ``MSRVTT-10``, ``MSRVTT-20``, ``ACTNET-10`` or ``ACTNET-20``.

    Returns
    -------
    list of Published
    """
    with _TABLE.open(encoding="utf-8", newline="") as stream:
        return [
            Published(
                method=row["method"],
                benchmark=row["benchmark"],
                r1=float(row["r1"]),
                bwf=float(row["bwf"]),
                trained_parameters_millions=float(row["trained_parameters_millions"]),
            )
            for row in csv.DictReader(stream)
            if row["benchmark"] == benchmark
        ]
