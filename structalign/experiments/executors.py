"""Where jobs run: on this machine, or on a cluster through Slurm. submitit starts them; here they are watched."""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import takewhile
from pathlib import Path

import psutil
import submitit
from submitit.core.utils import FailedJobError, FailedSubmissionError

from structalign import paths
from structalign.util.errors import UserError
from structalign.util.log import log

EXECUTORS = ("local", "slurm")

FOREVER = 60 * 24 * 365
"""Minutes that a job on this machine may take."""

MAX_TIMEOUTS = 20
"""How often a job may reach its time limit; each time it goes on from where it was."""

LOCAL_POLL, SLURM_POLL = 0.5, 5.0
"""Seconds between two looks at the jobs."""

CANCEL_SECONDS = 10.0
"""Time that cancelled jobs on this machine get to tidy up."""

Work = Callable[[], None]


@dataclass(frozen=True)
class Resources:
    """What a job gets, and where.

    Attributes
    ----------
    executor : str
        One of `EXECUTORS`.
    jobs : int
        How many may run at a time; 0 for all.
    gpus : int or None
        GPUs of a job. None: on this machine all that it has, divided among the jobs; on Slurm none.
    cpus : int or None
        CPU cores of a job on Slurm.
    minutes : int
        Time limit of a job on Slurm.
    partition : str or None
    sbatch : dict of str to str
        Further options of sbatch.
    """

    executor: str = "local"
    jobs: int = 1
    gpus: int | None = None
    cpus: int | None = None
    minutes: int = 24 * 60
    partition: str | None = None
    sbatch: dict[str, str] = field(default_factory=dict)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options from which `resources` reads."""
    group = parser.add_argument_group("where it runs")
    group.add_argument("--executor", default="local", help="local or slurm (default: %(default)s)")
    group.add_argument("--jobs", type=int, default=None, help="at a time (default: 1 here, all at once on Slurm)")
    group.add_argument("--gpus", type=int, default=None, help="of each job (default: here all / jobs, on Slurm none)")
    group.add_argument("--cpus", type=int, default=None, help="of each job on Slurm")
    group.add_argument("--time", default="24:00:00", help="limit of each job on Slurm (default: %(default)s)")
    group.add_argument("--partition", default=None, help="of Slurm")
    group.add_argument(
        "--sbatch", action="append", default=[], metavar="KEY=VALUE", help="any other option, such as account=lab"
    )
    group.add_argument(
        "--scratch", type=Path, default=None, help=f"folder for clones and logs (default: {paths.RUNS})"
    )


def resources(args: argparse.Namespace) -> Resources:
    """Check the options of `add_arguments`.

    Raises
    ------
    UserError
        If an option has an impossible value, or there is no Slurm here.
    """
    if args.executor not in EXECUTORS:
        raise UserError(f"--executor {args.executor}: must be {' or '.join(EXECUTORS)}")
    if args.executor == "slurm" and not shutil.which("sbatch"):
        raise UserError("--executor slurm: there is no sbatch here; call this on a cluster's login node")
    if args.jobs is not None and args.jobs < 1:
        raise UserError(f"--jobs {args.jobs}: must be at least 1")
    if args.gpus is not None and args.gpus < 0:
        raise UserError(f"--gpus {args.gpus}: must be 0 or more")
    options = dict(item.partition("=")[::2] for item in args.sbatch)
    if not all(options.values()):
        raise UserError(f"--sbatch {' '.join(args.sbatch)}: must be KEY=VALUE, such as account=lab")
    jobs = args.jobs or (1 if args.executor == "local" else 0)
    return Resources(args.executor, jobs, args.gpus, args.cpus, _minutes(args.time), args.partition, options)


def _minutes(text: str) -> int:
    """Read a time limit as sbatch writes it: minutes, `H:MM:SS`, `D-H`, `D-H:MM` or `D-H:MM:SS`, rounded up."""
    days, _, rest = text.rpartition("-")
    try:
        parts = [int(part) for part in rest.split(":")]
        whole_days = int(days or 0)
    except ValueError:
        parts = []
    if len(parts) not in ((1, 2, 3) if days else (1, 3)) or min(parts) < 0 or text.startswith("-"):
        raise UserError(f"--time {text}: must be minutes or [days-]hours:minutes:seconds, such as 24:00:00")
    if len(parts) == 1 and not days:
        return parts[0]
    hours, minutes, seconds = (*parts, 0, 0)[:3]
    return (whole_days * 24 + hours) * 60 + minutes + (seconds > 0)


class Fleet:
    """Jobs under way: at most so many at a time, and none of them left behind at the end.

    Parameters
    ----------
    resources : Resources
    scratch : Path
        Folder for what submitit writes, on a file system that all machines share.

    Raises
    ------
    UserError
        If this machine has too few GPUs for so many jobs at a time.
    """

    def __init__(self, resources: Resources, scratch: Path) -> None:
        self.resources = resources
        self.local = resources.executor == "local"
        self.free = _gpu_shares(resources) if self.local else []
        self.scratch = scratch
        self.running: dict[str, submitit.Job[None]] = {}
        self.held: dict[str, tuple[int, ...]] = {}

    def run(self, work: Mapping[str, Work]) -> Generator[str, None, None]:
        """Run everything; yield each name as its job ends, well or not.

        Jobs are cancelled if the loop is left early. Jobs on Slurm that an earlier call left behind, and that
        have these names, are waited for.

        Parameters
        ----------
        work : mapping of str to callable
            By name; must be picklable.

        Raises
        ------
        UserError
            If Slurm refuses a job, or cannot say which jobs it has.
        """
        self.scratch.mkdir(parents=True, exist_ok=True)
        # One of this call alone: submitit names files by process, and process ids are reused.
        folder = Path(tempfile.mkdtemp(dir=self.scratch, prefix="jobs-"))
        names = [] if self.local else _queued()
        self.running = {name: submitit.SlurmJob(folder, job) for name, job in names if name in work}
        waiting = [name for name in work if name not in self.running]
        limit = self.resources.jobs or len(work)
        try:
            while waiting or self.running:
                while waiting and len(self.running) < limit:
                    name = waiting.pop(0)
                    self.running[name] = self._submit(name, work[name], folder)
                ended = self._ended()
                for name in ended:
                    del self.running[name]
                    self.free.append(self.held.pop(name, ()))
                    yield name
                if not ended:
                    time.sleep(LOCAL_POLL if self.local else SLURM_POLL)
        finally:
            self._cancel()
            shutil.rmtree(folder, ignore_errors=True)

    def _submit(self, name: str, work: Work, folder: Path) -> submitit.Job[None]:
        wanted = self.resources
        executor: submitit.LocalExecutor | submitit.SlurmExecutor
        if self.local:
            gpus = self.held[name] = self.free.pop(0)
            executor = submitit.LocalExecutor(folder)
            executor.update_parameters(timeout_min=FOREVER, gpus_per_node=len(gpus), visible_gpus=gpus)
        else:
            executor = submitit.SlurmExecutor(folder, max_num_timeout=MAX_TIMEOUTS)
            executor.update_parameters(
                job_name=name,
                time=wanted.minutes,
                gpus_per_node=wanted.gpus,
                cpus_per_task=wanted.cpus,
                partition=wanted.partition,
                additional_parameters={"requeue": True, **wanted.sbatch},
            )
        try:
            return executor.submit(work)
        except (FailedJobError, FailedSubmissionError, subprocess.CalledProcessError) as error:
            raise UserError(f"Slurm refuses {name}: {' '.join(str(error).split())}") from None

    def _ended(self) -> list[str]:
        if self.local:
            return [name for name, job in self.running.items() if job.done()]
        try:
            alive = {job for _, job in _queued()}
        except UserError as error:  # the controller is busy or restarts; the jobs are not affected
            log.debug(str(error))
            return []
        return [name for name, job in self.running.items() if job.job_id not in alive]

    def _cancel(self) -> None:
        """Cancel what runs; on this machine, wait for its end and see that no process outlives it."""
        family = self._family() if self.local else []
        for job in self.running.values():
            job.cancel(check=False)
        _, alive = psutil.wait_procs(family, timeout=CANCEL_SECONDS)
        for process in alive:
            with suppress(psutil.NoSuchProcess):
                process.kill()

    def _family(self) -> list[psutil.Process]:
        family: list[psutil.Process] = []
        for job in self.running.values():
            with suppress(psutil.NoSuchProcess):
                family += psutil.Process(int(job.job_id)).children(recursive=True)
        return family


def _queued() -> list[tuple[str, str]]:
    """List the names and numbers of our jobs that Slurm has not ended."""
    command = ["squeue", "--me", "--noheader", "--format=%j %i"]
    done = subprocess.run(command, text=True, capture_output=True, check=False)
    if done.returncode:
        raise UserError(f"squeue: {' '.join(done.stderr.split())}")
    return [(name, job) for name, _, job in (line.strip().rpartition(" ") for line in done.stdout.splitlines())]


def _gpu_shares(wanted: Resources) -> list[tuple[int, ...]]:
    """Say which GPUs of this machine each of the jobs at a time gets; jobs share them only if they are too few."""
    present = _gpus()
    if wanted.gpus is None:
        share = max(1, len(present) // wanted.jobs)
        places = [range(job * share, (job + 1) * share) if present else () for job in range(wanted.jobs)]
        return [tuple(present[place % len(present)] for place in own) for own in places]
    if wanted.gpus * wanted.jobs > len(present):
        raise UserError(f"--jobs {wanted.jobs} with --gpus {wanted.gpus}: there are {len(present)} GPUs here")
    return [tuple(present[job * wanted.gpus : (job + 1) * wanted.gpus]) for job in range(wanted.jobs)]


def _gpus() -> list[int]:
    """Number the GPUs that this process may use."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        names = [part.strip() for part in visible.split(",") if part.strip()]
        if unclear := [name for name in names if not name.removeprefix("-").isdigit()]:
            raise UserError(
                f"CUDA_VISIBLE_DEVICES: {unclear[0]}: name the GPUs by number, so that jobs can share them"
            )
        return [int(name) for name in takewhile(str.isdigit, names)]  # CUDA ignores what follows a -1
    if not shutil.which("nvidia-smi"):
        return []
    listed = subprocess.run(["nvidia-smi", "--list-gpus"], text=True, capture_output=True, check=False)
    return list(range(listed.stdout.count("GPU "))) if listed.returncode == 0 else []
