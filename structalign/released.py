"""Read checkpoints of the authors' released code: Hugging Face CLIP names, adapters included, to open_clip's.

A released checkpoint is a dict whose `state_dict` holds these names under `clipmodel.`, and the projections
`etf_proj1.weight` (text) and `etf_proj2.weight` (video).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import ValidationError
from safetensors.torch import load_file
from torch import Tensor

from structalign.config.schema import ModelConfig
from structalign.model.clip import ClipInfo, build_clip, load_problem
from structalign.model.retriever import Retriever
from structalign.util.errors import UserError

OPENAI_MEAN = [0.48145466, 0.4578275, 0.40821073]
OPENAI_STD = [0.26862954, 0.26130258, 0.27577711]

_TOWERS = {"text_model": "", "vision_model": "visual."}
_PLAIN = {
    "text_model.embeddings.token_embedding.weight": "token_embedding.weight",
    "text_model.embeddings.position_embedding.weight": "positional_embedding",
    "text_model.final_layer_norm": "ln_final",
    "vision_model.embeddings.class_embedding": "visual.class_embedding",
    "vision_model.embeddings.patch_embedding.weight": "visual.conv1.weight",
    "vision_model.embeddings.position_embedding.weight": "visual.positional_embedding",
    "vision_model.pre_layrnorm": "visual.ln_pre",  # the misspelling is Hugging Face's
    "vision_model.post_layernorm": "visual.ln_post",
    "logit_scale": "logit_scale",
}
_BLOCK = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
}


@dataclass
class Released:
    """A released checkpoint in this project's terms.

    Attributes
    ----------
    clip : dict of Tensor
        Weights under open_clip's names.
    adapters : dict of Tensor
        Weights under the names of `Retriever.trained_state`.
    info : ClipInfo
    model : ModelConfig
    num_tasks : int
        Task prototypes in the checkpoint.
    projections : dict of Tensor
        `text_proj` and `video_proj`, (D, D), if the checkpoint has them.
    """

    clip: dict[str, Tensor]
    adapters: dict[str, Tensor]
    info: ClipInfo
    model: ModelConfig
    num_tasks: int
    projections: dict[str, Tensor]

    def retriever(self) -> Retriever:
        """Build the model around these weights."""
        retriever = Retriever(build_clip(self.info.model, self.clip), self.info, self.model, self.num_tasks, seed=0)
        retriever.load_trained_state(self.adapters)
        return retriever


def read_released(path: Path, **settings: Any) -> Released:
    """Read a released checkpoint: as torch saved it, or its `state_dict` as safetensors or npz.

    Parameters
    ----------
    path : Path
        The ending .safetensors or .npz tells the format; anything else is a torch file, of which no pickled code
        is ever run.
    **settings
        As for `convert`.

    Raises
    ------
    UserError
        If the file is missing or no such checkpoint, or a weight is missing.
    """
    try:
        state = _read_state(path)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except MemoryError:
        raise
    except Exception as error:  # the three formats' readers raise errors of many classes
        raise UserError(
            f"{path}: not a released checkpoint, a dict with `state_dict` ({load_problem(error)})"
        ) from None
    try:
        return convert({name.removeprefix("clipmodel."): tensor for name, tensor in state.items()}, **settings)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def _read_state(path: Path) -> dict[str, Tensor]:
    if path.suffix == ".safetensors":
        return load_file(path)
    if path.suffix == ".npz":
        with np.load(path, allow_pickle=False) as arrays:
            return {name: torch.from_numpy(arrays[name]) for name in arrays.files}
    return dict(torch.load(path, map_location="cpu", weights_only=True)["state_dict"])


@contextmanager
def _lacks_and_misfits() -> Iterator[None]:
    """Turn a missing weight, or a setting that does not go with the weights, into an error for the user."""
    try:
        yield
    except KeyError as error:
        raise UserError(f"released weights lack {error}") from None
    except ValidationError as error:
        reasons = "; ".join(f"{'.'.join(map(str, item['loc']))} {item['msg']}".strip() for item in error.errors())
        raise UserError(f"released weights do not go with these settings: {reasons}") from None


@_lacks_and_misfits()
def convert(
    weights: dict[str, Tensor],
    text_heads: int | None = None,
    vision_heads: int | None = None,
    adapter_layers: int = 10,
    top_k: int = 2,
    lora_alpha: float = 256.0,
    dropout: float = 0.1,
) -> Released:
    """Convert released weights.

    Parameters
    ----------
    weights : dict of Tensor
        Under Hugging Face's names.
    text_heads, vision_heads : int, optional
        No shape tells them; by default one head per 64 channels, as in every published CLIP.
    adapter_layers : int
        The released model carries frame fusion in every vision block and uses that of the last ones only: 10 for
        MSRVTT, 12 for ACTNET. The unused ones are left behind.
    top_k, lora_alpha, dropout
        What no weight tells of the adapters; the defaults are the released settings.

    Raises
    ------
    UserError
        If a weight is missing, or a setting does not go with the weights.
    """
    info = _architecture(weights, text_heads, vision_heads)
    depth = info.model["vision_cfg"]["layers"]
    if not 0 <= adapter_layers <= depth:
        raise UserError(f"adapter_layers = {adapter_layers}: the released weights have {depth} vision blocks")
    fused = list(range(depth - adapter_layers, depth))
    model = ModelConfig(
        vision_adapter="frame_fusion" if fused else "none",
        adapter_layers=len(fused),
        vision_rank=1,
        text_adapter="lora_moe",
        experts=weights[f"{_attention(0)}.q_lora.lora_route.weight"].shape[0],
        top_k=top_k,
        rank=weights[f"{_attention(0)}.q_lora.lora_A.weight"].shape[0],
        lora_alpha=lora_alpha,
        dropout=dropout,
    )
    clip = _clip_weights(weights, info)
    adapters = _text_adapters(weights, info.model["text_cfg"]["layers"]) | _vision_adapters(weights, fused)
    prototypes = _blocks_with(weights, r"text_model\.task_prototype\.(\d+)")
    adapters |= {f"prototypes.{task}": weights[f"text_model.task_prototype.{task}"] for task in prototypes}
    projections = {
        ours: weights[theirs]
        for ours, theirs in (("text_proj", "etf_proj1.weight"), ("video_proj", "etf_proj2.weight"))
        if theirs in weights
    }
    return Released(clip, adapters, info, model, len(prototypes), projections)


def _attention(block: int, tower: str = "text_model") -> str:
    return f"{tower}.encoder.layers.{block}.self_attn"


def _blocks_with(weights: dict[str, Tensor], pattern: str) -> list[int]:
    """Numbers that a pattern finds in the names, sorted."""
    found = (re.fullmatch(pattern, name) for name in weights)
    return sorted({int(match[1]) for match in found if match})


def _architecture(weights: dict[str, Tensor], text_heads: int | None, vision_heads: int | None) -> ClipInfo:
    """Read the architecture off the shapes."""
    words = weights["text_model.embeddings.token_embedding.weight"]
    context = weights["text_model.embeddings.position_embedding.weight"].shape[0]
    patches = weights["vision_model.embeddings.patch_embedding.weight"]  # [W,3,P,P]
    grid = round((weights["vision_model.embeddings.position_embedding.weight"].shape[0] - 1) ** 0.5)
    vision_width, patch, text_width = patches.shape[0], patches.shape[-1], words.shape[1]
    layers = {
        tower: len(_blocks_with(weights, rf"{tower}\.encoder\.layers\.(\d+)\.layer_norm1\.weight"))
        for tower in _TOWERS
    }
    model = {
        "embed_dim": weights["text_projection.weight"].shape[0],
        "quick_gelu": True,
        "vision_cfg": {
            "image_size": grid * patch,
            "layers": layers["vision_model"],
            "width": vision_width,
            "patch_size": patch,
            "head_width": vision_width // (vision_heads or max(1, vision_width // 64)),
            "mlp_ratio": _mlp_ratio(weights, "vision_model"),
        },
        "text_cfg": {
            "context_length": context,
            "vocab_size": words.shape[0],
            "width": text_width,
            "heads": text_heads or max(1, text_width // 64),
            "layers": layers["text_model"],
            "mlp_ratio": _mlp_ratio(weights, "text_model"),
        },
    }
    return ClipInfo("released", model, OPENAI_MEAN, OPENAI_STD)


def _mlp_ratio(weights: dict[str, Tensor], tower: str) -> float:
    outputs, inputs = weights[f"{tower}.encoder.layers.0.mlp.fc1.weight"].shape
    return outputs / inputs


def _clip_weights(weights: dict[str, Tensor], info: ClipInfo) -> dict[str, Tensor]:
    """Rename the frozen CLIP's weights, and pack q, k, v as `nn.MultiheadAttention` does."""
    clip: dict[str, Tensor] = {}
    for theirs, ours in _PLAIN.items():
        for suffix in ("", ".weight", ".bias"):
            if theirs + suffix in weights:
                clip[ours + suffix] = weights[theirs + suffix]
    for tower, prefix in _TOWERS.items():
        layers = info.model["text_cfg" if tower == "text_model" else "vision_cfg"]["layers"]
        for block in range(layers):
            source, target = f"{tower}.encoder.layers.{block}", f"{prefix}transformer.resblocks.{block}"
            for theirs, ours in _BLOCK.items():
                for suffix in ("weight", "bias"):
                    clip[f"{target}.{ours}.{suffix}"] = weights[f"{source}.{theirs}.{suffix}"]
            clip |= _packed(weights, f"{source}.self_attn", f"{target}.attn")
    clip["text_projection"] = weights["text_projection.weight"].T.contiguous()
    clip["visual.proj"] = weights["visual_projection.weight"].T.contiguous()
    return clip


def _packed(weights: dict[str, Tensor], source: str, target: str) -> dict[str, Tensor]:
    """One attention's four projections under the names of `nn.MultiheadAttention`."""
    packed = {}
    for suffix in ("weight", "bias"):
        parts = [weights[f"{source}.{name}_proj.{suffix}"] for name in "qkv"]
        packed[f"{target}.in_proj_{suffix}"] = torch.cat(parts)
        packed[f"{target}.out_proj.{suffix}"] = weights[f"{source}.out_proj.{suffix}"]
    return packed


def _text_adapters(weights: dict[str, Tensor], layers: int) -> dict[str, Tensor]:
    adapters = {}
    for block in range(layers):
        for name in ("q", "k", "v", "out"):
            source = f"{_attention(block)}.{name}_lora"
            target = f"clip.transformer.resblocks.{block}.attn.updates.{name}"
            experts = len(_blocks_with(weights, re.escape(f"{source}.lora_Bs.") + r"(\d+)\.weight"))
            adapters[f"{target}.A"] = weights[f"{source}.lora_A.weight"]
            matrices = [weights[f"{source}.lora_Bs.{expert}.weight"] for expert in range(experts)]
            adapters[f"{target}.B"] = torch.stack(matrices)  # [E,out,r]
            adapters[f"{target}.router.weight"] = weights[f"{source}.lora_route.weight"]
            adapters[f"{target}.noise.weight"] = weights[f"{source}.w_noise.weight"]
    return adapters


def _vision_adapters(weights: dict[str, Tensor], blocks: list[int]) -> dict[str, Tensor]:
    adapters = {}
    for block in blocks:
        source = _attention(block, "vision_model")
        target = f"clip.visual.transformer.resblocks.{block}.attn"
        adapters[f"{target}.gate"] = weights[f"{source}.alpha"]
        adapters |= _packed(weights, f"{source}.frame_cross_attention", f"{target}.cross")
    return adapters
