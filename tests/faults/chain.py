"""A copy of this checkout with a chain of two small tasks: what the fault drill and the repetition run."""

from __future__ import annotations

import contextlib
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable
from datetime import date
from pathlib import Path
from typing import IO

import psutil
import yaml

from tests.helpers.checkout import copy_checkout

SMALL = [
    "threads=1",
    "K=2",
    "data.categories=4",
    "data.train_videos=10",
    "data.test_videos=5",
    "split.shots=6",
    "split.validation=0",
    "frames.num_frames=2",
    "model.experts=2",
    "model.rank=4",
    "train.epochs=4",
    "train.batch_size=8",
]

STAGES = ("download", "backbone", "frames", "split", "train@01", "evaluate@01", "train@02", "evaluate@02", "report")
"""In the order that DVC runs them, and notes them in dvc.lock."""

COMPARED = (
    "data/split/*",
    "data/frames/*",
    "models/*/*",
    "data/gallery/*/*",
    "plots/*.csv",
    "plots/loss/*",
    "metrics/task-*/recall.json",
    "metrics/task-*/features.safetensors",
    "metrics/task-*/loss.csv",
    "metrics/task-*/cost.json",
    "metrics/cost/*",
    "metrics/summary.json",
    "dvc.lock",
)
"""What has to be the same, byte for byte."""


class Project:
    """A repository of its own, in which DVC runs as a user would run it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @classmethod
    def create(cls, folder: Path, *overrides: str) -> Project:
        """Copy what git knows of this checkout, with the small parameters."""
        copy_checkout(folder)
        made = cls(folder)
        made.call("git", "init", "--quiet")
        made.compose("machine.workers=2", *overrides)
        return made

    def copy(self, folder: Path) -> Project:
        """Copy the project as it stands, with DVC's cache."""
        subprocess.run(["cp", "-a", "--reflink=auto", f"{self.folder}/.", str(folder)], check=True)
        made = Project(folder)
        made.keep_notes_aside()
        return made

    def keep_notes_aside(self) -> None:
        """Let DVC keep what it would note under /var/tmp beside the project, so that nothing stays behind."""
        local = self.folder / ".dvc/config.local"
        local.write_text(f"[core]\n    site_cache_dir = {self.folder.with_suffix('.notes')}\n")

    def compose(self, *overrides: str) -> None:
        """Write params.yaml."""
        self.keep_notes_aside()
        self.call(sys.executable, "-m", "structalign", "params", *SMALL, *overrides)

    def environment(self) -> dict[str, str]:
        """Environment variables of everything that runs here."""
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        fixed = {"PATH": path, "DVC_NO_ANALYTICS": "1", "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
        return {**os.environ, **fixed}

    def call(self, *command: str) -> str:
        """Run a command that has to succeed; return what it printed."""
        done = subprocess.run(
            command,
            cwd=self.folder,
            env=self.environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)} exited with {done.returncode}:\n{done.stdout[-4000:]}")
        return done.stdout

    def repro(self, *options: str) -> Repro:
        """Start `dvc repro`."""
        return Repro(self, options)

    def forget(self, stage: str) -> None:
        """Take the chain back to before `stage`; what DVC remembers of later stages' runs stays."""
        path = self.folder / "dvc.lock"
        lock = yaml.safe_load(path.read_text())
        for name in STAGES[STAGES.index(stage) :]:
            for out in lock["stages"].pop(name)["outs"]:
                target = self.folder / out["path"]
                shutil.rmtree(target) if target.is_dir() else target.unlink()
        path.write_text(yaml.safe_dump(lock, sort_keys=False))
        self._forget_runs(stage)

    def _forget_runs(self, stage: str) -> None:
        name, _, task = stage.partition("@")
        command = f"python -m stages.{name}" + (f" --task {task}" if task else "")
        for path in list((self.folder / ".dvc/cache/runs").glob("*/*/*")):
            if yaml.safe_load(path.read_text())["cmd"] == command:
                shutil.rmtree(path.parent)  # DVC stumbles over a folder that is left empty

    def results(self, patterns: Iterable[str] = COMPARED) -> dict[str, str]:
        """SHA-256 of all outputs that have to be the same."""
        paths = sorted(path for pattern in patterns for path in self.folder.glob(pattern) if path.is_file())
        return {str(path.relative_to(self.folder)): _sha256(path.read_bytes()) for path in paths}


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


class Repro:
    """A `dvc repro` under way."""

    def __init__(self, project: Project, options: Iterable[str] = ()) -> None:
        # Beside the project, whose disk may be full.
        self.log: IO[str] = project.folder.with_suffix(".log").open("w")
        command = ["dvc", "repro", *options]
        self.started = time.monotonic()
        self.process = psutil.Popen(
            command, cwd=project.folder, env=project.environment(), stdout=self.log, stderr=subprocess.STDOUT
        )
        self.seen: set[psutil.Process] = set()

    def output(self) -> str:
        """What it has printed so far."""
        return Path(self.log.name).read_text(errors="replace").replace("\r", "\n")

    def family(self) -> list[psutil.Process]:
        """Find all processes below DVC; those seen once are remembered."""
        with contextlib.suppress(psutil.NoSuchProcess):
            self.seen.update(self.process.children(recursive=True))
        return [process for process in self.seen if process.is_running()]

    def wait(self, timeout: float = 900) -> int:
        """Wait for the end; return the exit status."""
        status = self.process.wait(timeout)
        self.log.flush()
        return status

    def end(self) -> None:
        """Make sure that nothing is left running."""
        for process in [*self.family(), self.process]:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(list(self.seen), timeout=20)
        self.log.close()


def machine() -> str:
    """Date and machine, for the head of a report."""
    memory = psutil.virtual_memory().total / 2**30
    return (
        f"{date.today()}, {psutil.cpu_count()} cores ({platform.machine()}), {memory:.0f} GB of memory, "
        f"Python {platform.python_version()}"
    )
