"""The table of experiments: changes against the commit above, and what stands against a number."""

from __future__ import annotations

from rich.console import Console

from structalign.cli.show import NAMED, changes, experiments_table, of_study, parameters

VALUES = {"about": "x", "tasks": {"01": {"id": 1}}, "last": "01", "annotations": "x", "K": 5, "variant": "method"}
VALUES |= {"data": {"name": "creatures", "shots": 1}, "loss": {"etf": {"weight": 0.1}}, "train": {"select": "last"}}
KEYS = ["K", "variant", "data.name", "data.shots", "loss.etf.weight", "train.select"]
BASE = {"Experiment": "", "rev": "main", "typ": "baseline", "r1": "1.5", "K": "5", "variant": "method"}
BASE |= {
    "data.name": "creatures",
    "data.shots": "1",
    "loss.etf.weight": "0.1",
    "train.select": "last",
    "select": "last",
}


def printed(*rows: dict[str, str]) -> list[str]:
    console = Console(width=120)
    with console.capture() as capture:
        console.print(experiments_table(rows, KEYS))
    return capture.get().splitlines()


def experiment(name: str, **values: str) -> dict[str, str]:
    return {**BASE, "Experiment": name, "rev": "abc1234", "typ": "branch_commit", **values}


def test_parameters_that_follow_from_others_are_left_out() -> None:
    assert parameters(VALUES) == KEYS


def test_changes_are_written_as_overrides_and_a_group_stands_for_its_keys() -> None:
    assert changes(BASE, BASE, KEYS) == []
    assert changes(experiment("a", **{"loss.etf.weight": "0.5"}), BASE, KEYS) == ["loss.etf.weight=0.5"]
    other = experiment("b", **{"K": "4", "variant": "released", "data.name": "msrvtt", "data.shots": ""})
    assert changes(other, BASE, KEYS) == ["data=msrvtt", "variant=released", "K=4"]


def test_an_experiment_is_compared_with_the_commit_above_it() -> None:
    newer = {**BASE, "rev": "newer", "K": "4"}
    rows = printed({**newer, "rev": "workspace"}, newer, experiment("a", K="4"), BASE, experiment("b", K="4"))
    assert [line.split()[-1] for line in rows if "  a " in line or "  b " in line] == ["1.50", "K=4"]


def test_a_leaked_test_set_a_failure_and_many_changes_are_shown() -> None:
    leaked = printed(BASE, experiment("a", select="best_on_test"))
    assert any("WARNING: epoch picked on the test set" in line for line in leaked)
    assert any("failed; K=4" in line for line in printed(BASE, experiment("a", State="Failed", r1="", K="4")))
    keys = [f"key{index}" for index in range(NAMED + 3)]
    console = Console(width=300)
    with console.capture() as capture:
        console.print(experiments_table([BASE, experiment("a", **dict.fromkeys(keys, "1"))], keys))
    assert "and 3 more" in capture.get()


def test_names_are_printed_as_they_are() -> None:
    assert any("[bold]x[/bold]" in line for line in printed(BASE, experiment("[bold]x[/bold]")))


def test_a_study_s_experiments_stand_by_name_below_their_commits() -> None:
    older = {**BASE, "rev": "older"}
    names = ("full-b-seed1", "budget-a-seed0", "full-b-seed0", "fuller-a-seed0")
    rows = of_study([BASE, *map(experiment, names), older, experiment("full-a-seed0")], "Full")
    shown = [row["Experiment"] or row["rev"] for row in rows]
    assert shown == ["main", "full-b-seed0", "full-b-seed1", "older", "full-a-seed0"]


def test_a_commit_without_results_is_a_row_without_numbers() -> None:
    shown = printed({**BASE, "r1": "!"}, experiment("a", r1="12.345"))
    assert any(line.split() == ["main"] for line in shown)
    assert any("12.35" in line or "12.34" in line for line in shown)
