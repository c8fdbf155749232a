"""CLIP through open_clip: where its weights come from, how they are stored, and word features.

open_clip is imported inside functions: it takes seconds, and most of what imports this module never needs it.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import Tensor, nn

from structalign.config.backbone import backbone_config
from structalign.util.checkpoint import load_tensors, save_tensors
from structalign.util.errors import UserError
from structalign.util.files import atomic_write_json, read_json, user_path
from structalign.util.log import without_logging

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
        If open_clip does not know the name or the tag, the model gives no word features, the tag's
        weights belong to another activation function, the file is missing, does not fit or holds numbers that are
        not finite, or the fetch fails.
    """
    import open_clip

    configuration = backbone_config(name, pretrained, weights)
    path = user_path(weights) if weights else None
    source = f"backbone.weights = {weights!r}" if weights else f"backbone.pretrained = {pretrained!r}"
    try:
        with without_logging():  # open_clip logs an error before it raises it
            clip = open_clip.create_model(name, pretrained=str(path) if path else pretrained)
    except MemoryError:
        raise
    except Exception as error:  # open_clip lets through whatever its many loaders raise
        file = "" if path else "; without internet access, name a file of weights in backbone.weights"
        raise UserError(f"{source}: cannot load {name} from it ({load_problem(error)}){file}") from None
    for key, weight in clip.state_dict().items():
        if weight.is_floating_point() and not weight.isfinite().all():
            raise UserError(f"{source}: {key} holds NaN or infinity; take other weights")
    mean = getattr(clip.visual, "image_mean", None) or open_clip.OPENAI_DATASET_MEAN
    std = getattr(clip.visual, "image_std", None) or open_clip.OPENAI_DATASET_STD
    return clip, ClipInfo(name, configuration, list(mean), list(std))


def load_problem(error: Exception) -> str:
    """Say in a few words why a weights file cannot be read."""
    if isinstance(error, UnpicklingError):
        return "it holds more than tensors, and pickled code is never run"
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


def build_clip(model: dict[str, Any], weights: dict[str, Tensor]) -> nn.Module:
    """Build a CLIP from its open_clip configuration around given weights, without initialising it first.

    Raises
    ------
    UserError
        If the configuration is not one of open_clip's, or a weight is missing, unknown, or of another shape
        than the configuration says.
    """
    from open_clip.model import CLIP, CustomTextCLIP

    configuration = {key: value for key, value in model.items() if key != "custom_text"}
    try:
        with torch.device("meta"):
            clip = (CustomTextCLIP if model.get("custom_text") else CLIP)(**configuration)
    except (TypeError, ValueError, AttributeError) as error:
        raise UserError(f"not an open_clip model configuration: {error}") from None
    problem = mismatch(clip.state_dict(), weights)
    if problem:
        raise UserError(f"CLIP weights do not fit their configuration: {problem}")
    clip.load_state_dict(weights, assign=True)
    text = text_tower(clip)
    length = text.positional_embedding.shape[0]
    text.attn_mask = torch.full((length, length), float("-inf")).triu_(1)  # left on the meta device until here
    return clip


def mismatch(expected: dict[str, Tensor], given: dict[str, Tensor]) -> str:
    """Say how two sets of tensors differ in names or shapes; empty if they fit."""
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
    description = folder / "clip.json"
    try:
        info = ClipInfo(**read_json(description))
    except TypeError as error:
        raise UserError(f"{description}: not a CLIP description ({error}); run `dvc repro`") from None
    weights = load_tensors(folder / "clip.safetensors")
    try:
        return build_clip(info.model, weights), info
    except UserError as error:
        raise UserError(f"{folder}: {error}; delete the folder and run `dvc repro`") from None


def text_tower(clip: nn.Module) -> Any:
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


def cut_padding(tokens: Tensor) -> Tensor:
    """Shorten tokens (T, L) to what the longest of the texts needs."""
    return tokens[:, : int(end_positions(tokens).max()) + 1]


def word_mask(tokens: Tensor) -> Tensor:
    """Mark the words (T, L): what lies between the start and the end token."""
    position = torch.arange(tokens.shape[1], device=tokens.device)
    return (position > 0) & (position < end_positions(tokens)[:, None])
