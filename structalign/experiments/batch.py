"""Many runs at once: which are missing, what they share, and what became of each."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

from structalign.experiments.executors import Fleet, Resources
from structalign.experiments.results import Experiments, QuickResults, Results
from structalign.experiments.run import Experiment, Preparation, QuickExperiment, Workspace, last_error
from structalign.experiments.study import SHARED_STAGES, StudyRun, to_prepare
from structalign.util.log import log, progress_bar

ARRIVAL_SECONDS = 15
"""How long a shared file system may take to show what another machine wrote."""


def run_missing(
    runs: Sequence[StudyRun], workspace: Workspace, resources: Resources, quick: bool = False
) -> dict[str, str]:
    """Run what the project does not have yet.

    Parameters
    ----------
    runs : sequence of StudyRun
    workspace : Workspace
    resources : Resources
    quick : bool
        Whether a run is one process, of which the project keeps the numbers alone.

    Returns
    -------
    dict of str to str
        What went wrong, by name of the run; empty if the project has them all.

    Raises
    ------
    UserError
        Before anything starts: if overrides do not compose, or the executor cannot be had.
    """
    results = results_of(workspace, quick)
    present = results.names()
    missing = [run for run in runs if run.name not in present]
    log.info(
        f"{len(runs) - len(missing)} of {len(runs)} runs are there" + (f": {len(missing)} to go" * bool(missing))
    )
    fleet = Fleet(resources, workspace.scratch)
    prepare(missing, workspace, fleet)
    job = QuickExperiment if quick else Experiment
    work = {run.name: job(workspace, run.name, run.overrides) for run in missing}
    errors = {}
    with progress_bar(len(work), "runs", "run") as bar, closing(fleet.run(work)) as ended:
        for name in ended:
            bar.update()
            path = workspace.log_path(name)
            if not _arrived(name, results, path, 0 if fleet.local else ARRIVAL_SECONDS):
                errors[name] = last_error(path) or "it was killed"
                log.error(f"{name}: {errors[name]} ({path})")
    return errors


def results_of(workspace: Workspace, quick: bool) -> Results:
    """Where the runs of a study, quick or not, are found."""
    return QuickResults(workspace.source.project) if quick else Experiments(workspace.source.project)


def prepare(runs: Sequence[StudyRun], workspace: Workspace, fleet: Fleet) -> None:
    """Make what runs share, before they start; see that their overrides compose.

    Failures here are not reported: each run meets the same failure and reports it.

    Raises
    ------
    UserError
        If overrides do not compose.
    """
    variants = to_prepare(runs)
    if len(runs) < 2:
        return
    digest = hashlib.sha256(repr((variants, workspace.source.commit)).encode() + workspace.source.patch).hexdigest()
    name = f"prepare-{digest[:12]}"
    log.info(f"preparing data and backbone, {len(variants)} variants ({workspace.log_path(name)})")
    with closing(fleet.run({name: Preparation(workspace, name, SHARED_STAGES, variants)})) as ended:
        for _ in ended:
            pass


def _arrived(name: str, results: Results, log_path: Path, patience: float) -> bool:
    deadline = time.monotonic() + patience
    while name not in results.names():
        if time.monotonic() >= deadline or last_error(log_path):
            return False
        time.sleep(1)
    return True
