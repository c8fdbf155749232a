"""CLIP through open_clip: where its weights come from, how they are stored, and word features.

open_clip is imported inside functions: it takes seconds, and most of what imports this module never needs it.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from structalign.checkpoint import load_tensors, save_tensors
from structalign.errors import UserError
from structalign.files import atomic_write_json, read_json

CLIP_LOG_SCALE = 4.60
"""Logarithm of CLIP's trained and here frozen logit scale (METHOD.md, section 2)."""


@dataclass(frozen=True)
class ClipInfo:
    """What is needed to build a CLIP and to feed it.

    Attributes
    ----------
    name : str
        open_clip's name of the architecture, or the project's own.
    model : dict
        open_clip's model configuration: embed_dim, vision_cfg, text_cfg and so on.
    mean, std : list of 3 floats
        Normalisation of pixels in [0, 1].
    """

    name: str
    model: dict[str, Any]
    mean: list[float]
    std: list[float]

    @property
    def image_size(self) -> int:
        """Height and width of the frames that the model sees, in pixels."""
        size = self.model["vision_cfg"]["image_size"]
        return size if isinstance(size, int) else size[0]

    @property
    def context_length(self) -> int:
        """Longest token sequence."""
        return self.model["text_cfg"].get("context_length", 77)


def open_clip_backbone(name: str, pretrained: str | None, weights: str | None) -> tuple[nn.Module, ClipInfo]:
    """Get a CLIP by its open_clip name, with weights by tag (fetched by open_clip) or from a local file.

    Raises
    ------
    UserError
        Where open_clip does not know the name or the tag, the file is missing or does not fit, or the fetch fails.
    """
    import open_clip

    configuration = open_clip.get_model_config(name)
    if configuration is None:
        raise UserError(
            f"backbone.architecture = {name!r}: open_clip has no such model; `tiny`, or one of "
            "open_clip.list_models(), such as ViT-B-32-quickgelu"
        )
    if weights is not None and not Path(weights).is_file():
        raise UserError(f"backbone.weights = {weights!r}: no such file")
    if weights is None and pretrained is None:
        raise UserError(
            "backbone.pretrained and backbone.weights are both null: name a tag or a weights file"
        )
    try:
        clip = open_clip.create_model(name, pretrained=weights or pretrained, force_image_size=None)
    except (RuntimeError, OSError, ValueError) as error:
        source = f"backbone.weights = {weights!r}" if weights else f"backbone.pretrained = {pretrained!r}"
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"{source}: cannot load {name} from it: {reason}") from None
    mean = getattr(clip.visual, "image_mean", None) or open_clip.OPENAI_DATASET_MEAN
    std = getattr(clip.visual, "image_std", None) or open_clip.OPENAI_DATASET_STD
    return clip, ClipInfo(name, configuration, list(mean), list(std))


def build_clip(model: dict[str, Any], weights: dict[str, Tensor]) -> nn.Module:
    """Build a CLIP from its open_clip configuration around given weights, without initialising it first.

    Raises
    ------
    UserError
        Where a weight is missing, unknown, or of another shape than the configuration says.
    """
    from open_clip.model import CLIP, CustomTextCLIP

    configuration = {key: value for key, value in model.items() if key != "custom_text"}
    with torch.device("meta"):
        clip = (CustomTextCLIP if model.get("custom_text") else CLIP)(**configuration)
    problem = mismatch(clip.state_dict(), weights)
    if problem:
        raise UserError(f"CLIP weights do not fit their configuration: {problem}")
    clip.load_state_dict(weights, assign=True)
    text = text_tower(clip)
    length = text.positional_embedding.shape[0]
    text.attn_mask = torch.full((length, length), float("-inf")).triu_(
        1
    )  # left on the meta device until here
    return clip


def mismatch(expected: dict[str, Tensor], given: dict[str, Tensor]) -> str:
    """Say how two sets of tensors differ in names or shapes; empty where they fit."""
    missing, unknown = sorted(expected.keys() - given.keys()), sorted(given.keys() - expected.keys())
    shapes = [
        f"{name} is {tuple(given[name].shape)}, expected {tuple(expected[name].shape)}"
        for name in sorted(expected.keys() & given.keys())
        if given[name].shape != expected[name].shape
    ]
    parts = []
    if missing:
        parts.append(f"{len(missing)} missing, such as {missing[0]}")
    if unknown:
        parts.append(f"{len(unknown)} unknown, such as {unknown[0]}")
    if shapes:
        parts.append(f"{len(shapes)} of another shape, such as {shapes[0]}")
    return "; ".join(parts)


def save_clip(clip: nn.Module, info: ClipInfo, folder: Path) -> None:
    """Write a CLIP into an existing folder: `clip.safetensors` and `clip.json`."""
    save_tensors(clip.state_dict(), folder / "clip.safetensors")
    atomic_write_json(folder / "clip.json", asdict(info))


def load_clip(folder: Path) -> tuple[nn.Module, ClipInfo]:
    """Read what `save_clip` wrote; missing, damaged or misfitting files are a `UserError`."""
    try:
        info = ClipInfo(**read_json(folder / "clip.json"))
    except TypeError as error:
        raise UserError(f"{folder / 'clip.json'}: not a CLIP description ({error})") from None
    return build_clip(info.model, load_tensors(folder / "clip.safetensors")), info


def text_tower(clip: nn.Module) -> nn.Module:
    """The module that holds the text encoder: open_clip keeps it in `clip.text`, or in the model itself."""
    return getattr(clip, "text", clip)


def text_states(clip: nn.Module, tokens: Tensor) -> Tensor:
    """States of all tokens after the final LayerNorm.

    Parameters
    ----------
    clip : Module
    tokens : Tensor, shape (T, L), int64
        L may be anything up to the context length: attention is causal, so that cutting off padding changes
        nothing and saves most of the work.

    Returns
    -------
    Tensor, shape (T, L, width)
    """
    text = text_tower(clip)
    length = tokens.shape[1]
    states = text.token_embedding(tokens) + text.positional_embedding[:length]  # [T,L,W]
    states = text.transformer(states, attn_mask=text.attn_mask[:length, :length])
    return text.ln_final(states)


def project_text(clip: nn.Module, states: Tensor) -> Tensor:
    """Map token states (..., width) to the joint space (..., D)."""
    projection = text_tower(clip).text_projection
    if projection is None:
        return states
    return projection(states) if isinstance(projection, nn.Module) else states @ projection


def end_positions(tokens: Tensor) -> Tensor:
    """Position of each sequence's end token, which has the highest number of all tokens: (T,)."""
    return tokens.argmax(dim=-1)


def word_mask(tokens: Tensor) -> Tensor:
    """Mark the words (T, L): what lies between the start and the end token."""
    position = torch.arange(tokens.shape[1], device=tokens.device)
    return (position > 0) & (position < end_positions(tokens)[:, None])
