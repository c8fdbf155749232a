"""Training a task with every method: it learns, it resumes bit for bit, and it stops when the loss breaks."""

from __future__ import annotations

import csv
import errno
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from open_clip.model import CLIP
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

from structalign.config.schema import Config
from structalign.data.tasks import Sample
from structalign.evaluation.evaluate import rank, recall_within_task
from structalign.losses.memory import PrototypeMemory
from structalign.methods.base import AdapterMethod, Batch, Method, Term, Terms, TrainingFeatures
from structalign.methods.base.discover import build_method, method_class, method_names
from structalign.methods.stablefusion import StableFusion
from structalign.methods.structalign import StructAlign
from structalign.model.clip import CLIP_LOG_SCALE, ClipInfo, save_clip, text_tower
from structalign.model.retriever import Retriever
from structalign.retrieval.encode import encode_videos
from structalign.retrieval.gallery import TaskGallery
from structalign.training import trainer as training
from structalign.training.learner import Learner
from structalign.training.loader import TrainingSet
from structalign.training.loss_curve import LossCurve
from structalign.training.resume import ResumeFile
from structalign.training.trainer import Trainer, learning_rate_factor
from structalign.util.checkpoint import Checkpoint
from structalign.util.errors import UserError
from structalign.util.machine import available_cores
from structalign.util.seeding import configure_numerics, use_deterministic
from tests.helpers.params import ROOT, params
from tests.helpers.split_files import Runs

pytestmark = pytest.mark.slow

MODEL = {
    "embed_dim": 32,
    "vision_cfg": {"image_size": 16, "layers": 2, "width": 32, "patch_size": 8, "head_width": 16},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2},
}
COLOURS = {"red": (200, 20, 20), "green": (20, 200, 20), "blue": (20, 20, 200), "white": (230, 230, 230)}
RATES = ("lr_first", "lr_later", "lr_scalars")
TRAINED = sorted(set(method_names()) - {"zeroshot"})


PATIENT: dict[str, Any] = {
    # Prompts have little say in a model drawn at random, and their loss is about words and frames.
    "dual_prompts": {"train": {"epochs": 16, **dict.fromkeys(RATES, 2e-2)}, "similarity": {"alpha": 1.0}},
}


class Memory:
    """A store of frames in memory: each clip is a flat colour, with some noise."""

    def decoded_bytes(self, clips: list[str]) -> int:
        return len(clips) * 2 * 20 * 20 * 3

    def read(self, clip: str) -> np.ndarray:
        colour, number = clip.split("-")
        noise = np.random.default_rng(int(number)).integers(-15, 15, (2, 20, 20, 3))
        return np.clip(np.array(COLOURS[colour]) + noise, 0, 255).astype(np.uint8)


def config_for(method: str, variant: str = "method", **changes: Any) -> Config:
    """The default parameters, with a method's own, a variant's, and those of a tiny training."""
    values = params(f"variant={variant}")
    own = yaml.safe_load((ROOT / f"conf/method/{method}.yaml").read_text())
    tiny = {
        "model": {"adapter_layers": 1, "experts": 4, "rank": 4, "vision_rank": 4, "lora_alpha": 8},
        "train": {"epochs": 4, "batch_size": 8, "lr_clip": 1e-3, **dict.fromkeys(RATES, 5e-3)},
    }
    for section in (own, tiny, PATIENT.get(method, {}), changes):
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
    """A loss curve with a row for each step: its task, step, lr and the value of each of its terms."""
    steps: dict[tuple[str, str], dict[str, str]] = {}
    with path.open() as stream:
        for row in csv.DictReader(stream):
            facts = {key: row[key] for key in ("task", "step", "epoch", "lr")}
            steps.setdefault((row["task"], row["step"]), facts)[row["term"]] = row["value"]
    return list(steps.values())


def evaluate(method: Method, data: TrainingSet, task: int) -> dict[str, float]:
    """Recall of the task's own captions within a gallery of its own videos, after those of task 1."""
    galleries = [TaskGallery(1, ["old"], [0], ["old"], [0], torch.ones(1, 2, 32))] if task > 1 else []
    frames = encode_videos(method.retriever, data.eval_batches(4))
    galleries.append(TaskGallery.from_samples(task, data.samples, frames))
    ranking = rank(method.retriever, galleries, method.config.similarity)
    assert ranking.scores.shape == (24 + task - 1, 12 + task - 1)
    return recall_within_task(ranking, task)


@pytest.mark.parametrize(("task", "precision"), [(1, "fp32"), (2, "fp32"), (2, "bf16")])
@pytest.mark.parametrize("name", [*TRAINED, "structalign:figure", "structalign:light"])
def test_every_method_trains_lowers_its_loss_and_finds_videos_better(
    tmp_path: Path, name: str, task: int, precision: str
) -> None:
    config = config_for(*name.split(":"), train={"precision": precision})
    method, data = start(config, task)
    before = evaluate(method, data, task)
    cost = Trainer(method, data, config, task).run(tmp_path / "loss.csv")
    rows = curve_of(tmp_path / "loss.csv")
    assert len(rows) == cost.steps == config.train.epochs * 3
    first, last = (np.mean([float(row["scl"]) for row in part]) for part in (rows[:3], rows[-3:]))
    assert last < first
    assert 0 < cost.trained_parameters <= sum(weight.numel() for weight in method.retriever.parameters()) + 2 * 32**2
    method.retriever.finish_task(task)
    method.finish_task(None)
    after = evaluate(method, data, task)
    assert after["meanr"] < before["meanr"]


@pytest.mark.parametrize(("most", "epochs"), [(None, "111222333"), (9, "111222333"), (10, "111222333"), (4, "1112")])
def test_training_and_its_schedule_end_after_max_steps(tmp_path: Path, most: int | None, epochs: str) -> None:
    config = config_for("finetune", train={"epochs": 3, "max_steps": most})
    method, data = start(config, 2)
    cost = Trainer(method, data, config, 2).run(tmp_path / "loss.csv")
    rows = curve_of(tmp_path / "loss.csv")
    assert cost.steps == len(rows)
    assert "".join(row["epoch"] for row in rows) == epochs
    rates = [float(row["lr"]) for row in rows]
    expected = [learning_rate_factor(step, len(rows), 0, "cosine") * 1e-3 for step in range(len(rows))]
    assert rates == pytest.approx(expected, rel=1e-3)


def test_options_beside_the_papers_form_change_what_they_name() -> None:
    def ready(**loss: Any) -> StructAlign:
        method, _ = start(config_for("structalign", loss=loss), 2)
        assert isinstance(method, StructAlign)
        old = torch.arange(4).repeat_interleave(3)
        text, video = torch.randn(2, 12, 32, generator=torch.Generator().manual_seed(5))
        method.memory = method.memory.add(text, old, video, old)
        method.start_epoch(torch.Generator().manual_seed(1))
        return method

    text, video, category = ready()._pseudo_pairs(8)
    unit_text, unit_video, same = ready(pseudo_normalised=True)._pseudo_pairs(8)
    assert torch.equal(category, same)
    torch.testing.assert_close(unit_text, normalize(text, dim=-1))
    torch.testing.assert_close(unit_video, normalize(video, dim=-1))
    paper, sharp = (ready(scl_scale=scale)._scl_scale(16) for scale in ("batch", "global"))
    assert float(sharp.exp() / 16**0.5) == pytest.approx(float(paper.exp()))  # as sharp as global features are


def test_terms_of_structalign_come_and_go_with_their_weights(tmp_path: Path) -> None:
    config = config_for("structalign", loss={"crp_weight": 0.0, "etf_weight": 0.0, "pseudo_weight": 0.0})
    method, data = start(config, 2)
    assert method.teacher is None
    Trainer(method, data, config, 2).run(tmp_path / "loss.csv")
    rows = curve_of(tmp_path / "loss.csv")
    assert all(row["total"] == row["scl"] and row.keys().isdisjoint({"crp", "etf"}) for row in rows)
    assert method.state().keys() == {"classes", "counts", "text_means", "text_radii", "video_means", "video_radii"}


def test_pseudo_pairs_can_be_left_out_of_each_term(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    terms: dict[tuple[float, bool], dict[str, str]] = {}
    drawn: dict[tuple[float, bool], int] = {}
    plain = PrototypeMemory.draw
    for weight, joining in ((0.5, True), (0.5, False), (0.0, True), (0.0, False)):
        config = config_for("structalign", loss={"pseudo_weight": weight, "pseudo_etf": joining})
        method, data = start(config, 2)
        assert isinstance(method, StructAlign)
        old = torch.arange(4).repeat_interleave(3)
        text, video = normalize(torch.randn(2, 12, 32, generator=torch.Generator().manual_seed(5)), dim=-1)
        method.memory = method.memory.add(text, old, video, old)
        calls: list[int] = []

        def draw(memory: PrototypeMemory, count: int, *rest: Any, calls: list[int] = calls, **keys: Any) -> Any:
            calls.append(count)
            return plain(memory, count, *rest, **keys)

        with monkeypatch.context() as patch:
            patch.setattr(PrototypeMemory, "draw", draw)
            Trainer(method, data, config, 2).run(tmp_path / "loss.csv")
        terms[weight, joining] = curve_of(tmp_path / "loss.csv")[0]
        drawn[weight, joining] = len(calls)
        assert method.needs_features(1, 2) == bool(weight or joining)
    assert drawn[0.0, False] == 0
    assert {("pseudo" in row) for (weight, _), row in terms.items() if weight} == {True}
    assert {("pseudo" in row) for (weight, _), row in terms.items() if not weight} == {False}
    for weight in (0.5, 0.0):  # the pairs' own distance from their prototypes comes on top
        assert float(terms[weight, True]["etf"]) > float(terms[weight, False]["etf"]) + 0.5


@pytest.mark.parametrize("name", sorted(set(TRAINED) - {"joint"}))
def test_what_captions_of_one_video_are_to_each_other_matters_to_every_method(tmp_path: Path, name: str) -> None:
    curves = set()
    for choice in ("negative", "masked", "positive"):
        config = config_for(name, loss={"same_video": choice}, train={"epochs": 1})
        method, data = start(config, 2)
        Trainer(method, data, config, 2).run(tmp_path / "loss.csv")
        curves.add((tmp_path / "loss.csv").read_text())
    assert len(curves) == 3


def test_zscl_keeps_the_mean_of_all_weights_from_the_start_to_the_last_step(tmp_path: Path) -> None:
    config = config_for("zscl", train={"epochs": 1})
    method, data = start(config, 1)
    trainer = Trainer(method, data, config, 1)
    passed = [[weight.detach().double().clone() for weight in trainer.weights]]
    trainer.optimizer.register_step_post_hook(
        lambda *_: passed.append([weight.detach().double().clone() for weight in trainer.weights])
    )
    trainer.run(tmp_path / "loss.csv")
    assert len(passed) == 4
    for weight, *stages in zip(trainer.weights, *passed, strict=True):
        torch.testing.assert_close(weight.double(), torch.stack(stages).mean(0), rtol=0, atol=1e-6)


def test_zscl_judges_and_keeps_the_mean(tmp_path: Path) -> None:
    config = config_for("zscl", train={"min_epochs": 1, "patience": 9, "epochs": 3})
    method, data = start(config, 1)
    scores, seen = iter([10.0, 30.0, 20.0]), []

    def validate() -> float:
        seen.append(weights_of(method))
        return next(scores)

    Trainer(method, data, config, 1, validate).run(tmp_path / "loss.csv")
    method.finish_task(None)
    kept = weights_of(method)
    assert all(torch.equal(kept[name], seen[1][name]) for name in kept)
    method, data = start(config_for("zscl", train={"epochs": 3}), 1)
    Trainer(method, data, config, 1).run(tmp_path / "last.csv")
    last = weights_of(method)
    assert all(torch.equal(last[name], seen[2][name]) for name in last)


class Plain(AdapterMethod):
    """Contrastive training on global features, written out."""

    def loss(self, batch: Batch) -> Terms:
        _, _, text = self.retriever.encode_text(batch.tokens, self.task)
        _, video = self.retriever.encode_video(batch.pixels)
        logits = math.exp(CLIP_LOG_SCALE) * normalize(video, dim=-1) @ normalize(text, dim=-1).T
        pairs = torch.arange(len(logits))
        scl = cross_entropy(logits, pairs) + cross_entropy(logits.T, pairs)
        return {"scl": Term(scl)}


def test_stablefusion_without_its_cross_task_loss_is_plain_contrastive_training(tmp_path: Path) -> None:
    trained = {}
    for name, share in (("without", 0.0), ("plain", 0.0), ("with", 0.6)):
        # AdamW divides by the size of gradients: with a small epsilon, rounding of tiny ones would show.
        config = config_for("stablefusion", loss={"cross_task_weight": share}, train={"eps": 1e-3})
        method, data = start(config, 2)
        if name == "plain":
            method = Plain(config, method.retriever, num_categories=4)
            method.start_task(2, None)
        Trainer(method, data, config, 2).run(tmp_path / f"{name}.csv")
        trained[name] = weights_of(method)
    torch.testing.assert_close(trained["without"], trained["plain"], atol=1e-5, rtol=1e-4)
    assert any((trained["with"][key] - weight).abs().max() > 1e-3 for key, weight in trained["plain"].items())
    assert all(row["total"] == row["scl"] and "cross" not in row for row in curve_of(tmp_path / "without.csv"))
    assert all(float(row["cross"]) for row in curve_of(tmp_path / "with.csv"))


def test_stablefusion_contrasts_with_what_it_is_told_to() -> None:
    galleries = [TaskGallery(1, ["a"], [0], ["x"], [0], torch.ones(1, 2, 32))]
    video = normalize(torch.randn(3, 32, generator=torch.Generator().manual_seed(0)), dim=-1)
    features = TrainingFeatures(video, torch.zeros(3), video, torch.zeros(3))
    for source, stored in (("gallery", normalize(torch.ones(1, 32), dim=-1)), ("train", video)):
        config = config_for("stablefusion", loss={"cross_task_source": source})
        before, _ = start(config, 1)
        assert before.needs_features(1, 2) == (source == "train")
        assert not before.needs_features(2, 2)
        before.finish_task(features if before.needs_features(1, 2) else None)
        after, _ = start(config, 2)
        after.load_state(before.state())
        after.start_galleries(galleries)
        assert isinstance(after, StableFusion)
        assert after.stored is not None
        torch.testing.assert_close(after.stored, stored)


def test_zero_shot_is_untouched_clip() -> None:
    method, data = start(config_for("zeroshot"), 1)
    assert not method.trains
    assert method.trained_parameters() == 0
    torch.manual_seed(0)
    clip = CLIP(**MODEL).eval()
    frames = encode_videos(method.retriever, data.eval_batches(4))  # [V,N,D]
    galleries = [
        TaskGallery.from_samples(1, data.samples[:6], frames[:6]),
        TaskGallery.from_samples(2, data.samples[6:], frames[6:]),
    ]
    scores = rank(method.retriever, galleries, method.config.similarity).scores
    with torch.no_grad():
        images = [method.retriever.normalise(pixels).flatten(0, 1) for pixels in data.eval_batches(4)]  # [B*N,3,H,W]
        torch.testing.assert_close(frames.flatten(0, 1), torch.cat([clip.encode_image(part) for part in images]))
        tokens = method.retriever.tokenize(data.captions)  # [T,L]
        text = clip.encode_text(torch.nn.functional.pad(tokens, (0, 16 - tokens.shape[1])))
        cosine = normalize(text, dim=-1) @ normalize(frames.mean(dim=1), dim=-1).T
    deviation = cosine.std(dim=1, keepdim=True, correction=0)
    torch.testing.assert_close(scores, (cosine - cosine.mean(dim=1, keepdim=True)) / deviation, atol=1e-4, rtol=1e-4)


def test_frozen_experts_keep_their_bits_and_later_tasks_know_them(tmp_path: Path) -> None:
    config = config_for("moe_adapter", model={"experts": 5})
    method, data = start(config, 1)
    Trainer(method, data, config, 1).run(tmp_path / "loss.csv")
    method.finish_task(None)
    other, _ = start(config, 2)
    other.retriever.load_trained_state(method.retriever.trained_state())
    everything = other.trained_parameters()
    other.load_state(method.state())
    before = weights_of(other)
    Trainer(other, data, config, 2).run(tmp_path / "loss.csv")
    after = weights_of(other)
    blocks = [name.removeprefix("frozen.") for name in before if name.startswith("frozen.")]
    assert len(blocks) == 3  # one of vision, two of text
    for block in blocks:
        frozen = before[f"frozen.{block}"]
        assert frozen.sum() == config.model.top_k
        for name in (f"{block}.up", f"{block}.down"):
            moved = (after[name] != before[name]).flatten(1).any(dim=1)
            assert torch.equal(moved, ~frozen)
        assert torch.equal(after[f"{block}.routers.0"], before[f"{block}.routers.0"])
        assert not torch.equal(after[f"{block}.routers.1"], before[f"{block}.routers.1"])
    assert other.trained_parameters() == everything - 3 * 2 * (2 * 4 * 32)


def test_a_loss_curve_that_is_linked_into_dvcs_cache_is_left_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "cached.csv").write_text("of another run\n")
    os.link(tmp_path / "cached.csv", tmp_path / "loss.csv")
    with LossCurve(tmp_path / "loss.csv", 1):
        pass
    assert (tmp_path / "cached.csv").read_text() == "of another run\n"
    assert (tmp_path / "loss.csv").read_text().startswith("task,step")


def test_experts_stay_free_if_freezing_is_off(tmp_path: Path) -> None:
    config = config_for("moe_adapter", train={"epochs": 1, "freeze_experts": False})
    method, data = start(config, 1)
    Trainer(method, data, config, 1).run(tmp_path / "loss.csv")
    method.finish_task(None)
    assert not any(frozen.any() for frozen in method.state().values())


@pytest.mark.parametrize("name", ["structalign", "zscl", "moe_adapter"])
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


@pytest.mark.parametrize(("slow", "saved"), [(60.0, [1, 2, 3]), (0.0, [1])])
def test_what_takes_long_to_note_is_noted_seldom(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, slow: float, saved: list[int]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(training, "SLOW_SAVE", slow)
    monkeypatch.setattr(training, "SAVE_SHARE", 1e-9)
    noted: list[int] = []
    monkeypatch.setattr(ResumeFile, "save", lambda _, state: noted.append(state["epoch"]))
    config = config_for("finetune")
    method, data = start(config, 2)
    Trainer(method, data, config, 2, resume=ResumeFile("name")).run(tmp_path / "curve.csv")
    assert noted == saved


@pytest.mark.parametrize("damage", ["cut", "empty", "text", "code"])
def test_damaged_resume_file_starts_afresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: str) -> None:
    monkeypatch.chdir(tmp_path)
    resume = ResumeFile("name")
    resume.save({"epoch": 1, "weights": [torch.ones(3)]})
    content = {"cut": resume.path.read_bytes()[:40], "empty": b"", "text": b"not a resume file"}
    if damage == "code":
        torch.save({"epoch": Runs(Path.touch, tmp_path / "ran")}, resume.path)
    else:
        resume.path.write_bytes(content[damage])
    assert resume.load() is None
    assert not resume.path.exists()
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "error",
    [OSError(errno.EMFILE, "Too many open files"), RuntimeError("DefaultCPUAllocator: can't allocate memory")],
)
def test_errors_of_the_machine_keep_the_resume_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.chdir(tmp_path)
    resume = ResumeFile("name")
    resume.save({"epoch": 1})
    with monkeypatch.context() as patched, pytest.raises(type(error), match=str(error.args[-1])):
        patched.setattr(torch, "load", fail)
        resume.load()
    assert resume.load() == {"epoch": 1}


def test_loss_that_is_not_a_number_names_task_step_and_last_good_epoch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_for("finetune")
    method, data = start(config, 1)
    steps = iter(range(4))

    def breaking(batch: Batch, loss: Any = method.loss) -> Terms:
        terms = loss(batch)
        return terms if next(steps, None) is not None else {"scl": Term(terms["scl"].value * torch.nan)}

    monkeypatch.setattr(method, "loss", breaking)
    with pytest.raises(UserError, match=r"task 1, step 5 \(epoch 2\): the loss is nan; last good epoch: 1"):
        Trainer(method, data, config, 1).run(tmp_path / "loss.csv")


RATES_OF = [("finetune", 1, "train.lr_clip"), ("structalign", 1, "train.lr_first")]


@pytest.mark.parametrize(
    ("name", "task", "keys"), [*RATES_OF, ("structalign", 2, "train.lr_later and train.lr_scalars")]
)
def test_weights_that_the_last_step_breaks_are_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, task: int, keys: str
) -> None:
    config = config_for(name, train={"epochs": 1, "batch_size": 1000})
    method, data = start(config, task)
    trainer = Trainer(method, data, config, task)

    def overflow() -> None:
        trainer.weights[-1].data.fill_(torch.inf)

    monkeypatch.setattr(method, "finish_step", overflow)
    with pytest.raises(UserError, match=rf"task {task}: the weights are not finite after step 1, .*Lower {keys}, or"):
        trainer.run(tmp_path / "loss.csv")


def test_one_pair_is_nothing_to_train_on() -> None:
    config = config_for("finetune")
    method, _ = start(config, 1)
    one = TrainingSet([Sample("red-0", 0, ("a red picture",))], Memory(), method.retriever, 1)  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"task 1: 1 pair of video and caption.*raise split\.shots"):
        Trainer(method, one, config, 1)


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
            configure_numerics(threads, deterministic=threads == 2)
            assert torch.get_num_threads() == threads
            # What one stage asks for does not go on in the next one of the same process.
            assert torch.are_deterministic_algorithms_enabled() == (threads == 2)
        configure_numerics("auto")
        assert torch.get_num_threads() == available_cores()
    finally:
        torch.set_num_threads(before)


def test_peak_memory_is_the_process_s_own() -> None:
    """Its parent, which holds all of PyTorch, does not count; what it has given back does."""
    script = (
        "from structalign.util.machine import peak_memory_mb as peak; print(peak()); bytearray(2**28); print(peak())"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    before, after = map(float, done.stdout.split())
    assert before < 60
    assert after == pytest.approx(before + 256, abs=10)


# Faster, and repeatable


@pytest.mark.parametrize("same_video", ["negative", "masked", "positive"])
def test_videos_encoded_once_give_the_same_loss_where_nothing_is_augmented(
    tmp_path: Path, same_video: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    curves, encoded = [], []
    for share in (False, True):
        train = {"epochs": 1, "batch_size": 8, "crop_scale": 1.0, "share_videos": share}
        config = config_for("structalign", train=train, loss={"same_video": same_video})
        method, data = start(config, 2)

        def counted(pixels: Tensor, stem: Any = method.retriever.stem) -> Tensor:
            encoded.append(len(pixels))
            return stem(pixels)

        monkeypatch.setattr(method.retriever, "stem", counted)
        Trainer(method, data, config, 2).run(tmp_path / "loss.csv")
        curves.append(curve_of(tmp_path / "loss.csv"))
    assert encoded[:3] == [8, 8, 8]
    assert sum(encoded[3:]) < 24
    for apart, together in zip(*curves, strict=True):
        assert float(together["total"]) == pytest.approx(float(apart["total"]), rel=1e-5)


def test_compiled_encoders_are_those_that_train_and_teach(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Compiling takes minutes on a CPU, so a compiler that only counts stands in for PyTorch's."""
    called: list[torch.nn.Module] = []

    def compile_(module: torch.nn.Module) -> None:
        def compiled(*args: Any, **named: Any) -> Any:
            called.append(module)
            return module._call_impl(*args, **named)

        module._compiled_call_impl = compiled

    monkeypatch.setattr(torch.nn.Module, "compile", compile_)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models/clip").mkdir(parents=True)
    save_clip(CLIP(**MODEL), ClipInfo("test", MODEL, [0.5] * 3, [0.5] * 3), tmp_path / "models/clip")
    for wanted in (False, True):
        learner = Learner(config_for("structalign", train={"compile": wanted}), 4, Checkpoint())
        names = list(learner.retriever.state_dict())
        learner.start(2)
        teacher = learner.method.teacher
        assert teacher is not None
        learner.method.loss(one_batch())
        # The teacher starts from the student's frozen vision blocks.
        teaching = [block for block in blocks_of(teacher) if block not in teacher.stem_blocks()]
        expected = [*blocks_of(learner.retriever), *teaching] if wanted else []
        assert sorted(map(id, called)) == sorted(map(id, expected))
        assert list(learner.retriever.state_dict()) == names


def blocks_of(model: Retriever) -> list[torch.nn.Module]:
    return [*model.clip.visual.transformer.resblocks, *text_tower(model.clip).transformer.resblocks]


def one_batch() -> Batch:
    pixels = torch.randint(0, 256, (4, 2, 3, 16, 16), dtype=torch.uint8)
    tokens = torch.tensor([[49406, 5, 49407]] * 4)
    return Batch(pixels, tokens, torch.arange(4), torch.arange(4))


def test_deterministic_training_gives_the_same_bits_on_the_cpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    weights = []
    try:
        for wanted in (True, False):
            use_deterministic(wanted)
            assert torch.are_deterministic_algorithms_enabled() == wanted
            assert torch.backends.cuda.mem_efficient_sdp_enabled() != wanted
            config = config_for("structalign")
            method, data = start(config, 2)
            Trainer(method, data, config, 2).run(tmp_path / "loss.csv")
            weights.append(weights_of(method))
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    finally:
        use_deterministic(False)
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
