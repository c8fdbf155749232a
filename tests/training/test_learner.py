"""Taking up a checkpoint that another training wrote."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from open_clip.model import CLIP

from structalign.model.clip import ClipInfo, save_clip
from structalign.training.learner import Learner
from structalign.util.checkpoint import Checkpoint
from tests.helpers.errors import refused
from tests.helpers.params import config

SMALL = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 32, "patch_size": 16, "head_width": 16},
    "text_cfg": {"context_length": 12, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2},
}


@pytest.mark.parametrize(
    ("method", "said"), [("lwf", "written by method 'lwf'"), ("structalign", "checkpoint of another model")]
)
def test_a_checkpoint_of_another_training_is_refused(here: Path, method: str, said: str) -> None:
    (here / "models/clip").mkdir(parents=True)
    save_clip(CLIP(**SMALL), ClipInfo("small", SMALL, [0.5] * 3, [0.5] * 3), here / "models/clip")
    checkpoint = Checkpoint(1, method, weights={"scale": torch.ones(3)})
    with refused(said):
        Learner(config(), 20, checkpoint)
