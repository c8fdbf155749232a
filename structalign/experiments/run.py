"""One experiment, from start to end, in a clone of the project: what an executor runs, on whatever machine.

A run may be killed at any moment and called again. The clone is thrown away; what its finished stages made is in
DVC's cache, and an interrupted training resumes from the project's `.cache/resume`.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
import traceback
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import psutil
from filelock import FileLock
from submitit.helpers import DelayedSubmission

from structalign import paths
from structalign.experiments.results import Experiments, QuickResults, dvc_cache, finished
from structalign.experiments.source import CodeSnapshot, git
from structalign.experiments.study import SHARED_STAGES
from structalign.util.errors import UserError, first_ten
from structalign.util.files import PROJECT_VARIABLE
from structalign.util.log import log
from structalign.util.workers import exit_reason

RUN_VARIABLE = "STRUCTALIGN_RUN"
"""Environment variable of every process of a run: its clone. So processes that outlived their parent are found."""

STARTED = "=== started "

GRACE_SECONDS = 600
"""Longer than Slurm waits between asking a job to end and ending it."""
_LOGGED_ERROR = re.compile(r"\d\d:\d\d:\d\d ERROR +(.+)")


@dataclass(frozen=True)
class Workspace:
    """Where runs happen and what they share.

    Attributes
    ----------
    source : CodeSnapshot
        The code that they run.
    scratch : Path
        Folder for clones, logs and locks, on a file system that all machines share.
    cache : Path
        The project's DVC cache.
    """

    source: CodeSnapshot
    scratch: Path
    cache: Path

    @classmethod
    def of(cls, project: Path, scratch: Path | None) -> Workspace:
        """Take the code as it is now; warn if it is not that of a commit.

        Parameters
        ----------
        project : Path
        scratch : Path, optional
            By default the project's `paths.RUNS`.

        Raises
        ------
        UserError
            If the project is not a git repository with a commit, or not a DVC project.
        """
        source = CodeSnapshot.of(project)
        if changed := source.changed_files:
            log.warning(f"uncommitted changes go into every run, and its name: {first_ten(changed)}")
        return cls(source, (scratch or project / paths.RUNS).resolve(), dvc_cache(project))

    def log_path(self, name: str) -> Path:
        """Where a run's output goes."""
        return self.scratch / "logs" / f"{name}.log"

    def start_log(self, name: str) -> Path:
        """Note in a run's log that an attempt starts, when and on which machine; return the log's path."""
        path = self.log_path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        note(path, f"{STARTED}{datetime.now():%Y-%m-%d %H:%M:%S} on {os.uname().nodename}")
        return path

    @contextmanager
    def clone(self, name: str) -> Iterator[Path]:
        """Yield a fresh clone of one's own; whatever runs in it ends with the block, and so does the clone."""
        folder = self.scratch / name
        end_processes(folder)
        shutil.rmtree(folder, ignore_errors=True)
        try:
            self.source.clone(folder, self.cache)
            yield folder
        finally:
            end_processes(folder)
            shutil.rmtree(folder, ignore_errors=True)

    def lock(self, name: str) -> FileLock:
        """Lock that whoever works on the run or trial `name` holds, with `with`."""
        return FileLock(self.scratch / "locks" / f"{name}.lock", poll_interval=1)

    def prepare(self, name: str, folder: Path, overrides: Iterable[str], stages: Iterable[str]) -> None:
        """Compose the parameters of a clone and make stages there, with what they need.

        Parameters
        ----------
        name : str
            The run's.
        folder : Path
            The clone.
        overrides : iterable of str
            As `dvc exp run -S` takes them.
        stages : iterable of str

        Raises
        ------
        UserError
            If overrides do not compose, or a stage fails; the log says why.
        """
        self.call(name, folder, "structalign", "params", *overrides)
        self.call(name, folder, "dvc", "repro", *stages)

    def call(self, name: str, folder: Path, *arguments: str, stop_when: Callable[[], bool] | None = None) -> bool:
        """Run a Python module in a clone; its output goes to the run's log.

        Parameters
        ----------
        name : str
            The run's.
        folder : Path
        *arguments : str
            The module and what it is called with.
        stop_when : callable, optional
            Asked every second; the module is ended as soon as it says so.

        Returns
        -------
        bool
            Whether it was ended because `stop_when` said so.

        Raises
        ------
        UserError
            If it fails; the log says why.
        """
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        marks = {RUN_VARIABLE: str(folder), PROJECT_VARIABLE: str(self.source.project)}
        environment = {**os.environ, "PATH": path, "DVC_NO_ANALYTICS": "1", **marks}
        with self.log_path(name).open("ab") as output:
            command = [sys.executable, "-m", *arguments]
            process = subprocess.Popen(command, cwd=folder, env=environment, stdout=output, stderr=output)
            while stop_when and process.poll() is None:
                if stop_when():
                    end_processes(folder)
                    return True
                time.sleep(1)
            status = process.wait()
        if status in (-signal.SIGTERM, -signal.SIGUSR2) and "SLURM_JOB_ID" in os.environ:
            time.sleep(GRACE_SECONDS)  # Slurm takes the machine away: our end would count as that of the job
        if status < 0:
            raise UserError(f"it was {exit_reason(status)}")
        if status:
            raise UserError(last_error(self.log_path(name)) or f"{arguments[0]} ended with exit status {status}")
        return False


@dataclass(frozen=True)
class Job(ABC):
    """Something to do in a workspace, once at a time; submitit calls it, and calls it again after a preemption.

    Attributes
    ----------
    workspace : Workspace
    name : str
    """

    workspace: Workspace
    name: str

    def __call__(self) -> None:
        """Do it unless it has been done; exit with status 1 if it fails."""
        try:
            self.do()
        except UserError:
            sys.exit(1)

    def do(self) -> None:
        """Do it unless it has been done.

        Raises
        ------
        UserError
            If it fails; the last line of the log says the same.
        """
        with self.workspace.lock(self.name):
            if self.is_done():
                return
            path = self.workspace.start_log(self.name)
            try:
                with self.workspace.clone(self.name) as folder:
                    self.work(folder)
            except Exception as error:  # whatever it is, the log tells it: nobody reads what a job prints
                raise UserError(note_error(path, error)) from None

    def checkpoint(self) -> DelayedSubmission:
        """End what runs before the machine is taken away; resubmit the same job, which continues later."""
        end_processes(self.workspace.scratch / self.name)
        return DelayedSubmission(self)

    @abstractmethod
    def is_done(self) -> bool:
        """Whether somebody else has done it."""

    @abstractmethod
    def work(self, folder: Path) -> None:
        """Do it in a fresh clone."""


@dataclass(frozen=True)
class Experiment(Job):
    """`dvc exp run`, whose result goes to the project.

    Attributes
    ----------
    overrides : tuple of str
        As `dvc exp run -S` takes them.
    """

    overrides: tuple[str, ...]

    def is_done(self) -> bool:
        """Whether the project has the experiment."""
        return self.name in Experiments(self.workspace.source.project).names()

    def work(self, folder: Path) -> None:
        """Run the chain and hand the experiment over."""
        settings = [part for item in self.overrides for part in ("-S", item)]
        self.workspace.call(self.name, folder, "dvc", "exp", "run", "--name", self.name, *settings)
        made = finished(folder)[self.name]
        git("push", "--quiet", "origin", f"{made}:{made}", folder=folder)


class QuickExperiment(Experiment):
    """All tasks in one process, whose numbers alone go to the project."""

    def is_done(self) -> bool:
        """Whether the project has its numbers."""
        return self.name in QuickResults(self.workspace.source.project).names()

    def work(self, folder: Path) -> None:
        """Take what runs share from DVC's cache, run the rest, and hand the numbers over."""
        self.workspace.prepare(self.name, folder, self.overrides, SHARED_STAGES)
        self.workspace.call(self.name, folder, "stages.quick")
        QuickResults(self.workspace.source.project).keep(self.name, folder)


@dataclass(frozen=True)
class Preparation(Job):
    """What several experiments share, made once, so that they find it in DVC's cache.

    Attributes
    ----------
    stages : tuple of str
        The stages to make, with what they need.
    variants : tuple of tuple of str
        Overrides of one experiment for each different thing to prepare.
    """

    stages: tuple[str, ...]
    variants: tuple[tuple[str, ...], ...]

    def is_done(self) -> bool:
        """Never: DVC knows what is there."""
        return False

    def work(self, folder: Path) -> None:
        """Run the stages for one variant after another; one that fails does not keep the others off."""
        failures = []
        for overrides in self.variants:
            try:
                self.workspace.prepare(self.name, folder, overrides, self.stages)
            except UserError as error:
                failures.append(str(error))
        if failures:
            raise UserError("; ".join(dict.fromkeys(failures)))


def end_processes(folder: Path) -> None:
    """Kill every process of this machine that belongs to the run in `folder`."""
    while found := [process for process in psutil.process_iter() if _belongs(process, folder)]:
        for process in found:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(found, timeout=20)


def _belongs(process: psutil.Process, folder: Path) -> bool:
    try:
        return process.environ().get(RUN_VARIABLE) == str(folder) and process.status() != psutil.STATUS_ZOMBIE
    except (psutil.Error, OSError):  # of another user, or gone
        return False


def last_error(path: Path) -> str:
    """Find what went wrong in the last attempt that a log tells of; empty if it does not say.

    What a stage said is worth more than DVC's remark that the stage failed.
    """
    text = path.read_text(encoding="utf-8", errors="replace").replace("\r", "\n") if path.exists() else ""
    lines = [line.strip() for line in text.rpartition(STARTED)[2].splitlines()[1:] if line.strip()]
    stage = [match[1] for line in lines if (match := _LOGGED_ERROR.match(line))]
    others = [line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR: ")]
    return (stage or others or [""])[-1]


def note_error(path: Path, error: Exception) -> str:
    """Add to a log what went wrong, with a traceback if no user can fix it; return it in one line."""
    reason = " ".join(str(error).split())
    if not isinstance(error, UserError | OSError):
        note(path, "".join(traceback.format_exception(error)))
        reason = f"{type(error).__name__}: {reason}"
    note(path, f"ERROR: {reason}")
    return reason


def note(path: Path, line: str) -> None:
    """Add a line to a log; a full disk may refuse it."""
    with suppress(OSError), path.open("a", encoding="utf-8") as stream:
        stream.write(line + "\n")
