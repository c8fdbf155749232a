"""Comparing runs over seeds: paired differences, the table, and the warnings that stand beside it."""

from __future__ import annotations

import itertools
import subprocess
from collections.abc import Iterable, Iterator
from pathlib import Path

import pandas as pd
import pytest

from structalign.cli import compare as stage
from structalign.cli.compare import QueueState, queue_state, run_queue, write
from structalign.report.compare import comparison_table, named_warnings, paired_difference
from structalign.util.errors import UserError

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


# The queue

QUEUED, RUNNING, DONE = ({"a": status} for status in ("Queued", "Running", "Success"))


def starts_of_workers(monkeypatch: pytest.MonkeyPatch, states: Iterable[QueueState]) -> list[int]:
    """Let a queue go through these states without waiting; a list that tells when workers were started."""
    starts: list[int] = []
    looks = 0

    def look() -> Iterator[QueueState]:
        nonlocal looks
        for state in states:
            looks += 1
            yield state

    looking = look()
    monkeypatch.setattr(stage, "queue_state", lambda: next(looking))
    monkeypatch.setattr(stage, "start_workers", lambda jobs: starts.append(looks))
    monkeypatch.setattr(stage.time, "sleep", lambda seconds: None)
    return starts


def test_workers_that_ended_too_soon_are_started_again(monkeypatch: pytest.MonkeyPatch) -> None:
    absent = [QueueState(QUEUED, 0)] * stage.ABSENT
    starts = starts_of_workers(monkeypatch, [*absent, QueueState(RUNNING, 1), QueueState(DONE, 0)])
    run_queue({"a"}, 1)
    assert starts == [0, stage.ABSENT]


def test_a_pause_between_two_experiments_is_no_absence(monkeypatch: pytest.MonkeyPatch) -> None:
    pause = [QueueState(QUEUED, 0)] * (stage.ABSENT - 1)
    states = [*pause, QueueState(QUEUED, 1), *pause, QueueState(RUNNING, 1), QueueState(DONE, 0)]
    starts = starts_of_workers(monkeypatch, states)
    run_queue({"a"}, 1)
    assert starts == [0]


def test_workers_that_do_not_stay_up_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    starts = starts_of_workers(monkeypatch, itertools.repeat(QueueState(QUEUED, 0)))
    with pytest.raises(UserError, match="do not stay up"):
        run_queue({"a"}, 1)
    assert len(starts) == 1 + stage.RESTARTS


def test_an_experiment_killed_with_its_worker_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    starts = starts_of_workers(monkeypatch, itertools.repeat(QueueState({**RUNNING, "b": "Success"}, 0)))
    run_queue({"a", "b"}, 1)
    assert starts == [0]


def test_the_state_of_the_queue_is_read_from_what_dvc_prints(monkeypatch: pytest.MonkeyPatch) -> None:
    printed = (
        "Task     Name    Created    Status\n"
        "1a2b3c4  full-0  09:31 AM   Running\n"
        "5d6e7f8  less-0  09:31 AM   Queued\n"
        "9a8b7c6          Nov 20, 2026  Failed\n"
        "\nWorker status: 1 active, 1 idle\n"
    )
    done = subprocess.CompletedProcess([], 0, stdout=printed)
    monkeypatch.setattr(stage, "dvc", lambda *arguments: done)
    state = queue_state()
    assert state.active == 1
    assert (state.experiments["full-0"], state.experiments["less-0"]) == ("Running", "Queued")


def test_what_was_queued_again_is_not_taken_for_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = ["full-0 Failed", "full-0 Running", "less-0 Queued", "less-0 Failed", "more-0 Failed"]
    printed = "Task     Name    Created    Status\n" + "".join(
        f"{number}a2b3c4  {name}  09:31 AM   {status}\n"
        for number, (name, status) in enumerate(row.split() for row in rows)
    )
    called = []

    def dvc(*arguments: str) -> subprocess.CompletedProcess[str]:
        called.append(arguments[:4])
        return subprocess.CompletedProcess([], 0, stdout=printed)

    monkeypatch.setattr(stage, "dvc", dvc)
    assert queue_state().experiments == {"full-0": "Running", "less-0": "Queued", "more-0": "Failed"}
    called.clear()
    stage.queue({"full-0": [], "less-0": [], "more-0": ["K=2"], "new-0": []})
    assert called == [
        ("queue", "status"),
        ("queue", "remove", "more-0"),
        ("exp", "run", "--queue", "--name"),
        ("exp", "run", "--queue", "--name"),
    ]


def test_an_experiment_that_is_just_being_taken_from_the_queue_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    looks = [QueueState(QUEUED, 1), QueueState({}, 1), QueueState(RUNNING, 1), QueueState(DONE, 0)]
    left = iter(looks)
    starts_of_workers(monkeypatch, left)
    run_queue({"a"}, 1)
    assert next(left, None) is None


def test_dvc_is_asked_again_where_it_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    codes = iter([255, 255, 0, *[1] * stage.LOOKS])

    def dvc(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess([], next(codes), "full-0\nother\n", "ERROR: lock")

    monkeypatch.setattr(stage, "dvc", dvc)
    monkeypatch.setattr(stage.time, "sleep", lambda seconds: None)
    assert stage.finished({"full-0", "less-0"}) == {"full-0"}
    with pytest.raises(UserError, match=r"^dvc queue status: ERROR: lock$"):
        queue_state()


def test_other_overrides_are_other_experiments() -> None:
    commons = [
        ["data=shapes"],
        ["data=shapes", "K=4"],
        ["data=shapes", "loss.etf_weight=0.5"],
        ["data=shapes", "loss.crp_weight=0.5"],
        ["data=actnet", "data.videos=/a/videos"],
        ["data=actnet", "data.videos=/b/videos"],
        ["data=shapes", "~variant"],
    ]
    names = {stage.experiment_name("methods", "vr_lwf", 1, common, "abc1234") for common in commons}
    assert len(names) == len(commons)
    assert stage.experiment_name("methods", "vr_lwf", 1, ["data=msrvtt", "K=20"], "abc1234") == (
        "methods-vr-lwf-msrvtt-20-seed1-abc1234"
    )
