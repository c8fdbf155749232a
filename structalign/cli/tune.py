"""Search hyper-parameters with Optuna, the same number of trials for every method.

    structalign tune --labels structalign,lwf --trials 50 --jobs 2
    structalign tune --quick --trials 16 --seeds 100 --jobs 2 -S train.epochs=6         as conf/tuned/ was made
    structalign tune --data msrvtt -S split.validation=20 --executor slurm --partition gpu --gpus 1 --jobs 8

A trial runs a label with every tuning seed, each run as an experiment of DVC's in a clone of its own. Its value is
the mean of --objective: recall on validation videos, never on the test set. Use other seeds for results. The first
trial has the values that the label has untuned. Killed trials are run again. Another call continues the
search, also with more trials, or beside a call on another machine.
The best values become conf/tuned/LABEL.yaml, with --data and --K conf/tuned/LABEL-DATA-K.yaml, in place of what is
there; `-S tuned=LABEL` adds them to a run. conf/tune/methods.yaml says what is searched.

With --quick a trial is one process that learns all tasks and measures R@1 on validation videos alone, and the worse
half of the trials is stopped after the second task, and again after the fourth (successive halving): for runs of
minutes, since a killed trial begins anew.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Iterable, Mapping
from contextlib import closing
from datetime import date
from pathlib import Path
from typing import Any

import pandas as pd
import yaml
from optuna.trial import TrialState

from structalign import paths
from structalign.experiments import executors
from structalign.experiments.batch import prepare
from structalign.experiments.run import Workspace, last_error
from structalign.experiments.search_space import middle, read_space
from structalign.experiments.source import TUNED
from structalign.experiments.study import chosen, common_overrides, output_name, seeds_of
from structalign.experiments.tuning import DRAW, NO_OBJECTIVE, Trial, Tuning
from structalign.util.command import command_parser, errors_in_one_line, parse
from structalign.util.errors import UserError
from structalign.util.files import atomic_write_text
from structalign.util.log import log, progress_bar


def main() -> None:
    """Parse the command line and tune."""
    parser = command_parser(__doc__)
    parser.add_argument("--study", default="methods", help="file in conf/tune (default: %(default)s)")
    parser.add_argument("--labels", default=None, help="of the file (default: all)")
    parser.add_argument("--trials", type=int, default=20, help="of each label, that succeed (default: %(default)s)")
    parser.add_argument("--objective", default="val_r1", help="key of metrics/summary.json (default: %(default)s)")
    parser.add_argument("--seeds", default="100,101", help="tuning seeds (default: %(default)s)")
    parser.add_argument("--data", default=None, help="file in conf/data (default: that of conf/config.yaml)")
    parser.add_argument("--K", type=int, default=None, help="number of tasks (default: that of the data set)")
    parser.add_argument(
        "-S", dest="overrides", action="append", default=[], metavar="KEY=VALUE", help="for every trial"
    )
    parser.add_argument("--quick", action="store_true", help="one process per trial; hopeless ones are stopped")
    parser.add_argument("--journal", type=Path, default=None, help=f"default: {paths.JOURNALS}/STUDY[-DATA].journal")
    executors.add_arguments(parser)
    args = parse(parser)
    with errors_in_one_line(args.debug):
        tune(args)


def tune(args: argparse.Namespace) -> None:
    """Run the trials that are missing and write the best values of each label.

    Raises
    ------
    UserError
        If a label has fewer trials than asked for at the end; what is there is kept.
    """
    resources = executors.resources(args)
    if args.quick and args.objective != "val_r1":
        raise UserError(f"--objective {args.objective}: --quick measures val_r1 alone")
    if args.trials < 1:
        raise UserError(f"--trials {args.trials}: must be at least 1")
    searched = read_space(args.study)
    labels = chosen(args.labels, searched.labels, args.study)
    common = common_overrides(args)
    workspace = Workspace.of(Path.cwd(), args.scratch)
    journal = (args.journal or paths.JOURNALS / f"{output_name(args.study, common)}.journal").resolve()
    seeds = seeds_of(args.seeds)
    tunings = [
        Tuning.of(searched, label, common, seeds, args.objective, workspace, journal, args.quick) for label in labels
    ]
    run_trials(tunings, args.trials, resources)
    missing = [tuning.label for tuning in tunings if not report(tuning, args.trials)]
    if missing:
        raise UserError(f"{', '.join(missing)}: fewer than {args.trials} trials; the same command runs the others")


def run_trials(tunings: list[Tuning], trials: int, resources: executors.Resources) -> None:
    """Run jobs until every label has its trials, or as many more have failed.

    Raises
    ------
    UserError
        If runs do not measure the objective: then none of the trials can succeed.
    """
    work = {}
    for tuning in tunings:
        tuning.begin_with_defaults()
        log.info(f"{tuning.label}: {count(tuning)} of {trials} trials are there")
        work.update({job.name: job for job in missing_trials(tuning, trials)})
    workspace = tunings[0].workspace
    fleet = executors.Fleet(resources, workspace.scratch)
    if work:
        prepare([run for tuning in tunings for run in tuning.runs(middle(tuning.space))], workspace, fleet)
    with progress_bar(len(work), "trials", "trial") as bar, closing(fleet.run(work)) as ended:
        for name in ended:
            bar.update()
            path = workspace.log_path(name)
            if error := last_error(path) or ("" if work[name].has_ended() else "it was killed"):
                log.error(f"{name}: {error} ({path})")
                if error.startswith(NO_OBJECTIVE):
                    raise UserError(error)


def missing_trials(tuning: Tuning, trials: int) -> list[Trial]:
    """List as many jobs as are missing, by the lowest numbers whose trials have not ended.

    Jobs that an earlier call left on Slurm have such numbers: so they are found by their names and count.
    """
    ended = {trial.user_attrs.get(DRAW, trial.number) for trial in tuning.study().trials if trial.state.is_finished()}
    free = (draw for draw in itertools.count(1) if draw not in ended)
    return [Trial(tuning, draw) for draw in itertools.islice(free, max(0, trials - count(tuning)))]


def count(tuning: Tuning) -> int:
    """Count the trials that succeeded, those that were stopped among them."""
    return len(tuning.study().get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED)))


def report(tuning: Tuning, trials: int) -> bool:
    """Write what a label's trials found; say whether there are enough of them."""
    study = tuning.study()
    complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    done = count(tuning)
    if complete:
        table: pd.DataFrame = study.trials_dataframe(attrs=("number", "value", "params", "state", "duration"))
        atomic_write_text(paths.TUNINGS / f"{tuning.name}.csv", table.to_csv(index=False, lineterminator="\n"))
        path = Path(TUNED, f"{tuning.result}.yaml")
        values = {"tuned_on": tuning.data, **study.best_params}
        atomic_write_text(path, tuned_config(values, provenance(tuning, study.best_value, done, len(complete))))
        log.info(f"{tuning.label}: {tuning.objective} {study.best_value:.2f} is the best of {done}: {path}")
    return done >= trials


def provenance(tuning: Tuning, value: float, trials: int, complete: int) -> list[str]:
    """Say where values come from."""
    stopped = f" ({trials - complete} of them stopped early)" if complete < trials else ""
    source = tuning.workspace.source
    changed = f", with changes in {', '.join(source.changed_files)}" if source.patch else ""
    return [
        f"The best of {trials} trials{stopped}, {date.today()}: {tuning.objective} = {value:.4f}, mean over the "
        f"seeds {', '.join(map(str, tuning.seeds))}.",
        f"Study {tuning.name}; commit {source.commit}{changed}.",
        f"Every trial: {' '.join(tuning.overrides)}",
    ]


def tuned_config(values: Mapping[str, Any], comments: Iterable[str]) -> str:
    """Write values as a file of a config group, under the keys that they have in `params.yaml`."""
    content: dict[str, Any] = {}
    for key, value in values.items():
        *parents, last = key.split(".")
        section = content
        for parent in parents:
            section = section.setdefault(parent, {})
        section[last] = value
    head = "".join(f"# {line}\n" for line in ("@package _global_", *comments))
    return head + yaml.safe_dump(content, sort_keys=False)
