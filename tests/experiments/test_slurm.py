"""The same study through a real Slurm: killed, requeued and left-behind jobs end with every run there."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.experiments.test_batch import numbers
from tests.helpers import slurm
from tests.helpers.light_chain import LightProject, wait_until

COMPARE = ("compare", "--study", "light", "--seeds", "0", "--jobs", "2")
SLURM = (*COMPARE, "--executor", "slurm", "--partition", "debug", "--cpus", "1", "--time", "0:30:00")

pytestmark = [pytest.mark.slow, pytest.mark.skipif(bool(slurm.missing()), reason=slurm.missing())]


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LightProject]:
    with slurm.slurm(tmp_path / "slurm") as configuration:
        monkeypatch.setenv("SLURM_CONF", str(configuration))
        yield LightProject(tmp_path / "project")


def queue(states: str = "PENDING,RUNNING") -> dict[str, str]:
    """Jobs of the present Slurm in these states: numbers and names."""
    command = ["squeue", "--noheader", "--format=%i %j", f"--states={states}"]
    lines = subprocess.run(command, text=True, capture_output=True, check=True).stdout.splitlines()
    return dict(line.strip().split() for line in lines)


def start_now(job: str) -> bool:
    """Spare a requeued job the two minutes for which Slurm lets it wait; False as long as it is not requeued."""
    if queue(states="PENDING").get(job) is None:
        return False
    subprocess.run(["scontrol", "update", f"jobid={job}", "starttime=now"], check=True)
    return True


def jobs_in_training(project: LightProject) -> list[str]:
    wait_until(lambda: len(project.trainings()) >= 2)
    return [number for number, name in queue().items() if name.startswith("light-")]


def test_a_study_through_slurm_survives_killed_and_preempted_jobs(project: LightProject) -> None:
    (project.folder / "hold").touch()
    runner = project.start(*SLURM)
    killed, preempted = jobs_in_training(project)[:2]
    subprocess.run(["scancel", killed], check=True)
    # What submitit's jobs receive before their time is over, or before another job takes their place.
    subprocess.run(["scancel", "--signal=USR2", preempted], check=True)
    wait_until(lambda: start_now(preempted))
    (project.folder / "hold").unlink()
    printed, _ = runner.communicate(timeout=500)
    assert runner.returncode == 1, printed
    assert printed.count("it was killed") == 1
    assert len(numbers(project)) == 2  # the preempted one came back by itself
    status, printed = project.call(*SLURM)
    assert status == 0, printed
    assert len(numbers(project)) == 3


def test_jobs_that_a_killed_runner_left_are_waited_for(project: LightProject) -> None:
    (project.folder / "hold").touch()
    runner = project.start(*SLURM)
    left = jobs_in_training(project)
    runner.send_signal(signal.SIGKILL)
    runner.wait()
    (project.folder / "hold").unlink()
    status, printed = project.call(*SLURM)
    assert status == 0, printed
    assert len(numbers(project)) == 3
    assert project.calls("train") == 3
    assert len(left) >= 2
