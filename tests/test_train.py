"""Training a task with every method: it learns, it resumes bit for bit, and it stops when the loss breaks."""

from __future__ import annotations

import csv
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from open_clip.model import CLIP
from torch import Tensor

from structalign.config import Config
from structalign.data.loader import TrainingSet
from structalign.data.split import Sample
from structalign.errors import UserError
from structalign.gallery import TaskGallery
from structalign.method.base import Batch, Method
from structalign.method.registry import CLASSES, build_method, method_class
from structalign.model.backbone import ClipInfo
from structalign.model.retriever import Retriever
from structalign.resume import ResumeFile
from structalign.seeding import use_threads
from structalign.train import Trainer, learning_rate_factor

ROOT = Path(__file__).resolve().parent.parent
MODEL = {
    "embed_dim": 32,
    "vision_cfg": {"image_size": 16, "layers": 2, "width": 32, "patch_size": 8, "head_width": 16},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2},
}
COLOURS = {"red": (200, 20, 20), "green": (20, 200, 20), "blue": (20, 20, 200), "white": (230, 230, 230)}
RATES = ("lr_first", "lr_later", "lr_scalars")
TRAINED = sorted(set(CLASSES) - {"zeroshot"})


class Memory:
    """A store of frames in memory: each clip is a flat colour, with some noise."""

    def read(self, clip: str) -> np.ndarray:
        colour, number = clip.split("-")
        noise = np.random.default_rng(int(number)).integers(-15, 15, (2, 20, 20, 3))
        return np.clip(np.array(COLOURS[colour]) + noise, 0, 255).astype(np.uint8)


def config_for(method: str, **changes: Any) -> Config:
    """The committed parameters, with a method's own and those of a tiny training."""
    values = yaml.safe_load((ROOT / "params.yaml").read_text())
    own = yaml.safe_load((ROOT / f"conf/method/{method}.yaml").read_text())
    tiny = {
        "model": {"adapter_layers": 1, "experts": 3, "rank": 4, "lora_alpha": 8},
        "train": {"epochs": 4, "batch_size": 8, "lr_clip": 1e-3, **dict.fromkeys(RATES, 2e-3)},
    }
    for section in (tiny, own, changes):
        for key, value in section.items():
            values[key] = {**values[key], **value} if isinstance(value, dict) else value
    return Config.parse(values)


def start(config: Config, task: int) -> tuple[Method, TrainingSet]:
    """A method ready to train on a task, from fixed weights."""
    torch.manual_seed(0)
    info = ClipInfo("test", MODEL, [0.5] * 3, [0.5] * 3)
    trainable = "all" if method_class(config.method.name).trains_clip else "adapters"
    retriever = Retriever(CLIP(**MODEL), info, config.model, num_tasks=2, seed=1, trainable=trainable)
    method = build_method(config, retriever, num_categories=4)
    samples = [
        Sample(f"{colour}-{number}", category, (f"a {colour} picture", f"{colour} all over"))
        for category, colour in enumerate(COLOURS)
        for number in range(3)
    ]
    data = TrainingSet(samples, Memory(), retriever, workers=1)  # type: ignore[arg-type]
    teacher = None
    if method.teacher_kind(task):
        torch.manual_seed(0)
        teacher = Retriever(CLIP(**MODEL), info, config.model, num_tasks=2, seed=1).requires_grad_(False).eval()
    if task > 1:
        retriever.finish_task(1)
        stored = torch.randn(5, 2, 32, generator=torch.Generator().manual_seed(3))
        clips = [f"old-{number}" for number in range(5)]
        method.start_galleries([TaskGallery(1, clips, [0] * 5, ["old"] * 5, list(range(5)), stored)])
    else:
        method.start_galleries([])
    retriever.prepare_task(task)
    method.start_task(task, teacher)
    return method, data


def weights_of(method: Method) -> dict[str, Tensor]:
    return {name: weight.clone() for name, weight in (method.retriever.trained_state() | method.state()).items()}


def curve_of(path: Path) -> list[dict[str, str]]:
    with path.open() as stream:
        return list(csv.DictReader(stream))


@pytest.mark.parametrize("task", [1, 2])
@pytest.mark.parametrize("name", TRAINED)
def test_training_lowers_the_contrastive_loss(tmp_path: Path, name: str, task: int) -> None:
    config = config_for(name)
    method, data = start(config, task)
    cost = Trainer(method, data, config, task).run(tmp_path / "loss.csv")
    rows = curve_of(tmp_path / "loss.csv")
    assert len(rows) == cost.steps == 4 * 3
    first, last = (np.mean([float(row["scl"]) for row in part]) for part in (rows[:3], rows[-3:]))
    assert last < first
    assert 0 < cost.trained_parameters <= sum(weight.numel() for weight in method.retriever.parameters()) + 2 * 32**2


def test_terms_of_structalign_come_and_go_with_their_weights(tmp_path: Path) -> None:
    config = config_for("structalign", loss={"crp_weight": 0.0, "etf_weight": 0.0, "pseudo_weight": 0.0})
    method, data = start(config, 2)
    assert method.teacher is None
    Trainer(method, data, config, 2).run(tmp_path / "loss.csv")
    rows = curve_of(tmp_path / "loss.csv")
    assert all(row["total"] == row["scl"] and not row["crp"] and not row["etf"] for row in rows)
    assert method.state().keys() == {"classes", "counts", "text_means", "text_radii", "video_means", "video_radii"}


def test_stablefusion_without_its_cross_task_loss_is_plain_contrastive_training(tmp_path: Path) -> None:
    plain = config_for("stablefusion", loss={"cross_task_weight": 0.0})
    method, data = start(plain, 2)
    Trainer(method, data, plain, 2).run(tmp_path / "plain.csv")
    assert all(row["total"] == row["scl"] and not row["cross"] for row in curve_of(tmp_path / "plain.csv"))
    full = config_for("stablefusion")
    other, data = start(full, 2)
    Trainer(other, data, full, 2).run(tmp_path / "full.csv")
    assert all(row["cross"] for row in curve_of(tmp_path / "full.csv"))


@pytest.mark.parametrize("name", ["structalign", "zscl"])
def test_interrupted_training_ends_with_the_same_bits(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    config = config_for(name)
    method, data = start(config, 2)
    Trainer(method, data, config, 2).run(tmp_path / "whole.csv")
    method.finish_task(None)
    whole = weights_of(method)

    method, data = start(config, 2)
    trainer = Trainer(method, data, config, 2, resume=ResumeFile("name"))
    steps = iter(range(8))  # two epochs of three steps, and two steps of the third

    def broken(batch: Batch, loss: Any = method.loss) -> dict[str, Tensor]:
        if next(steps, None) is None:
            raise KeyboardInterrupt
        return loss(batch)

    monkeypatch.setattr(method, "loss", broken)
    with pytest.raises(KeyboardInterrupt):
        trainer.run(tmp_path / "part.csv")

    method, data = start(config, 2)
    with torch.no_grad():
        for weight in method.retriever.parameters():
            if weight.requires_grad:
                weight.add_(1.0)  # whatever it starts from, the resume file decides
    Trainer(method, data, config, 2, resume=ResumeFile("name")).run(tmp_path / "part.csv")
    method.finish_task(None)
    resumed = weights_of(method)
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(whole[key], resumed[key]) for key in whole)
    assert (tmp_path / "whole.csv").read_bytes() == (tmp_path / "part.csv").read_bytes()


def test_damaged_resume_file_starts_afresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    resume = ResumeFile("name")
    resume.save({"epoch": 1, "weights": [torch.ones(3)]})
    resume.path.write_bytes(resume.path.read_bytes()[:40])
    assert resume.load() is None
    assert not resume.path.exists()


def test_loss_that_is_not_a_number_names_task_step_and_last_good_epoch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_for("finetune")
    method, data = start(config, 1)
    steps = iter(range(4))

    def breaking(batch: Batch, loss: Any = method.loss) -> dict[str, Tensor]:
        terms = loss(batch)
        return terms if next(steps, None) is not None else {**terms, "total": terms["total"] * torch.nan}

    monkeypatch.setattr(method, "loss", breaking)
    with pytest.raises(UserError, match=r"task 1, step 5 \(epoch 2\): the loss is nan; last good epoch: 1"):
        Trainer(method, data, config, 1).run(tmp_path / "loss.csv")


def test_best_on_test_keeps_the_best_epoch(tmp_path: Path) -> None:
    config = config_for("finetune", train={"min_epochs": 1, "patience": 1, "epochs": 6})
    method, data = start(config, 1)
    scores, seen = iter([10.0, 30.0, 20.0, 40.0]), []

    def validate() -> float:
        seen.append(weights_of(method))
        return next(scores)

    cost = Trainer(method, data, config, 1, validate).run(tmp_path / "loss.csv")
    assert cost.steps == 9  # epoch 3 was no better than epoch 2, so there was no fourth
    kept = weights_of(method)
    assert all(torch.equal(kept[name], seen[1][name]) for name in kept)


def test_cosine_falls_to_zero_and_the_released_schedule_comes_back_up() -> None:
    assert learning_rate_factor(0, 100, 10, "cosine") == 0
    assert learning_rate_factor(5, 100, 10, "cosine") == 0.5
    assert learning_rate_factor(10, 100, 10, "cosine") == 1
    assert learning_rate_factor(55, 100, 10, "cosine") == pytest.approx(0.5)
    assert learning_rate_factor(100, 100, 10, "cosine") == pytest.approx(0, abs=1e-12)
    assert learning_rate_factor(55, 100, 10, "released") == pytest.approx(0, abs=1e-12)
    assert learning_rate_factor(100, 100, 10, "released") == pytest.approx(1)


def test_the_number_of_threads_is_a_parameter_and_not_the_machines() -> None:
    before = torch.get_num_threads()
    try:
        for threads in (2, 1):
            use_threads(threads)
            assert torch.get_num_threads() == threads
        use_threads("auto")
        assert torch.get_num_threads() == len(os.sched_getaffinity(0))
    finally:
        torch.set_num_threads(before)
