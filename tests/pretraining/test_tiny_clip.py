"""The tiny CLIP that comes with the program."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import torch
import yaml

from structalign.pretraining.pretrain import Pretraining
from structalign.pretraining.stills import ATTRIBUTES
from structalign.pretraining.tiny_clip import WEIGHTS, restore, store, tiny_clip

ROOT = Path(__file__).resolve().parents[2]


def test_it_is_small_enough_to_be_shipped_and_is_what_its_stage_made() -> None:
    assert WEIGHTS.stat().st_size <= 4e6
    outputs = yaml.safe_load((ROOT / "pretrain/dvc.lock").read_text())["stages"]["pretrain"]["outs"]
    recorded = {output["path"]: output["md5"] for output in outputs}
    made = hashlib.md5(WEIGHTS.read_bytes()).hexdigest()
    assert recorded[WEIGHTS.relative_to(ROOT).as_posix()] == made


def test_it_tells_apart_what_it_was_trained_on() -> None:
    training = Pretraining(1)
    training.clip = tiny_clip()[0]
    accuracy = training.accuracy()
    assert set(accuracy) == set(ATTRIBUTES)
    assert accuracy.pop("outline") > 70  # of eight
    assert min(accuracy.values()) > 99


def test_unread_words_are_random_and_the_same_every_time() -> None:
    (first, read), (again, _) = restore(WEIGHTS), restore(WEIGHTS)
    embedding = first["token_embedding.weight"]
    assert torch.equal(embedding, again["token_embedding.weight"])
    unread = torch.ones(len(embedding), dtype=torch.bool).index_fill(0, read, False)
    assert embedding[unread].std().item() == pytest.approx(embedding[read].std().item(), rel=0.02)
    assert torch.corrcoef(embedding[unread][:200]).fill_diagonal_(0).abs().max() < 0.5


def test_what_is_stored_comes_back(tmp_path: Path) -> None:
    weights, read = restore(WEIGHTS)
    store(weights, read, tmp_path / "clip.safetensors")
    back, still = restore(tmp_path / "clip.safetensors")
    assert torch.equal(still, read)
    assert back.keys() == weights.keys()
    assert all(torch.equal(back[name], weights[name]) for name in weights if name != "token_embedding.weight")
    assert torch.equal(back["token_embedding.weight"][read], weights["token_embedding.weight"][read])


@pytest.mark.slow
def test_training_lowers_the_loss_and_repeats_itself() -> None:
    def run() -> list[dict[str, float]]:
        torch.set_num_threads(1)
        return list(Pretraining(6).run(2))

    first, again = run(), run()
    assert first == again
    assert [point["step"] for point in first] == [2, 4, 6]
    assert first[-1]["loss"] < first[0]["loss"]
