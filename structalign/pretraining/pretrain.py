"""Pre-training of the tiny CLIP (`structalign.pretraining.tiny_clip`) on still images of the built-in benchmark.

It learns colours, outlines with everyday names and patterned backgrounds, and neither a creature nor a word of
motion nor any weather. Every step draws new images.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize

from structalign.data.datasets.creatures import new_words
from structalign.losses.contrastive import scl
from structalign.losses.similarity import word_frame_similarity
from structalign.model.clip import CLIP_LOG_SCALE, end_positions, project_text, text_states, word_mask
from structalign.pretraining.stills import ATTRIBUTES, PROMPTS, SENTENCES, draw_stills, unread_words
from structalign.pretraining.tiny_clip import INFO
from structalign.util.seeding import derive_seed, seed_everything

STEPS = 2400
SEED = 0
BATCH = 96
CAPTIONS = 64
RATE = 1e-3
HELD_OUT_SEED = 99
HELD_OUT = 600
"""Images that accuracy is measured on; none of them is trained on."""


class Pretraining:
    """A CLIP that trains.

    Parameters
    ----------
    steps : int
        Optimizer steps in all; the learning rate falls to 0 over them.

    Attributes
    ----------
    clip : Module
        An open_clip model.
    read : Tensor, shape (n,)
        The tokens that its texts consist of, sorted, but for words that say nothing.
    """

    def __init__(self, steps: int = STEPS) -> None:
        from open_clip.model import CLIP
        from open_clip.tokenizer import SimpleTokenizer

        self.steps = steps
        seed_everything(SEED, 0, 3)
        self.random = np.random.default_rng(derive_seed(SEED, 0, 4))
        self.clip = CLIP(**INFO.model)
        self.tokenizer = SimpleTokenizer(context_length=INFO.context_length)
        prompts = [text for texts in PROMPTS for text in texts]
        self.prompts = self.tokenizer(prompts)
        self.unread = unread_words(self.tokenizer, [*new_words(), *prompts, *SENTENCES])
        images, self.truth, _ = draw_stills(
            HELD_OUT, INFO.image_size, self.unread, np.random.default_rng(HELD_OUT_SEED)
        )
        self.held_out = _pixels(images)
        blank = dict.fromkeys(("colour", "thing", "core", "filler", "place"), "")
        sentences = self.tokenizer([sentence.format(**blank) for sentence in SENTENCES])
        self.read = torch.cat([sentences.unique(), self.prompts.unique()]).unique()

    def run(self, every: int) -> Iterator[dict[str, float]]:
        """Train; after every `every` steps yield the step, the loss and the accuracies (`accuracy`)."""
        optimizer = torch.optim.AdamW(self.clip.parameters(), lr=RATE, weight_decay=0.05, fused=True)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate_factor(step, self.steps))
        for step in range(1, self.steps + 1):
            images, attributes, captions = draw_stills(BATCH, INFO.image_size, self.unread, self.random)
            tokens = torch.cat([self.prompts, self.tokenizer(captions[:CAPTIONS])])
            loss = _loss(self.clip, _pixels(images), tokens, torch.from_numpy(attributes))
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(self.clip.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            with torch.no_grad():
                self.clip.logit_scale.clamp_(max=CLIP_LOG_SCALE)
            if step % every == 0:
                yield {"step": step, "loss": loss.item(), **self.accuracy()}

    @torch.no_grad()
    def accuracy(self) -> dict[str, float]:
        """Share (%) of held-out images for which each attribute's best-matching prompt is the right one."""
        images = normalize(self.clip.encode_image(self.held_out), dim=-1)  # [I,D]
        texts = normalize(_encode_texts(self.clip, self.prompts)[2], dim=-1)  # [T,D]
        parts = (images @ texts.T).split([len(prompts) for prompts in PROMPTS], dim=1)
        found = [part.argmax(dim=1).numpy() == truth for part, truth in zip(parts, self.truth, strict=True)]
        return {name: 100 * float(right.mean()) for name, right in zip(ATTRIBUTES, found, strict=True)}


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
    attribute_loss = sum(cross_entropy(part, value) for part, value in zip(by_attribute, attributes, strict=True))
    pairs = by_caption[:CAPTIONS]
    own = torch.arange(CAPTIONS)
    stills = features[:CAPTIONS, None]  # [captions,1,D]: videos of a single frame
    by_word = word_frame_similarity(stills, words[-CAPTIONS:], mask[-CAPTIONS:])
    return attribute_loss + cross_entropy(pairs, own) + cross_entropy(pairs.T, own) + scl(by_word, CLIP_LOG_SCALE)


def _encode_texts(clip: Any, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Words (T, L, D), their mask (T, L) and global features (T, D), without the padding that all texts share."""
    tokens = tokens[:, : int(end_positions(tokens).max()) + 1]
    states = text_states(clip, tokens)  # [T,L,W]
    features = project_text(clip, states)  # [T,L,D]
    return features, word_mask(tokens), features[torch.arange(len(tokens)), end_positions(tokens)]
