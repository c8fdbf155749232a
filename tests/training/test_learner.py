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


@pytest.mark.parametrize("method", ["structalign", "moe_adapter", "dual_prompts", "clip_vip", "xpool"])
def test_zero_shot_is_clip_whatever_the_method_adds_to_it(here: Path, method: str) -> None:
    (here / "models/clip").mkdir(parents=True)
    clip = CLIP(**SMALL).eval()
    save_clip(clip, ClipInfo("small", SMALL, [0.5] * 3, [0.5] * 3), here / "models/clip")
    learner = Learner(config(f"method={method}", "machine.device=cpu", "etf.num_classes=null"), 4, Checkpoint())
    model = learner.zero_shot().eval()
    pixels, tokens = torch.randn(2, 3, 3, 32, 32), model.tokenize(["a red cat", "a dog"])  # [T,L]
    padded = torch.nn.functional.pad(tokens, (0, clip.context_length - tokens.shape[1]))
    with torch.inference_mode():
        frames, _ = model.encode_video(pixels)
        _, _, text = model.encode_text(tokens, 1)
        torch.testing.assert_close(frames, clip.encode_image(pixels.flatten(0, 1)).unflatten(0, (2, 3)))
        torch.testing.assert_close(text, clip.encode_text(padded))
