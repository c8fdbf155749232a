"""A stand-in for CLIP: a tiny one, trained once on still images of the built-in benchmark.

It learns colours, shapes and backgrounds as they look in white light, and no word of motion, so that a benchmark's
worlds and movements are news to it.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize

from structalign.data.datasets.shapes import PROMPTS, stills
from structalign.losses.contrastive import scl
from structalign.losses.similarity import word_frame_similarity
from structalign.model.clip import CLIP_LOG_SCALE, ClipInfo, end_positions, project_text, text_states, word_mask
from structalign.util.log import progress
from structalign.util.seeding import derive_seed, seed_everything

BATCH = 128
CAPTIONS = 64
RATE = 1e-3
ARCHITECTURE = Path(__file__).with_name("tiny_clip.json")


def tiny_backbone(seed: int, steps: int) -> tuple[nn.Module, ClipInfo]:
    """Train the tiny CLIP.

    Parameters
    ----------
    seed : int
    steps : int
        Optimizer steps, on new images each.

    Returns
    -------
    clip : Module
        An open_clip model.
    info : ClipInfo
    """
    from open_clip.model import CLIP
    from open_clip.tokenizer import SimpleTokenizer

    info = ClipInfo("tiny", json.loads(ARCHITECTURE.read_text(encoding="utf-8")), [0.5] * 3, [0.5] * 3)
    seed_everything(seed, 0, 3)
    random = np.random.default_rng(derive_seed(seed, 0, 4))
    clip = CLIP(**info.model)
    tokenizer = SimpleTokenizer(context_length=info.context_length)
    optimizer = torch.optim.AdamW(clip.parameters(), lr=RATE, weight_decay=0.05, fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate_factor(step, steps))
    prompts = tokenizer([text for texts in PROMPTS for text in texts])
    for _ in progress(range(steps), desc="tiny CLIP", unit="step"):
        images, attributes, captions = stills(BATCH, info.image_size, random)
        tokens = torch.cat([prompts, tokenizer(captions[:CAPTIONS])])
        loss = _loss(clip, _pixels(images), tokens, torch.from_numpy(attributes))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(clip.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        with torch.no_grad():
            clip.logit_scale.clamp_(max=CLIP_LOG_SCALE)
    return clip.eval().requires_grad_(False), info


def _rate_factor(step: int, steps: int) -> float:
    """Warm up over a tenth of the steps, then fall to 0 along half a cosine."""
    warmup = max(1, steps // 10)
    return min((step + 1) / warmup, 0.5 * (1 + math.cos(math.pi * step / steps)))


def _pixels(images: np.ndarray) -> Tensor:
    """Normalise uint8 images (B, H, W, 3) to [-1, 1]: (B, 3, H, W)."""
    return torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1


def _loss(clip: Any, pixels: Tensor, tokens: Tensor, attributes: Tensor) -> Tensor:
    """Tell attributes by their prompts, and images by their captions and by their captions' words.

    `tokens` holds all prompts, then captions of the first images; `attributes` (5, B) says which prompts are true.
    Captions alone teach little in so few steps: most of what tells them apart is easy, and hides the rest. A real
    CLIP's word states mean something to images after its 400 million pairs; here they have to be told to.
    """
    features = clip.encode_image(pixels)  # [B,D]
    words, mask, texts = _encode_texts(clip, tokens)
    logits = clip.logit_scale.exp() * normalize(features, dim=-1) @ normalize(texts, dim=-1).T
    *by_attribute, by_caption = logits.split([*(len(texts) for texts in PROMPTS), CAPTIONS], dim=1)
    told = sum(cross_entropy(part, value) for part, value in zip(by_attribute, attributes, strict=True))
    pairs = by_caption[:CAPTIONS]
    own = torch.arange(CAPTIONS)
    stills = features[:CAPTIONS, None]  # [captions,1,D]: videos of a single frame
    by_word = word_frame_similarity(stills, words[-CAPTIONS:], mask[-CAPTIONS:])
    return told + cross_entropy(pairs, own) + cross_entropy(pairs.T, own) + scl(by_word, CLIP_LOG_SCALE)


def _encode_texts(clip: Any, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Words (T, L, D), their mask (T, L) and global features (T, D), without the padding that all texts share."""
    tokens = tokens[:, : int(end_positions(tokens).max()) + 1]
    states = text_states(clip, tokens)  # [T,L,W]
    features = project_text(clip, states)  # [T,L,D]
    return features, word_mask(tokens), features[torch.arange(len(tokens)), end_positions(tokens)]
