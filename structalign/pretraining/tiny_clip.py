"""The tiny CLIP that comes with the program: a stand-in for OpenAI's, for the built-in benchmark.

It was trained once, by `python -m stages.pretrain`, on still images of what the benchmark's videos are made of, and
all seeds share it, as all real experiments share OpenAI's weights. It is stored in half precision, and of the token
embeddings only those of the words that it has read: all others are drawn at random, so that a word that it has not
read is really unknown to it.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch import Tensor, nn

from structalign.model.clip import ClipInfo, build_clip
from structalign.util.checkpoint import load_tensors, save_tensors
from structalign.util.seeding import generator

WEIGHTS = Path(__file__).with_name("tiny_clip.safetensors")
INFO = ClipInfo("tiny", json.loads(WEIGHTS.with_suffix(".json").read_text(encoding="utf-8")), [0.5] * 3, [0.5] * 3)

_SEED = 0
_ALL = "token_embedding.weight"
_READ = "token_embedding.read"
_KEPT = "token_embedding.kept"


def store(weights: dict[str, Tensor], read: Tensor, path: Path) -> None:
    """Write a CLIP's weights as `tiny_clip` reads them; `read` (n,) lists the tokens that it was trained on."""
    packed = {name: weight.half() for name, weight in weights.items() if name != _ALL}
    save_tensors({**packed, _READ: read.int(), _KEPT: weights[_ALL][read].half()}, path)


def restore(path: Path) -> tuple[dict[str, Tensor], Tensor]:
    """Read what `store` wrote: all weights, and the tokens that were read.

    Unread tokens get random embeddings, on average as long as those of the others.
    """
    packed = load_tensors(path)
    read, kept = packed.pop(_READ).long(), packed.pop(_KEPT).float()  # [n], [n,W]
    size = (INFO.model["text_cfg"]["vocab_size"], kept.shape[1])
    embedding = torch.randn(size, generator=generator(_SEED)) * kept.std()  # [vocabulary,W]
    embedding[read] = kept
    return {_ALL: embedding, **{name: weight.float() for name, weight in packed.items()}}, read


def tiny_clip() -> tuple[nn.Module, ClipInfo]:
    """Load the tiny CLIP, an open_clip model, and its description."""
    weights, _ = restore(WEIGHTS)
    return build_clip(INFO.model, weights), INFO
