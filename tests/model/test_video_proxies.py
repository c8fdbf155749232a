"""CLIP-ViP's proxy tokens."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from open_clip.model import CLIP
from torch import Tensor
from torch.nn.functional import interpolate

from structalign.config.schema import Config, ModelConfig
from structalign.model.clip import ClipInfo
from structalign.model.retriever import Retriever
from structalign.model.text_pooling import TextPooling
from structalign.model.video_proxies import FRAMES, PROXIES, VideoProxies
from tests.helpers.errors import refused
from tests.helpers.params import config, params

FRAMES_SHOWN = 3


def retriever(pool: str = "tok") -> Retriever:
    """A small CLIP whose proxies and temporal embeddings are drawn at random."""
    torch.manual_seed(0)
    vision = {"image_size": 32, "layers": 2, "width": 32, "patch_size": 16, "head_width": 16, "pool_type": pool}
    text = {"context_length": 12, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2}
    model = {"embed_dim": 16, "vision_cfg": vision, "text_cfg": text}
    settings = config("method=clip_vip").model
    made = Retriever(CLIP(**model), ClipInfo("test", model, [0.5] * 3, [0.5] * 3), settings, 2, 1, trainable="all")
    assert made.proxies is not None
    with torch.no_grad():
        made.proxies.temporal.normal_()
    return made.eval()


def reference(made: Retriever, pixels: Tensor, pool: str) -> Tensor:
    """One long sequence under a mask, with open_clip's own blocks."""
    visual, proxies = made.clip.visual, made.proxies
    assert proxies is not None
    when = interpolate(proxies.temporal.T[None], len(pixels), mode="linear", align_corners=True)[0].T  # [N,W]
    position = visual.positional_embedding
    images = visual.conv1(made.normalise(pixels)).flatten(2).mT  # [N,P,W]
    leading = torch.cat([visual.class_embedding[None], proxies.proxies]) + position[0]
    tokens = torch.cat([leading, *(image + position[1:] + w for image, w in zip(images, when, strict=True))])
    frame = torch.tensor([-1] * len(leading) + [n for n in range(len(images)) for _ in images[0]])
    hidden = (frame[:, None] >= 0) & (frame >= 0) & (frame[:, None] != frame)
    states = visual.ln_pre(tokens)[None]
    for block in visual.transformer.resblocks:
        normed = block.ln_1(states)
        states = states + block.attn(normed, normed, normed, need_weights=False, attn_mask=hidden)[0]
        states = states + block.mlp(block.ln_2(states))
    states = visual.ln_post(states)[0]
    pooled = states[0] if pool == "tok" else states[len(leading) :].mean(dim=0)
    return pooled @ visual.proj


@pytest.mark.parametrize("pool", ["tok", "avg"])
def test_leading_tokens_see_everything_and_patches_their_own_frame(pool: str) -> None:
    made = retriever(pool)
    pixels = torch.randint(256, (2, FRAMES_SHOWN, 3, 32, 32), dtype=torch.uint8)
    with torch.no_grad():
        frames, global_ = made.encode_video(pixels)
        assert frames.shape == (2, 1, 16)
        for video, feature in zip(pixels, global_, strict=True):
            torch.testing.assert_close(feature, reference(made, video, pool), rtol=1e-4, atol=1e-5)


def test_what_is_computed_again_has_the_same_gradients() -> None:
    pixels = torch.randint(256, (2, FRAMES_SHOWN, 3, 32, 32), dtype=torch.uint8)
    gradients, calls = [], []
    for recompute in (False, True):
        made = retriever()
        made.model = ModelConfig(**{**made.model.model_dump(), "checkpoint_vision": recompute})
        made.prepare_task(1)
        starts: list[int] = []
        # Before the MLP, because PyTorch breaks off what it computes again as soon as it has what it needs.
        made.clip.visual.transformer.resblocks[-1].mlp.register_forward_pre_hook(
            lambda *_, noted=starts: noted.append(1)
        )
        made.encode_video(pixels)[1].sum().backward()
        calls.append(len(starts))
        gradients.append({name: weight.grad for name, weight in made.named_parameters() if weight.grad is not None})
    assert calls[1] > calls[0] > 0
    assert {"proxies.proxies", "proxies.temporal"} <= set(gradients[0])
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient)


def test_parameter_counts_are_the_published_ones() -> None:
    vision = {"image_size": 224, "layers": 12, "width": 768, "patch_size": 32}
    text = {"context_length": 77, "vocab_size": 49408, "width": 512, "heads": 8, "layers": 12}
    with torch.device("meta"):
        clip = sum(weight.numel() for weight in CLIP(embed_dim=512, vision_cfg=vision, text_cfg=text).parameters())
        proxies, pooling = (
            sum(weight.numel() for weight in module.parameters()) for module in (VideoProxies(768), TextPooling(512))
        )
    assert proxies == (PROXIES + FRAMES) * 768
    assert f"{(clip + proxies) / 1e6:.2f}M" == "151.29M"
    assert f"{(clip + pooling) / 1e6:.2f}M" == "152.59M"


@pytest.mark.parametrize(
    ("method", "section", "change", "message"),
    [
        ("clip_vip", "similarity", {"alpha": 0.5}, "method clip_vip has no frame features; set 0"),
        ("clip_vip", "model", {"vision_adapter": "lora"}, "method clip_vip needs none"),
        ("finetune", "model", {"video_pooling": "proxies"}, "method finetune needs mean"),
        ("xpool", "model", {"video_pooling": "mean"}, "method xpool needs text"),
    ],
)
def test_what_does_not_go_together_is_refused(
    here: Path, method: str, section: str, change: dict, message: str
) -> None:
    values = params(f"method={method}")
    values[section] |= change
    with refused(message):
        Config.parse(values)
