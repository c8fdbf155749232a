"""Train stages on built-in data: the committed loss curve, and the same from two devices."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from structalign.util.checkpoint import load_tensors
from tests.helpers import loss_curve
from tests.helpers.loss_curve import COMMITTED, ROOT

pytestmark = pytest.mark.slow

REGENERATE = "results changed; if they were meant to: python -m tests.helpers.loss_curve"


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Everything that train stages need."""
    folder, before = tmp_path_factory.mktemp("project"), Path.cwd()
    loss_curve.prepare(folder)
    yield folder
    os.chdir(before)


@pytest.fixture(scope="module")
def curve(project: Path) -> list[str]:
    return loss_curve.train_tasks(project).splitlines()


def rows(lines: list[str]) -> list[dict[str, str]]:
    return list(csv.DictReader(lines))


def assert_same(new: list[dict[str, str]], old: list[dict[str, str]]) -> None:
    assert len(new) == len(old) > 0
    for ours, theirs in zip(new, old, strict=True):
        assert ours.keys() == theirs.keys()
        assert ours["term"] == theirs["term"], REGENERATE
        for name in ours.keys() - {"term"}:
            expected = pytest.approx(float(theirs[name]), abs=1e-4)
            assert float(ours[name]) == expected, f"{ours['term']}, {name}: {REGENERATE}"


def test_training_gives_the_committed_loss_curve(curve: list[str]) -> None:
    committed = rows(COMMITTED.read_text().splitlines())
    assert_same(rows(curve), committed)
    last = {row["term"]: float(row["value"]) for row in committed if row["task"] == "2"}
    assert all(last[term] > 0 for term in ("scl", "crp", "etf", "pseudo"))


def test_the_stage_starts_its_devices_itself(project: Path, curve: list[str]) -> None:
    one = load_tensors(project / "models/task-01/adapters.safetensors")
    loss_curve.configure(project, "train.devices=2")
    command = [sys.executable, "-m", "stages.train", "--task", "1"]
    environment = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "STRUCTALIGN_PROGRESS": "0"}
    done = subprocess.run(command, cwd=project, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("\n") == 1
    assert "task 1: 8 steps" in done.stderr
    two = load_tensors(project / "models/task-01/adapters.safetensors")
    assert one.keys() == two.keys()
    for name, weight in one.items():
        torch.testing.assert_close(two[name], weight, rtol=0, atol=1e-5)
    assert_same(
        rows((project / "plots/loss/task-01.csv").read_text().splitlines()),
        [row for row in rows(curve) if row["task"] == "1"],
    )
    assert not list((project / ".cache/resume").glob("*"))
