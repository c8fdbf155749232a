"""Studies through `structalign compare`: what is there does not run again, and what was killed does."""

from __future__ import annotations

import json
import os
import re
import signal
from pathlib import Path

import psutil
import pytest

from structalign.experiments.results import Experiments, QuickResults, finished
from structalign.experiments.run import RUN_VARIABLE
from tests.helpers.light_chain import LightProject, wait_until

pytestmark = pytest.mark.slow

COMPARE = ("compare", "--study", "light", "--seeds", "0,1", "--jobs", "2")


@pytest.fixture
def project(tmp_path: Path) -> LightProject:
    return LightProject(tmp_path / "project")


def numbers(project: LightProject) -> dict[str, float]:
    """R@1 of every experiment that the project has."""
    results = Experiments(project.folder)
    return {name: results.summary(name)["r1"] for name in results.names()}


def family_of_a_training(project: LightProject) -> list[psutil.Process]:
    """The job of a run that is in training, with everything below it."""
    wait_until(lambda: any(psutil.pid_exists(number) for number in project.trainings()))
    training = psutil.Process(next(filter(psutil.pid_exists, project.trainings())))
    job = next(parent for parent in training.parents() if "submitit.core._submit" in parent.cmdline())
    return [job, *job.children(recursive=True)]


def left_over(project: LightProject) -> list[psutil.Process]:
    """Processes of the project's runs."""
    scratch = str(project.folder / ".cache/runs")
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(RUN_VARIABLE, "").startswith(scratch) and process.status() != "zombie":
                found.append(process)
        except psutil.Error:
            continue
    return found


def test_a_study_runs_once_and_only_what_is_new_runs_later(project: LightProject) -> None:
    compare = ("compare", "--study", "light", "--seeds", "0", "--jobs", "2")
    status, printed = project.call(*compare)
    assert status == 0, printed
    first = numbers(project)
    assert len(first) == len(set(first.values())) == 3
    assert project.calls("split") == 1  # although all three runs need it
    assert project.calls("train") == 3
    assert {path.name for path in (project.folder / ".cache/runs").iterdir()} == {"logs", "locks"}
    assert len((project.folder / "plots/compare/light/table.md").read_text().splitlines()) > 4

    # Another weight for one label, not committed: that label runs again, the others are as they were.
    study = {"full": [], "finetune": ["method=finetune"], "without CRP": ["loss.crp_weight=1"]}
    project.write("conf/study/light.yaml", json.dumps(study))
    status, printed = project.call(*compare)
    assert status == 0, printed
    assert "2 of 3 runs are there" in printed
    second = numbers(project)
    assert len(second) == 4
    assert first.items() < second.items()

    # Other code, not committed and in a new file: everything runs again, under new names.
    project.write("stages/new.py", "NEW = 1\n")
    status, printed = project.call(*compare)
    assert status == 0, printed
    assert "stages/new.py" in printed
    assert len(numbers(project)) == 7
    name = next(iter(set(numbers(project)) - set(second)))
    assert project.git("show", f"{finished(project.folder)[name]}:stages/new.py") == "NEW = 1\n"


def test_a_quick_study_measures_the_same_keeps_numbers_alone_and_goes_on(project: LightProject) -> None:
    slow, quick = ("compare", "--study", "light", "--seeds", "0"), ("--quick", "--jobs", "2")
    status, printed = project.call(*slow)
    assert status == 0, printed
    table, before = (project.folder / "plots/compare/light/runs.csv").read_text(), numbers(project)
    (project.folder / "hold").touch()
    runner = project.start(*slow, *quick)
    for process in family_of_a_training(project):
        process.send_signal(signal.SIGKILL)
    (project.folder / "hold").unlink()
    printed, _ = runner.communicate(timeout=500)
    assert runner.returncode == 1
    assert "1 of 3 runs are missing" in printed
    results = QuickResults(project.folder)
    assert {name: results.summary(name)["r1"] for name in results.names()}.items() < before.items()
    trained = project.calls("train")
    status, printed = project.call(*slow, *quick)
    assert status == 0, printed
    assert project.calls("train") == trained + 1
    assert (project.folder / "plots/compare/light/runs.csv").read_text() == table
    assert numbers(project) == before


def test_a_killed_run_is_named_and_runs_at_the_next_call(project: LightProject) -> None:
    (project.folder / "hold").touch()
    runner = project.start(*COMPARE)
    for process in family_of_a_training(project):
        process.send_signal(signal.SIGKILL)
    (project.folder / "hold").unlink()
    printed, _ = runner.communicate(timeout=500)
    assert runner.returncode == 1
    assert printed.count("it was killed") == 1
    assert "1 of 6 runs are missing" in printed
    before = numbers(project)
    assert len(before) == 5
    status, printed = project.call(*COMPARE)
    assert status == 0, printed
    assert len(numbers(project)) == 6
    assert before.items() < numbers(project).items()


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_a_runner_that_ends_early_leaves_nothing_to_repair(project: LightProject, how: signal.Signals) -> None:
    compare = ("compare", "--study", "light", "--seeds", "0", "--jobs", "2")
    (project.folder / "hold").touch()
    runner = project.start(*compare)
    wait_until(lambda: len(project.trainings()) == 2)
    assert left_over(project)  # the mark by which they are found is the one by which they are ended
    os.kill(runner.pid, how)
    runner.wait(60)
    if how is signal.SIGINT:
        assert runner.returncode == 130
        assert left_over(project) == []
    (project.folder / "hold").unlink()
    status, printed = project.call(*compare)
    assert status == 0, printed
    assert len(numbers(project)) == 3
    assert project.calls("train") == (3 if how is signal.SIGKILL else 5)  # after kill -9, its runs go on


def test_what_fails_is_named_with_its_own_words(project: LightProject) -> None:
    project.write("conf/study/light.yaml", json.dumps({"full": [], "bad": ["etf.num_classes=2"]}))
    status, printed = project.call("compare", "--study", "light", "--seeds", "0")
    assert status == 1
    errors = [line for line in printed.splitlines() if " ERROR " in line]
    assert len(errors) == 2
    assert "light-bad-seed0-" in errors[0]
    assert "etf.num_classes = 2: too few" in errors[0]
    assert "1 of 2 runs are missing" in errors[1]
    assert re.search(r"^\| full +\|", (project.folder / "plots/compare/light/table.md").read_text(), re.MULTILINE)


def test_overrides_that_do_not_compose_are_one_line_and_nothing_starts(project: LightProject) -> None:
    status, printed = project.call("compare", "--study", "light", "--seeds", "0", "-S", "losses.etf_weight=1")
    assert status == 1
    assert [line.split()[1] for line in printed.splitlines()] == ["INFO", "ERROR"]
    assert "full: losses.etf_weight: no such key; did you mean loss.etf_weight?" in printed
    assert "search path" not in printed.lower()
    assert not (project.folder / ".cache/runs").exists()
