"""Training on two devices (two gloo processes): the same as on one, and one clear line where a rank fails."""

from __future__ import annotations

import errno
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from structalign.config.schema import Config
from structalign.methods.base import Method, TrainingFeatures
from structalign.training import launch
from structalign.training.trainer import Trainer
from structalign.util import distributed
from structalign.util.errors import UserError
from tests.helpers import rank_faults
from tests.training.test_trainer import TRAINED, config_for, curve_of, start, weights_of

ROOT = Path(__file__).resolve().parents[2]
CPU = torch.device("cpu")
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    **{name: (name, {}) for name in TRAINED if name != "joint"},  # joint is finetune with other data
    "structalign, videos shared": ("structalign", {"train": {"share_videos": True}}),
}


@contextmanager
def without_noise() -> Iterator[None]:
    """Router noise has no parameter; without it, and without dropout, two devices have to agree with one."""
    drawn = torch.randn_like
    torch.randn_like = torch.zeros_like
    try:
        yield
    finally:
        torch.randn_like = drawn


def case_config(label: str) -> Config:
    """A method in batches of 7, 7, 7 and 3 pairs, which two devices cannot share evenly."""
    name, changes = CASES[label]
    plain = config_for(name)
    train = {**plain.train.model_dump(), "epochs": 1, "batch_size": 7, **changes.get("train", {})}
    return config_for(name, train=train, model={**plain.model.model_dump(), "dropout": 0.0})


def remember(method: Method) -> None:
    """Hand a method old classes to draw pseudo pairs from."""
    old = torch.arange(4).repeat_interleave(3)
    text, video = normalize(torch.randn(2, 12, 32, generator=torch.Generator().manual_seed(5)), dim=-1)
    method.finish_task(TrainingFeatures(text, old, video, old))


def train_all(folder: str | Path) -> dict[str, dict[str, Tensor]]:
    """An epoch of task 2 with every method: the weights by method, the loss curves in a folder."""
    results = {}
    with without_noise():
        for label in CASES:
            config = case_config(label)
            method, data = start(config, 2)
            if config.method.name == "structalign":
                remember(method)
            Trainer(method, data, config, 2).run(Path(folder) / f"{label}-{distributed.rank()}.csv")
            results[label] = weights_of(method)
    return results


Runs = dict[int, tuple[dict[str, dict[str, Tensor]], Path]]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """Weights and folder of curves, by number of devices."""
    done: Runs = {}
    for devices in (1, 2):
        folder = tmp_path_factory.mktemp(f"devices-{devices}")
        with launch.ranks(devices, CPU, train_all):
            done[devices] = train_all(folder), folder
    return done


@pytest.mark.parametrize("label", CASES)
def test_two_devices_train_as_one_does(runs: Runs, label: str) -> None:
    (one, one_folder), (two, two_folder) = runs[1], runs[2]
    assert one[label].keys() == two[label].keys()
    for name, weight in one[label].items():
        torch.testing.assert_close(two[label][name], weight, rtol=0, atol=1e-5)
    curves = [curve_of(folder / f"{label}-0.csv") for folder in (one_folder, two_folder)]
    assert len(curves[0]) == len(curves[1]) == 4
    for single, double in zip(*curves, strict=True):
        assert [name for name in single if single[name]] == [name for name in double if double[name]]
        assert float(double["total"]) == pytest.approx(float(single["total"]), rel=1e-5)


def test_structalign_is_compared_with_its_teacher_and_pseudo_pairs(runs: Runs) -> None:
    rows = curve_of(runs[2][1] / "structalign-0.csv")
    assert all(float(row[term]) > 0 for row in rows[1:] for term in ("scl", "crp", "etf", "pseudo"))


def test_shared_videos_change_nothing_but_the_augmentation(runs: Runs) -> None:
    plain, shared = (runs[1][0][label]["text_proj"] for label in ("structalign", "structalign, videos shared"))
    assert not torch.equal(plain, shared)


# What may go wrong


def test_a_rank_that_fails_says_why_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "_GRACE", 60)  # rank 0 does notice here, however busy the machine
    message = r"^train\.devices = 2: rank 1 failed: no such video: a\.mp4$"
    with pytest.raises(UserError, match=message), launch.ranks(2, CPU, rank_faults.fail):
        distributed.average_gradients([weight_with_gradient()])
    assert distributed.size() == 1


def test_an_error_of_rank_0_is_not_blamed_on_another() -> None:
    with pytest.raises(RuntimeError, match=r"^its own$"), launch.ranks(2, CPU, rank_faults.wait):
        raise RuntimeError("its own")
    assert distributed.size() == 1


def weight_with_gradient() -> Tensor:
    weight = torch.ones(2, requires_grad=True)
    weight.sum().backward()
    return weight


def test_what_rank_0_was_short_of_is_said_though_the_others_broke_off_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "_GRACE", 60)
    message = r"rank 1 failed: .*; rank 0: no room$"
    with pytest.raises(UserError, match=message), launch.ranks(2, CPU, rank_faults.wait):
        raise distributed.RankLost("no room")


def test_where_a_rank_cannot_be_started_the_others_are_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    started = []
    start = SpawnProcess.start

    def fail(process: SpawnProcess) -> None:
        if started:
            raise BlockingIOError(errno.EAGAIN, "no more processes")
        start(process)
        started.append(process)

    monkeypatch.setattr(SpawnProcess, "start", fail)
    with pytest.raises(BlockingIOError), launch.ranks(3, CPU, rank_faults.stay):
        pass
    assert started[0].exitcode == -signal.SIGKILL


@contextmanager
def program(tmp_path: Path, fault: str) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, str(ROOT / "tests/helpers/rank_faults.py"), fault]
    environment = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True) as running:
        family: list[psutil.Process] = []
        try:
            yield running
        finally:
            with suppress(psutil.NoSuchProcess):
                family = psutil.Process(running.pid).children(recursive=True)
            for process in (running, *family):
                with suppress(psutil.NoSuchProcess):
                    process.kill()


@pytest.mark.parametrize(("fault", "reason"), [("die", "killed by SIGKILL"), ("lose", "connection closed by peer")])
def test_a_dead_rank_ends_even_a_stage_that_does_not_notice(tmp_path: Path, fault: str, reason: str) -> None:
    with program(tmp_path, fault) as running:
        _, said = running.communicate(timeout=200)
    assert running.returncode == 1
    assert "Traceback" not in said
    (line,) = [line for line in said.splitlines() if " ERROR " in line]  # gloo may have a word to say as well
    assert f" train.devices = 2: rank 1 failed: {reason}" in line  # and rank 0's words, where it broke off as well


def test_a_killed_stage_leaves_no_process_behind(tmp_path: Path) -> None:
    with program(tmp_path, "stay") as running:
        deadline = time.monotonic() + 200
        while not (tmp_path / "ready").exists():
            assert time.monotonic() < deadline
            time.sleep(0.05)
        family = psutil.Process(running.pid).children(recursive=True)
        assert family
        running.kill()
        running.wait()
    _, alive = psutil.wait_procs(family, timeout=60)
    for orphan in alive:
        orphan.kill()
    assert not alive


@pytest.mark.parametrize(
    ("devices", "device", "gpus", "expected"),
    [
        ("auto", "cpu", 0, 1),
        ("auto", "auto", 0, 1),
        (3, "auto", 0, 3),
        (3, "cpu", 8, 3),
        ("auto", "auto", 8, 8),
        ("auto", "cuda", 40, 32),
        ("auto", "cuda:1", 8, 1),
        (1, "cuda:1", 8, 1),
        (4, "auto", 8, 4),
        (33, "auto", 0, r"train\.devices = 33 exceeds train\.batch_size = 32"),
        (2, "cuda:1", 8, r"machine\.device = 'cuda:1' names one"),
        (4, "auto", 2, r"train\.devices = 4: this machine has 2 visible GPUs"),
        (2, "cuda", 0, r"machine\.device = 'cuda': this machine has no usable GPU"),
        ("auto", "cuda:9", 2, r"machine\.device = 'cuda:9': this machine's 2 visible GPUs count from cuda:0"),
        ("auto", "mps", 0, r"machine\.device = 'mps': must be auto, cpu, cuda or cuda:N"),
        ("auto", "gpu", 0, r"machine\.device = 'gpu': must be auto, cpu, cuda or cuda:N"),
    ],
)
def test_number_of_devices(
    monkeypatch: pytest.MonkeyPatch, devices: Any, device: str, gpus: int, expected: int | str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    if isinstance(expected, str):
        with pytest.raises(UserError, match=expected):
            distributed.num_ranks(devices, device, 32)
    else:
        assert distributed.num_ranks(devices, device, 32) == expected
