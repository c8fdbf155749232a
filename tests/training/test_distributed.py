"""Training on two devices (two gloo processes): the same as on one, and one clear line if a rank fails."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from stages import train as stage
from structalign.config.schema import Config
from structalign.methods.base import Method, TrainingFeatures
from structalign.training import launch
from structalign.training.resume import ResumeFile
from structalign.training.trainer import Trainer
from structalign.util import distributed
from structalign.util.errors import UserError
from tests.helpers import rank_faults
from tests.helpers.params import config
from tests.training.test_trainer import TRAINED, config_for, curve_of, start, weights_of

pytestmark = pytest.mark.slow

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


def case_config(label: str, **views: Any) -> Config:
    """A method in batches of 7, 7, 7 and 3 pairs, which two devices cannot share evenly."""
    name, changes = CASES[label]
    plain = config_for(name)
    train = {**plain.train.model_dump(), "epochs": 1, "batch_size": 7, **changes.get("train", {}), **views}
    return config_for(name, train=train, model={**plain.model.model_dump(), "dropout": 0.0})


def remember(method: Method) -> None:
    """Hand a method old classes to draw pseudo pairs from."""
    old = torch.arange(4).repeat_interleave(3)
    text, video = normalize(torch.randn(2, 12, 32, generator=torch.Generator().manual_seed(5)), dim=-1)
    method.finish_task(TrainingFeatures(text, old, video, old))


def train(config: Config, curve: Path) -> dict[str, Tensor]:
    """Weights after an epoch of task 2, without noise."""
    with without_noise():
        method, data = start(config, 2)
        if config.method.name == "structalign":
            remember(method)
        Trainer(method, data, config, 2).run(curve)
        return weights_of(method)


def train_all(folder: Path) -> None:
    """An epoch of task 2 with every method: rank 0's weights by method, and the loss curves, in a folder."""
    results = {label: train(case_config(label), folder / f"{label}-{distributed.rank()}.csv") for label in CASES}
    if distributed.rank() == 0:
        torch.save(results, folder / "weights.pt")


Runs = dict[int, tuple[dict[str, dict[str, Tensor]], Path]]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """Weights and folder of curves, by number of devices."""
    done: Runs = {}
    for devices in (1, 2):
        folder = tmp_path_factory.mktemp(f"devices-{devices}")
        launch.run(devices, CPU, train_all, folder)
        done[devices] = torch.load(folder / "weights.pt"), folder
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


def test_shared_videos_change_nothing_but_the_augmentation(runs: Runs, tmp_path: Path) -> None:
    labels = ("structalign", "structalign, videos shared")
    plain, shared = (runs[1][0][label]["text_proj"] for label in labels)
    assert not torch.equal(plain, shared)
    # Square frames have one view under these settings: the whole frame, as it is.
    whole = [
        train(case_config(label, crop_scale=1.0, flip=False), tmp_path / f"{number}.csv")
        for number, label in enumerate(labels)
    ]
    assert whole[0].keys() == whole[1].keys()
    for name, weight in whole[0].items():
        torch.testing.assert_close(whole[1][name], weight, rtol=0, atol=1e-5)


# What may go wrong


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        (rank_faults.fail, r"no such video: a\.mp4"),
        (rank_faults.crash, "ValueError: wrong number"),
        (rank_faults.die, "killed by SIGKILL"),
        (rank_faults.leave, "ended with status 7"),
    ],
)
def test_the_rank_that_failed_first_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: Callable[[int], None], reason: str, rank: int
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=rf"^train\.devices = 2: rank {rank} failed: {reason}$"):
        launch.run(2, CPU, fault, rank)
    assert distributed.world_size() == 1


def test_an_error_with_one_device_is_raised_as_it_is() -> None:
    with pytest.raises(UserError, match=r"^no such video: a\.mp4$"):
        launch.run(1, CPU, rank_faults.fail, 0)


@pytest.mark.parametrize("variable", ["PET_NNODES", "PET_NODE_RANK"])
def test_numbers_of_machines_are_whole(monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    given = {"PET_NNODES": "2", "PET_MASTER_ADDR": "a", "PET_MASTER_PORT": "1", "PET_NODE_RANK": "0", variable: "1:2"}
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=f"^{variable} = 1:2: must be a whole number"):
        launch.run(1, torch.device("cpu"), print)


def test_several_machines_need_an_address_to_meet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PET_NNODES", "2")
    monkeypatch.delenv("PET_MASTER_ADDR", raising=False)
    with pytest.raises(UserError, match=r"^PET_NNODES = 2, but PET_MASTER_ADDR is not set"):
        launch.run(1, CPU, rank_faults.fail, 0)


def sum_of_ranks(folder: Path) -> None:
    total = distributed.all_reduce_sum(torch.tensor(float(distributed.rank() + 1)))
    (folder / f"rank-{distributed.rank()}").write_text(f"{distributed.world_size()} {float(total)}")


def test_several_machines_train_together(tmp_path: Path) -> None:
    """Two stages with one rank each, that meet by the variables of torchrun."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    variables = {"PET_NNODES": "2", "PET_MASTER_ADDR": "127.0.0.1", "PET_MASTER_PORT": port}
    context = get_context("spawn")
    nodes = [context.Process(target=be_node, args=(variables, str(node), tmp_path)) for node in (0, 1)]
    for node in nodes:
        node.start()
    for node in nodes:
        node.join(200)
        assert node.exitcode == 0
    assert [(tmp_path / f"rank-{rank}").read_text() for rank in (0, 1)] == ["2 3.0", "2 3.0"]


def resumed_epoch(folder: Path) -> None:
    """Take up a training that rank 0 alone has saved, as another machine's ranks do."""
    os.chdir(folder / f"machine-{distributed.rank()}")
    state = distributed.broadcast_from_rank0(ResumeFile("training").load)
    assert state is not None
    Path("epoch").write_text(f"{state['epoch']} {state['weights'][0].tolist()}")


def test_ranks_without_a_resume_file_go_on_where_rank_0_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for rank in (0, 1):
        (tmp_path / f"machine-{rank}").mkdir()
    monkeypatch.delenv("STRUCTALIGN_PROJECT", raising=False)
    monkeypatch.chdir(tmp_path / "machine-0")
    ResumeFile("training").save({"epoch": 5, "weights": [torch.tensor([1.5, 2.0])]})
    launch.run(2, CPU, resumed_epoch, tmp_path)
    assert [(tmp_path / f"machine-{rank}/epoch").read_text() for rank in (0, 1)] == ["5 [1.5, 2.0]"] * 2


def be_node(variables: dict[str, str], number: str, folder: Path) -> None:
    os.environ |= {**variables, "PET_NODE_RANK": number}
    launch.run(1, CPU, sum_of_ranks, folder)


@contextmanager
def program(tmp_path: Path, fault: str, rank: int = 1) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-m", "tests.helpers.rank_faults", fault, str(rank)]
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


@pytest.mark.parametrize(
    ("fault", "reason"), [("die_unnoticed", "killed by SIGKILL"), ("lose", "connection closed by peer")]
)
def test_a_dead_rank_ends_even_ranks_that_do_not_notice(tmp_path: Path, fault: str, reason: str) -> None:
    with program(tmp_path, fault) as running:
        _, said = running.communicate(timeout=200)
    assert running.returncode == 1
    (line,) = said.splitlines()
    assert line.endswith(f"ERROR   train.devices = 2: rank 1 failed: {reason}")


@pytest.mark.parametrize(
    ("signal_", "status"), [(signal.SIGKILL, -9), (signal.SIGTERM, 128 + 15), (signal.SIGINT, 130)]
)
def test_an_ended_stage_leaves_no_process_behind(tmp_path: Path, signal_: signal.Signals, status: int) -> None:
    with program(tmp_path, "stay") as running:
        deadline = time.monotonic() + 200
        while len(list(tmp_path.glob("ready-*"))) < 2:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        family = psutil.Process(running.pid).children(recursive=True)
        assert len(family) >= 2
        running.send_signal(signal_)
        _, said = running.communicate(timeout=100)
        assert running.returncode == status
        # After SIGKILL, Python's own tracker of semaphores says that it tidied up.
        assert len([line for line in said.splitlines() if "resource_tracker" not in line]) <= 1
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


@pytest.mark.parametrize(
    ("method", "task", "ranks"), [("finetune", 2, 3), ("joint", 1, 3), ("joint", 2, 1), ("zeroshot", 1, 1)]
)
def test_no_process_starts_for_a_task_that_trains_nothing(
    monkeypatch: pytest.MonkeyPatch, method: str, task: int, ranks: int
) -> None:
    started: list[int] = []
    monkeypatch.setattr(stage.launch, "run", lambda count, *_: started.append(count))
    stage.main(config("train.devices=3", f"method={method}"), task)
    assert started == [ranks]
