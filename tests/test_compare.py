"""Comparing runs over seeds: paired differences, the table, and the warnings that stand beside it."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from stages.compare import write
from structalign.compare import comparison_table, named_warnings, paired_difference

WARNING = "epoch picked on the test set"


@pytest.fixture
def runs() -> pd.DataFrame:
    """Two labels over three seeds; the second is two points worse on every one of them."""
    cost = {"bwf": 1.0, "trained_parameters": 10, "train_seconds": 5.0}
    return pd.DataFrame(
        [
            {"label": label, "seed": seed, "r1": r1 + seed, "method": "structalign", **cost}
            for label, r1 in (("full", 20.0), ("less", 18.0))
            for seed in (0, 1, 2)
        ]
    )


def test_pairs_are_sharper_than_the_spread_over_seeds(runs: pd.DataFrame) -> None:
    full, less = (runs[runs.label == label].set_index("seed").r1 for label in ("full", "less"))
    difference = paired_difference(less, full)
    assert (difference.mean, difference.low, difference.high, difference.seeds) == (-2.0, -2.0, -2.0, 3)
    noisy = paired_difference(less + pd.Series({0: 1.0, 1: 0.0, 2: -1.0}), full)
    assert noisy.low == pytest.approx(-2 - 4.3027 / 3**0.5, abs=1e-3)  # t of 2 degrees, deviation 1
    assert paired_difference(less[:1], full).seeds == 1


def test_the_table_has_a_row_per_label_that_ran(runs: pd.DataFrame) -> None:
    table = comparison_table(runs, ["full", "less", "absent"], "full")
    assert list(table.run) == ["full", "less"]
    assert table["R@1"][0] == "21.00 ± 1.00"


def test_a_warning_names_the_runs_that_it_concerns(runs: pd.DataFrame, tmp_path: Path) -> None:
    assert named_warnings(runs) == []
    runs.loc[runs.label == "less", "warning"] = WARNING
    assert named_warnings(runs) == [f"less: {WARNING}"]
    curves = pd.DataFrame(
        [
            {"label": label, "seed": seed, "after": after, "r1": 10.0, "bwf": 0.0}
            for label in ("full", "less")
            for seed in (0, 1, 2)
            for after in (1, 2)
        ]
    )
    write(runs, curves, ["full", "less"], "full", tmp_path)
    assert (tmp_path / "table.md").read_text().endswith(f"\n\nless: {WARNING}.\n")
    assert (tmp_path / "figure.png").stat().st_size > 10_000
