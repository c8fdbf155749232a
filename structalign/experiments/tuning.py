"""Searching hyper-parameters with Optuna: a search, and one trial of it as a job for an executor.

Any number of jobs, on any number of machines, work on one journal file. A trial whose job was killed is marked as
failed, and the next job tries the same values again. What had been trained is not trained twice, unless trials are
quick.
"""

from __future__ import annotations

import hashlib
import json
import math
import statistics
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
from filelock import FileLock, Timeout
from optuna.distributions import BaseDistribution
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState
from submitit.helpers import DelayedSubmission

from structalign import paths
from structalign.experiments.results import Experiments
from structalign.experiments.run import Experiment, Job, Workspace, note_error
from structalign.experiments.search_space import SearchSpace, Times, offers
from structalign.experiments.study import (
    SHARED_STAGES,
    StudyRun,
    composed,
    make_run,
    named_files,
    value_of,
    words_of,
)
from structalign.util.errors import UserError

VALIDATION = "val_"
"""Prefix of the objectives that are measured on validation videos."""

DRAW = "draw"
"""Attribute of a trial: the number of the job that made it."""

NO_OBJECTIVE = "no objective"
"""How the error begins after which no further trial makes sense."""


@dataclass(frozen=True)
class Tuning:
    """A search for the values of one label that give the best objective.

    Attributes
    ----------
    workspace : Workspace
    name : str
        Optuna's name for it; it changes with all that decides what a trial measures.
    label : str
    data : str
        Name of the data set.
    overrides : tuple of str
        Of every trial.
    space : dict of str to distribution
    untuned : dict of str to any
        What the searched keys are without tuning; the first trial has these values.
    seeds : tuple of int
        A trial's value is the mean over these.
    objective : str
        A key of `metrics/summary.json`, to be made as large as possible.
    journal : Path
        Optuna's journal file.
    quick : bool
        Trials are `TrialRun`s, and those that fall behind the others are stopped.
    """

    workspace: Workspace
    name: str
    label: str
    data: str
    overrides: tuple[str, ...]
    space: dict[str, BaseDistribution]
    untuned: dict[str, Any]
    seeds: tuple[int, ...]
    objective: str
    journal: Path
    quick: bool = False

    @classmethod
    def of(
        cls,
        searched: SearchSpace,
        label: str,
        overrides: Sequence[str],
        seeds: Sequence[int],
        objective: str,
        workspace: Workspace,
        journal: Path,
        quick: bool = False,
    ) -> Tuning:
        """Set up the search for a label; further overrides of the caller's come before the label's own.

        Raises
        ------
        UserError
            If overrides do not compose, nothing lies around an untuned value, or the objective cannot be measured.
        """
        settings = (*overrides, *searched.overrides, *searched.labels[label])
        run = make_run(["tune", label], label, seeds[0], settings, workspace.source)
        parameters = composed([run])[run.name]
        select = value_of(parameters, "train.select")
        if not objective.startswith(VALIDATION) or select == "best_on_test":
            raise UserError(
                f"{label}: --objective {objective} with train.select={select} would tune on test videos; "
                "objectives start with val_, and train.select is last or best_on_val"
            )
        if not value_of(parameters, "split.validation"):
            raise UserError(
                f"{label}: --objective {objective} needs validation videos, and split.validation = 0; "
                "`-S split.validation=20` sets 20 of each category aside"
            )
        untuned = {key: value_of(parameters, key) for key in searched.spaces[label]}
        space = {
            key: domain.around(untuned[key], f"{label}: {key}") if isinstance(domain, Times) else domain
            for key, domain in searched.spaces[label].items()
        }
        decides = repr(
            (settings, sorted(map(repr, space.items())), tuple(seeds), objective, quick, workspace.source.code)
        )
        digest = hashlib.sha256(decides.encode() + named_files(settings, workspace.source)).hexdigest()
        name = f"{searched.name}-{label}-{digest[:8]}"
        data = value_of(parameters, "data.name")
        return cls(workspace, name, label, data, settings, space, untuned, tuple(seeds), objective, journal, quick)

    @property
    def result(self) -> str:
        """Name of what is found, as `tuned=NAME` takes it: the label, and the data set and K that were asked for."""
        return "-".join([self.label, *words_of(self.overrides)])

    def study(self, draw: int = 0) -> optuna.Study:
        """Open Optuna's study of this search; `draw` decides what its sampler draws."""
        self.journal.parent.mkdir(parents=True, exist_ok=True)
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        storage = JournalStorage(JournalFileBackend(str(self.journal)))
        sampler = optuna.samplers.TPESampler(seed=draw, constant_liar=True)
        # The first task alone says little: what learns most of it may forget most of it. (Pruners that look at a
        # trial's best value so far never stop anything here: recall falls as the gallery grows.)
        pruner = optuna.pruners.SuccessiveHalvingPruner(min_resource=2, reduction_factor=2)
        return optuna.create_study(
            storage=storage,
            sampler=sampler,
            pruner=pruner if self.quick else optuna.pruners.NopPruner(),
            study_name=self.name,
            direction="maximize",
            load_if_exists=True,
        )

    def runs(self, values: Mapping[str, Any]) -> list[StudyRun]:
        """List the runs of a trial with these values, one a seed."""
        chosen = [*self.overrides, *(f"{key}={json.dumps(value)}" for key, value in values.items())]
        return [
            make_run(["tune", self.label], self.label, seed, chosen, self.workspace.source) for seed in self.seeds
        ]

    def begin_with_defaults(self) -> None:
        """Let the first trial have the values that the label has untuned.

        Values outside of what is searched are left to the sampler.
        """
        study = self.study()
        if study.get_trials(deepcopy=False):
            return
        values = {key: value for key, value in self.untuned.items() if offers(self.space[key], value)}
        study.enqueue_trial(values)

    def trial_lock(self, number: int) -> FileLock:
        """Lock that the job of a trial holds for as long as it works: if it can be taken, the job is gone."""
        return self.workspace.lock(f"{self.name}-{number}")


def retry_lost(tuning: Tuning, study: optuna.Study) -> None:
    """Mark trials as failed whose job is gone, and have their values tried again."""
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        try:
            with tuning.trial_lock(trial.number).acquire(timeout=0):
                ended = study.tell(trial.number, state=TrialState.FAIL, skip_if_finished=True)
                if ended.state is TrialState.FAIL:  # it may have reported its value after it was listed
                    study.enqueue_trial(trial.params, skip_if_exists=False)
        except Timeout:
            continue


@dataclass(frozen=True)
class Trial:
    """One trial, as a job.

    Attributes
    ----------
    tuning : Tuning
    draw : int
        Different for each job, so that jobs that start together try different values.
    """

    tuning: Tuning
    draw: int

    @property
    def name(self) -> str:
        """The job's name."""
        return f"{self.tuning.name}-job{self.draw}"

    def has_ended(self) -> bool:
        """Whether Optuna knows how the trial of this job ended."""
        trials = self.tuning.study().get_trials(deepcopy=False)
        return any(trial.user_attrs.get(DRAW) == self.draw and trial.state.is_finished() for trial in trials)

    def __call__(self) -> None:
        """Get values from Optuna, run them, and report the result."""
        tuning = self.tuning
        path = tuning.workspace.start_log(self.name)
        study = tuning.study(self.draw)
        with ExitStack() as stack:
            with FileLock(f"{tuning.journal}.ask"):
                retry_lost(tuning, study)
                trial = study.ask(tuning.space)
                trial.set_user_attr(DRAW, self.draw)
                stack.enter_context(tuning.trial_lock(trial.number))
            try:
                study.tell(trial, self._quick_value(trial) if tuning.quick else self._value(trial.params))
            except optuna.TrialPruned:
                study.tell(trial, state=TrialState.PRUNED)
            except Exception as error:
                study.tell(trial, state=TrialState.FAIL)
                note_error(path, error)
                sys.exit(1)

    def checkpoint(self) -> DelayedSubmission:
        """Resubmit the same job: it retries the values of the trial that ends here."""
        return DelayedSubmission(self)

    def _value(self, values: Mapping[str, Any]) -> float:
        """Run a trial with every seed; return the mean of the objective."""
        tuning = self.tuning
        measured = []
        for run in tuning.runs(values):
            Experiment(tuning.workspace, run.name, run.overrides).do()
            summary = Experiments(tuning.workspace.source.project).summary(run.name)
            measured.append(objective_in(summary, tuning.objective))
        return statistics.mean(measured)

    def _quick_value(self, trial: optuna.Trial) -> float:
        """Run a trial with every seed; return the mean R@1 on validation videos after the last task.

        Raises
        ------
        TrialPruned
            As soon as the trial falls behind.
        """
        measured, steps = [], 0
        for run in self.tuning.runs(trial.params):
            progress = Progress(trial, steps)
            TrialRun(self.tuning.workspace, run.name, run.overrides, progress).do()
            if progress.stopped:
                raise optuna.TrialPruned
            steps += len(progress.values)
            measured.append(progress.values[-1])
        return statistics.mean(measured)


class Progress:
    """What a quick run has measured so far, task by task, as reported to Optuna.

    Parameters
    ----------
    trial : Trial
        Optuna's.
    steps : int
        How many values the runs before this one have reported.

    Attributes
    ----------
    values : list of float
    stopped : bool
        Whether the run was ended because it fell behind.
    """

    def __init__(self, trial: optuna.Trial, steps: int) -> None:
        self.trial, self.steps = trial, steps
        self.values: list[float] = []
        self.stopped = False

    def falls_behind(self, values: Sequence[float]) -> bool:
        """Report what is new in `values` to Optuna; return whether it would stop the trial."""
        for value in values[len(self.values) :]:
            self.values.append(value)
            self.trial.report(value, self.steps + len(self.values))
        return self.trial.should_prune()


@dataclass(frozen=True)
class TrialRun(Job):
    """All tasks in one process, in a clone; what is measured goes to `progress`, and nothing else is kept.

    Attributes
    ----------
    overrides : tuple of str
    progress : Progress
    """

    overrides: tuple[str, ...]
    progress: Progress

    def is_done(self) -> bool:
        """Never: it leaves nothing behind."""
        return False

    def work(self, folder: Path) -> None:
        """Run until all tasks are learnt, or it falls behind."""
        self.workspace.prepare(self.name, folder, self.overrides, SHARED_STAGES)
        self.progress.stopped = self.workspace.call(
            self.name, folder, "stages.trial", stop_when=lambda: self._falls_behind(folder)
        )
        self._falls_behind(folder)  # tells of the last task

    def _falls_behind(self, folder: Path) -> bool:
        path = folder / paths.TRIAL
        return path.exists() and self.progress.falls_behind(json.loads(path.read_text(encoding="utf-8")))


def objective_in(summary: Mapping[str, Any], key: str) -> float:
    """Read the objective from a run's summary.

    Raises
    ------
    UserError
        If the summary has no such number.
    """
    value = summary.get(key)
    if not isinstance(value, int | float) or not math.isfinite(value):
        numbers = ", ".join(name for name, number in summary.items() if isinstance(number, int | float))
        raise UserError(f"{NO_OBJECTIVE} {key}: metrics/summary.json has {numbers}")
    return float(value)
