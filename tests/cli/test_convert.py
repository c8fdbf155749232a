"""`structalign convert`: a released checkpoint becomes a model that the pipeline's stages load."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from structalign import paths
from structalign.evaluation.record import Record
from structalign.training.learner import Learner
from structalign.training.loss_curve import COLUMNS
from structalign.util.checkpoint import Checkpoint
from tests.helpers.params import ROOT, config

pytestmark = pytest.mark.slow

GOLDEN = ROOT / "tests/golden/released-small.npz"
META = json.loads(str(np.load(GOLDEN)["meta"]))
SETTINGS = [
    *("--text-heads", str(META["text"]["heads"]), "--vision-heads", str(META["vision"]["heads"])),
    *("--top-k", str(META["topk"]), "--lora-alpha", str(META["alpha"])),
]


@pytest.fixture(scope="module")
def golden() -> dict[str, Tensor]:
    arrays = np.load(GOLDEN)
    return {name: torch.from_numpy(arrays[name]) for name in arrays.files if name != "meta"}


def convert(folder: Path, golden: dict[str, Tensor], *options: str) -> subprocess.CompletedProcess[str]:
    state = {f"clipmodel.{name[8:]}": value for name, value in golden.items() if name.startswith("weights/")}
    state |= {"etf_proj1.weight": torch.eye(16), "etf_proj2.weight": 2 * torch.eye(16)}
    save_file(state, folder / "released.safetensors")
    command = [sys.executable, "-m", "structalign", "convert", "released.safetensors", *SETTINGS, *options]
    environment = {"PYTHONPATH": str(ROOT)}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


def test_stages_load_the_converted_model(
    golden: dict[str, Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = convert(tmp_path, golden, "--task", "3")
    assert done.returncode == 0, done.stderr
    monkeypatch.chdir(tmp_path)
    overrides = done.stderr.strip().split("`structalign params`: ")[1].split()  # as the command prints them
    learner = Learner(config(*overrides, "loss.etf_weight=0"), 20, Checkpoint.load(Path("models/task-03")))
    with torch.no_grad():
        words, mask, global_ = learner.retriever.eval().encode_text(golden["model/input_ids"], 3)
        frames, _ = learner.retriever.encode_video(golden["model/pixels"])
    torch.testing.assert_close(global_, golden["model/global_text_task3"], atol=1e-4, rtol=0)
    torch.testing.assert_close(frames, golden["model/frames_features"], atol=1e-4, rtol=0)
    for row, marked, expected in zip(words, mask, golden["model/words_task3"], strict=True):
        torch.testing.assert_close(row[marked], expected[: int(marked.sum())], atol=1e-4, rtol=0)


def test_an_evaluation_finds_the_empty_curve_of_a_training_that_was_elsewhere(
    golden: dict[str, Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    paths.loss_curve(3).parent.mkdir(parents=True)
    paths.loss_curve(3).write_text("of another training\n")
    assert convert(tmp_path, golden, "--task", "3").returncode == 0
    record = Record(recall={}, features={}, loss="", cost=[])
    record.add_training(paths.loss_curve(3), paths.cost(3))
    assert record.loss.splitlines() == [",".join(COLUMNS)]
    assert record.cost[0]["steps"] == 0


def test_etf_projections_are_kept(golden: dict[str, Tensor], tmp_path: Path) -> None:
    assert convert(tmp_path, golden, "--task", "1").returncode == 0
    memory = Checkpoint.load(tmp_path / "models/task-01").memory
    assert torch.equal(memory["video_proj"], 2 * torch.eye(16))


def test_a_task_without_prototype_writes_nothing(golden: dict[str, Tensor], tmp_path: Path) -> None:
    done = convert(tmp_path, golden, "--task", "4")
    assert done.returncode == 1
    assert "--task 4: the checkpoint has prototypes for tasks 1 to 3" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "models").exists()
