"""Comparing runs over seeds: paired differences, the table, and the warnings that stand beside it."""

from __future__ import annotations

import itertools
import operator
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from structalign.cli.compare import Point, collect, main, points_of, write
from structalign.experiments.study import StudyRun
from structalign.report.compare import comparison_table, named_warnings, notes, paired_difference, sign_flip_p
from structalign.util.errors import UserError

ROOT = Path(__file__).resolve().parents[2]

WARNING = "epoch picked on the test set"


@pytest.fixture
def runs() -> pd.DataFrame:
    """Two labels over three seeds; the second is two points worse on every one of them."""
    same = {"r5": 40.0, "r10": 60.0, "medr": 7.5, "bwf": 1.0, "trained_parameters": 1234, "method": "structalign"}
    return pd.DataFrame(
        [
            {"label": label, "seed": seed, "r1": r1 + seed, **same}
            for label, r1 in (("full", 20.0), ("less", 18.0))
            for seed in (0, 1, 2)
        ]
    )


@pytest.fixture
def curves() -> pd.DataFrame:
    rows = itertools.product(("full", "less"), (0, 1, 2), (1, 2))
    return pd.DataFrame(
        [{"label": label, "seed": seed, "after": after, "r1": 10.0, "bwf": 0.0} for label, seed, after in rows]
    )


def test_pairs_are_sharper_than_the_spread_over_seeds(runs: pd.DataFrame) -> None:
    full, less = (runs[runs.label == label].set_index("seed").r1 for label in ("full", "less"))
    difference = paired_difference(less, full)
    assert (difference.mean, difference.low, difference.high, difference.seeds) == (-2.0, -2.0, -2.0, 3)
    noisy = paired_difference(less + pd.Series({0: 1.0, 1: 0.0, 2: -1.0}), full)
    assert noisy.low == pytest.approx(-2 - 4.3027 / 3**0.5, abs=1e-3)  # t of 2 degrees, deviation 1
    assert paired_difference(less[:1], full).seeds == 1


@pytest.mark.parametrize(
    "difference", [[1.0, 2, 3, 4, 5], [1.0, 1, 1], [-1.0, -2, -3], [1.0, -2, 3, 4, 5], [0.5, -0.5, 2, 0], [0.0, 0, 0]]
)
def test_the_permutation_test_takes_every_pattern_of_signs(difference: list[float]) -> None:
    size = abs(sum(difference))
    patterns = list(itertools.product((1, -1), repeat=len(difference)))
    extreme = [abs(sum(map(operator.mul, signs, difference))) >= size - 1e-9 for signs in patterns]
    assert sign_flip_p(np.array(difference)) == pytest.approx(sum(extreme) / len(patterns))


def test_many_pairs_are_tested_with_a_sample_of_patterns_that_repeats() -> None:
    difference = np.random.default_rng(0).normal(0.3, 1, 40)
    value = sign_flip_p(difference)
    assert value == sign_flip_p(difference)
    assert value == pytest.approx(stats.ttest_1samp(difference, 0).pvalue, abs=0.02)


def test_the_table_has_a_row_per_label_that_ran(runs: pd.DataFrame) -> None:
    table = comparison_table(runs, ["full", "less", "absent"], "full")
    assert list(table.run) == ["full", "less"]
    assert table["R@1"][0] == "21.00 ± 1.00"
    assert table["median rank"][1] == "7.50 ± 0.00"
    assert table["R@1 - full [95%]"][1] == "-2.00 [-2.00, -2.00], p = 0.25"
    assert table["trained parameters"][0] == "1,234"


def test_seconds_and_memory_stand_in_the_table_if_they_are_known(runs: pd.DataFrame) -> None:
    assert "training, s" not in comparison_table(runs, ["full", "less"], "full")
    runs.loc[runs.label == "full", ["train_seconds", "peak_memory_mb"]] = (61.0, 2048.0)
    table = comparison_table(runs, ["full", "less"], "full")
    assert table["training, s"].tolist() == ["61", ""]
    assert table["peak memory, MB"].tolist() == ["2,048", ""]


def test_below_the_table_stands_how_small_p_can_be(runs: pd.DataFrame) -> None:
    assert "over 3 seeds it cannot go below 0.25." in notes(runs)[0]
    assert notes(runs[runs.seed == 0]) == []


def test_a_warning_names_the_runs_that_it_concerns(runs: pd.DataFrame, curves: pd.DataFrame, tmp_path: Path) -> None:
    runs["learnt_r1"] = 50.0
    assert named_warnings(runs) == []
    runs.loc[runs.label == "less", "warning"] = WARNING
    assert named_warnings(runs) == [f"less: {WARNING}"]
    write(runs, curves, ["full", "less"], "full", tmp_path)
    assert (tmp_path / "table.md").read_text().endswith(f"\n\nless: {WARNING}.\n")
    assert pd.read_csv(tmp_path / "runs.csv").r1.tolist() == runs.r1.tolist()
    for name in ("figure.png", "by_task.png", "differences.png"):
        assert (tmp_path / name).stat().st_size > 10_000


def made(labels: dict[str, list[str]], seeds: Sequence[int] = (0,)) -> list[StudyRun]:
    return [StudyRun(f"{label}-{seed}", label, seed, tuple(labels[label])) for seed in seeds for label in labels]


def test_runs_stand_in_a_curve_by_method_and_value(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    points = points_of(made({"a": ["K=2"], "b": ["K=4", "variant=figure"], "c": ["K=2", "method=lwf"]}), "K")
    assert points == {
        "a-0": Point("structalign", 2),
        "b-0": Point("structalign (figure)", 4),
        "c-0": Point("lwf", 2),
    }


@pytest.mark.parametrize(
    ("key", "reason"),
    [
        ("k", "no such parameter"),
        ("similarity.pooling", "is 'max' for one; a curve needs numbers"),
        ("etf.train_projections", "is True for one; a curve needs numbers"),
        ("loss", "a curve needs numbers"),
        ("train.max_steps", "is None for one; a curve needs numbers"),
        ("K", "one and two are both structalign with K=5; pick one of them by --labels"),
    ],
)
def test_what_makes_no_curve_is_refused_before_anything_runs(
    monkeypatch: pytest.MonkeyPatch, key: str, reason: str
) -> None:
    monkeypatch.chdir(ROOT)
    with pytest.raises(UserError, match=f"--against {key}: .*{reason}"):
        points_of(made({"one": ["K=5"], "two": ["K=5", "loss.etf_weight=0"]}), key)


class Ranked:
    """Two finished runs, which ranked other videos after a task, as other numbers of tasks do."""

    def names(self) -> set[str]:
        return {"two-0", "four-0"}

    def summary(self, name: str) -> dict[str, Any]:
        return {"r1": 50.0, "data_fingerprint": name}

    def curve(self, name: str) -> pd.DataFrame:
        return pd.DataFrame({"after": [1], "r1": [50.0], "bwf": [0.0]})


def test_only_a_curve_may_set_other_data_side_by_side() -> None:
    runs = made({"two": ["K=2"], "four": ["K=4"]})
    points = {"two-0": Point("structalign", 2), "four-0": Point("structalign", 4)}
    assert collect(runs, Ranked(), points)[0].value.tolist() == [2, 4]
    with pytest.raises(UserError, match="they ranked different data"):
        collect(runs, Ranked())
    with pytest.raises(UserError, match="they ranked different data"):
        collect(runs, Ranked(), dict.fromkeys(points, Point("structalign", 2)))


def test_a_curve_is_drawn_beside_the_other_figures(runs: pd.DataFrame, curves: pd.DataFrame, tmp_path: Path) -> None:
    runs = runs.assign(line="structalign", value=runs.label.map({"full": 2, "less": 20}), learnt_r1=50.0)
    write(runs, curves, ["full", "less"], "full", tmp_path, "K")
    assert (tmp_path / "curve.png").stat().st_size > 10_000


def test_a_reference_must_be_among_the_labels(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    command = ["compare", "--study", "ablation", "--labels", "zeroshot,finetune", "--reference", "full"]
    monkeypatch.setattr(sys, "argv", command)
    with pytest.raises(SystemExit):
        main()
    assert "--reference full: must be one of zeroshot, finetune" in capsys.readouterr().err
