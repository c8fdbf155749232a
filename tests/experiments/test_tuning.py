"""Hyper-parameter search: what is searched, trials through `structalign tune`, and values that compose."""

from __future__ import annotations

import signal
import sys
from pathlib import Path

import optuna
import pytest
import yaml
from optuna.trial import TrialState

from structalign.cli.tune import main, missing_trials, tuned_config
from structalign.experiments.run import Workspace
from structalign.experiments.search_space import Times, read_space
from structalign.experiments.source import CodeSnapshot
from structalign.experiments.tuning import DRAW, Trial, Tuning, objective_in, retry_lost
from structalign.methods.base.discover import method_class, method_names
from structalign.util.errors import UserError
from tests.experiments.test_batch import family_of_a_training, numbers
from tests.helpers.light_chain import LightProject

ROOT = Path(__file__).resolve().parents[2]

CHOICES = ["previous", "initial"]
SPACE = {
    "search": {"loss.etf_weight": {"low": 0.01, "high": 1.0, "log": True}},
    "labels": {
        "finetune": {"overrides": ["method=finetune"]},
        "structalign": {
            "search": {"loss.crp_weight": {"low": 1, "high": 9}, "loss.crp_teacher": ["previous", "initial"]}
        },
    },
}
TUNE = ("tune", "--study", "light", "--seeds", "100", "--trials", "2", "--jobs", "2")


def test_every_method_that_trains_searches_the_rates_that_it_has() -> None:
    space = read_space("methods")
    trained = {name for name in method_names() if method_class(name).trains}
    methods = {label: settings[0].removeprefix("method=") for label, settings in space.labels.items()}
    assert set(methods.values()) == trained
    for label, searched in space.spaces.items():
        rates = {key for key in searched if key.startswith("train.lr_")}
        own = {"train.lr_clip"} if method_class(methods[label]).trains_clip else {"train.lr_first", "train.lr_later"}
        assert rates == own, label


@pytest.fixture
def project(tmp_path: Path) -> LightProject:
    made = LightProject(tmp_path / "project")
    made.write("conf/tune/light.yaml", yaml.safe_dump(SPACE))
    return made


def trials(project: LightProject) -> dict[str, list[TrialState]]:
    """States of the trials of each study in the journal."""
    backend = optuna.storages.journal.JournalFileBackend(str(project.folder / ".cache/tune/light.journal"))
    storage = optuna.storages.JournalStorage(backend)
    names = optuna.get_all_study_names(storage)
    studies = (optuna.load_study(study_name=name, storage=storage) for name in names)
    return {study.study_name.split("-")[1]: [trial.state for trial in study.trials] for study in studies}


@pytest.mark.slow
def test_every_label_gets_its_trials_and_the_best_values_compose(project: LightProject) -> None:
    status, printed = project.call(*TUNE)
    assert status == 0, printed
    assert trials(project) == dict.fromkeys(("finetune", "structalign"), [TrialState.COMPLETE] * 2)
    assert len(numbers(project)) == 4
    written = (project.folder / "conf/tuned/structalign.yaml").read_text()
    assert (
        f"val_r1 = {max(value for name, value in numbers(project).items() if '-structalign-' in name):.4f}" in written
    )
    assert project.git("rev-parse", "HEAD").strip() in written
    best = yaml.safe_load(written)
    status, printed = project.call(*TUNE)  # nothing to do, although there are new files in conf/ now
    assert status == 0, printed
    assert len(numbers(project)) == 4
    status, printed = project.call("params", "tuned=structalign", "loss.etf_weight=0.5")
    assert status == 0, printed
    loss = yaml.safe_load((project.folder / "params.yaml").read_text())["loss"]
    assert (loss["crp_weight"], loss["crp_teacher"]) == (best["loss"]["crp_weight"], best["loss"]["crp_teacher"])
    assert loss["etf_weight"] == 0.5  # what is written on the command line comes last


@pytest.mark.slow
def test_a_killed_trial_is_failed_and_its_values_are_tried_again(project: LightProject) -> None:
    only = (*TUNE, "--labels", "finetune")
    (project.folder / "hold").touch()
    tuner = project.start(*only)
    for process in family_of_a_training(project):
        process.send_signal(signal.SIGKILL)
    (project.folder / "hold").unlink()
    printed, _ = tuner.communicate(timeout=500)
    assert tuner.returncode == 1, printed
    assert "finetune: fewer than 2 trials" in printed
    status, printed = project.call(*only)
    assert status == 0, printed
    states = trials(project)["finetune"]
    assert sorted(state.name for state in states) == ["COMPLETE", "COMPLETE", "FAIL"]
    assert len(numbers(project)) == 2


@pytest.mark.slow
def test_quick_trials_keep_nothing_and_the_worse_ones_are_stopped(project: LightProject) -> None:
    quick = ("tune", "--study", "light", "--labels", "finetune", "--seeds", "100", "--trials", "6", "--quick")
    status, printed = project.call(*quick)
    assert status == 0, printed
    states = trials(project)["finetune"]
    assert set(states) == {TrialState.COMPLETE, TrialState.PRUNED}
    assert len(states) == 6
    assert not numbers(project)
    written = (project.folder / "conf/tuned/finetune.yaml").read_text()
    best = yaml.safe_load(written)["loss"]["etf_weight"]
    assert f"The best of 6 trials ({states.count(TrialState.PRUNED)} of them stopped early)" in written
    assert f"val_r1 = {100 * best / 4:.4f}" in written  # after the last of four tasks
    assert project.calls("train") == 0


def test_quick_trials_measure_one_thing(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "argv", ["tune", "--quick", "--objective", "r1"])
    with pytest.raises(SystemExit):
        main()
    assert "--quick measures val_r1 alone" in capsys.readouterr().err


@pytest.mark.slow
def test_an_objective_that_is_not_measured_ends_the_search_in_one_line(project: LightProject) -> None:
    status, printed = project.call(*TUNE, "--labels", "finetune", "--objective", "val_r7", "--trials", "9")
    assert status == 1
    assert "no objective val_r7: metrics/summary.json has r1, r5" in printed.splitlines()[-1]
    assert len(numbers(project)) < 4


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no labels"),
        ("labels: {}", "no labels"),
        ("labels: {a: }", "a: nothing is searched"),
        ("labels: {a: {serch: 1}}", "a: must have `overrides` or `search`"),
        ("{serch: 1, labels: {a: }}", "serch: unknown"),
        ("{search: {x: {low: 2, high: 1}}, labels: {a: }}", "a: x: must be a list, times, or low and high"),
        ("{search: {x: 3}, labels: {a: }}", "a: x: must be a list, times, or low and high"),
        ("{search: {x: {high: 1}}, labels: {a: }}", "a: x: must be a list, times, or low and high"),
        ("{search: {x: {times: 2}}, labels: {a: }}", "a: x: must be a list, times, or low and high"),
        ("{search: {x: {times: [2, 1]}}, labels: {a: }}", "a: x: must be a list, times, or low and high"),
        ("{search: {x: {times: [0, 1]}}, labels: {a: }}", "a: x: must be a list, times, or low and high"),
        ("labels: {a: {overrides: method=lwf, search: {x: [1]}}}", "a: overrides: must be a list of overrides"),
        ("{overrides: method=lwf, labels: {a: {search: {x: [1]}}}}", "overrides: must be a list of overrides"),
        ("{search: [1], labels: {a: }}", "search: must be keys of parameters"),
        ("labels: {a: {search: [1]}}", "a: search: must be keys of parameters"),
    ],
)
def test_a_search_space_that_is_none_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("conf/tune").mkdir(parents=True)
    Path("conf/tune/bad.yaml").write_text(text)
    with pytest.raises(UserError, match=f"^conf/tune/bad.yaml: {message}"):
        read_space("bad")
    with pytest.raises(UserError, match=r"no such search space; there are bad$"):
        read_space("other")


def test_the_search_spaces_that_ship_can_be_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    for path in Path("conf/tune").glob("*.yaml"):
        assert read_space(path.stem).labels


@pytest.fixture
def workspace(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Workspace:
    monkeypatch.chdir(ROOT)
    return Workspace(CodeSnapshot(ROOT, "0" * 40, b"", "0" * 64, ()), tmp_path, tmp_path)


def set_up(workspace: Workspace, label: str, *overrides: str, objective: str = "val_r1") -> Tuning:
    return Tuning.of(
        read_space("methods"), label, overrides, [100], objective, workspace, workspace.scratch / "journal"
    )


@pytest.mark.parametrize("overrides", [[], ["data=msrvtt"], ["data=actnet", "K=20"]])
@pytest.mark.parametrize("label", ["structalign", "zscl"])
def test_every_data_set_is_searched_around_its_own_values(
    workspace: Workspace, label: str, overrides: list[str]
) -> None:
    tuning = set_up(workspace, label, *overrides, "split.validation=20")
    assert tuning.untuned.keys() == tuning.space.keys()
    assert all(tuning.space[key].low < value < tuning.space[key].high for key, value in tuning.untuned.items())
    tuning.begin_with_defaults()
    assert tuning.study().ask(tuning.space).params == pytest.approx(tuning.untuned)


def test_jobs_of_an_earlier_call_are_found_by_their_numbers(workspace: Workspace) -> None:
    tuning = set_up(workspace, "finetune")
    names = {job.name for job in missing_trials(tuning, 3)}
    assert names == {f"{tuning.name}-job{number}" for number in (1, 2, 3)}
    study = tuning.study()
    for draw, state in ((1, None), (2, TrialState.COMPLETE), (3, TrialState.FAIL), (4, None), (5, TrialState.PRUNED)):
        trial = study.ask(tuning.space)
        trial.set_user_attr(DRAW, draw)
        if state is not None:
            study.tell(trial, 1.0 if state is TrialState.COMPLETE else None, state=state)
    assert [job.draw for job in missing_trials(tuning, 6)] == [1, 4, 6, 7]  # 1 and 4 are under way
    assert missing_trials(tuning, 2) == []


def test_a_trial_that_ended_while_it_was_looked_at_is_not_tried_again(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    tuning = set_up(workspace, "finetune")
    study = tuning.study()
    lost, finished = study.ask(tuning.space), study.ask(tuning.space)
    running = study.get_trials(states=(TrialState.RUNNING,))
    study.tell(finished, 1.0)
    monkeypatch.setattr(study, "get_trials", lambda **_: running)  # as it was before the second one reported
    retry_lost(tuning, study)
    monkeypatch.undo()
    waiting = study.get_trials(states=(TrialState.WAITING,))
    assert [trial.system_attrs["fixed_params"] for trial in waiting] == [lost.params]


def test_a_job_that_was_killed_has_not_ended(workspace: Workspace) -> None:
    tuning = set_up(workspace, "finetune")
    killed, done = Trial(tuning, 1), Trial(tuning, 2)
    for job in (killed, done):
        trial = tuning.study().ask(tuning.space)
        trial.set_user_attr(DRAW, job.draw)
        if job is done:
            tuning.study().tell(trial, 1.0)
    assert not killed.has_ended()
    assert done.has_ended()


def test_what_is_found_is_named_after_data_and_tasks(workspace: Workspace) -> None:
    assert set_up(workspace, "vr_lwf").result == "vr_lwf"
    assert set_up(workspace, "vr_lwf", "data=msrvtt", "K=20", "split.validation=20").result == "vr_lwf-msrvtt-20"


def test_no_validation_videos_are_refused_before_anything_runs(workspace: Workspace) -> None:
    with pytest.raises(UserError, match=r"^structalign: --objective val_r1 needs validation videos"):
        set_up(workspace, "structalign", "data=msrvtt")


@pytest.mark.parametrize(("objective", "override"), [("r1", "K=5"), ("val_r1", "train.select=best_on_test")])
def test_test_videos_are_no_objective(workspace: Workspace, objective: str, override: str) -> None:
    with pytest.raises(UserError, match=rf"^structalign: --objective {objective} .* would tune on test videos"):
        set_up(workspace, "structalign", "split.validation=20", override, objective=objective)


@pytest.mark.parametrize("value", [0.0, -1, True, "auto", {}])
def test_factors_need_a_number_to_multiply(value: object) -> None:
    with pytest.raises(UserError, match=r"^lwf: x = .*: `times` needs a number above 0"):
        Times(0.1, 10).around(value, "lwf: x")


def test_an_objective_is_a_number() -> None:
    assert objective_in({"val_r1": 3}, "val_r1") == 3.0
    for summary in ({}, {"val_r1": "high"}, {"val_r1": float("nan")}):
        with pytest.raises(UserError, match="no objective val_r1"):
            objective_in(summary, "val_r1")


def test_values_are_written_under_their_keys() -> None:
    text = tuned_config({"loss.crp_weight": 1.5, "train.lr_first": 1e-05, "loss.crp_teacher": "initial"}, ["Why."])
    assert text.startswith("# @package _global_\n# Why.\n")
    assert yaml.safe_load(text) == {
        "loss": {"crp_weight": 1.5, "crp_teacher": "initial"},
        "train": {"lr_first": 1e-05},
    }
