"""What executors are asked for, before anything runs: options, GPUs, and what cannot be."""

from __future__ import annotations

import argparse

import pytest

from structalign.experiments.executors import Fleet, Resources, add_arguments, resources
from structalign.util.errors import UserError


def asked(*arguments: str) -> Resources:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return resources(parser.parse_args(arguments))


@pytest.mark.parametrize(
    ("text", "minutes"),
    [
        ("90", 90),
        ("24:00:00", 1440),
        ("1:30:01", 91),
        ("2-12:00:00", 3600),
        ("1-12", 2160),
        ("1-12:30", 2190),
        ("0:00:30", 1),
    ],
)
def test_time_limits_are_read_as_slurm_writes_them(text: str, minutes: int) -> None:
    assert asked("--time", text).minutes == minutes


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--executor", "cloud"), "--executor cloud: must be local or slurm"),
        (("--jobs", "0"), "--jobs 0: must be at least 1"),
        (("--gpus", "-1"), "--gpus -1: must be 0 or more"),
        (("--time", "soon"), "--time soon: must be minutes or"),
        (("--time", "12:30"), "--time 12:30: must be minutes or"),
        (("--time=-5",), "--time -5: must be minutes or"),
        (("--sbatch", "account"), "--sbatch account: must be KEY=VALUE"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(arguments: tuple[str, ...], message: str) -> None:
    with pytest.raises(UserError, match=f"^{message}"):
        asked(*arguments)


def test_a_machine_without_slurm_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(UserError, match=r"--executor slurm: there is no sbatch here"):
        asked("--executor", "slurm")


@pytest.mark.parametrize(
    ("visible", "jobs", "shares"),
    [
        ("2,3,5,7", 1, [(2, 3, 5, 7)]),
        ("2,3,5,7", 2, [(2, 3), (5, 7)]),
        ("2,3,5,7", 3, [(2,), (3,), (5,)]),
        ("2,3", 3, [(2,), (3,), (2,)]),
        ("", 2, [(), ()]),
        ("-1", 1, [()]),
        ("2,-1,3", 1, [(2,)]),
    ],
)
def test_jobs_divide_the_gpus_that_are_visible(
    visible: str, jobs: int, shares: list[tuple[int, ...]], monkeypatch: pytest.MonkeyPatch, tmp_path
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert Fleet(Resources(jobs=jobs), tmp_path).free == shares


def test_jobs_get_as_many_gpus_as_are_asked_for(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,3,5,7")
    assert Fleet(Resources(jobs=2, gpus=2), tmp_path).free == [(2, 3), (5, 7)]
    with pytest.raises(UserError, match="--jobs 3 with --gpus 2: there are 4 GPUs here"):
        Fleet(Resources(jobs=3, gpus=2), tmp_path)


def test_gpus_that_have_no_number_are_refused_rather_than_left_idle(
    monkeypatch: pytest.MonkeyPatch, tmp_path
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-1234abcd-0000,GPU-5678abcd-0000")
    with pytest.raises(UserError, match=r"^CUDA_VISIBLE_DEVICES: GPU-1234abcd-0000: name the GPUs by number"):
        Fleet(Resources(), tmp_path)
