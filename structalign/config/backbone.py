"""Checks of a backbone that need no weights: open_clip knows it, and its text tower gives word features."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any, Literal

from structalign.config.discovery import LIBRARY
from structalign.util.errors import UserError
from structalign.util.files import user_path


def backbone_config(name: str, pretrained: str | None, weights: str | None) -> dict[str, Any]:
    """Return open_clip's configuration of the backbone, having checked all that needs no weights.

    Raises
    ------
    UserError
        If open_clip does not know the name or the tag, the model gives no word features, the tag's
        weights belong to another activation function, or the file of weights is missing or a TorchScript archive.
    """
    if name == "tiny":
        return json.loads(next(LIBRARY.rglob("tiny_clip.json")).read_text(encoding="utf-8"))
    import open_clip  # takes seconds

    configuration = open_clip.get_model_config(name)
    if configuration is None:
        raise UserError(
            f"backbone.architecture = {name!r}: open_clip has no such model; `tiny`, or one of "
            "open_clip.list_models(), such as ViT-B-32-quickgelu"
        )
    _check_architecture(name, configuration)
    if weights is None:
        _check_tag(name, pretrained, configuration)
    else:
        _check_file(name, weights)
    return configuration


def adapted_blocks(wanted: int | Literal["all"], blocks: int, name: str) -> int:
    """How many of a model's vision blocks get an adapter.

    Raises
    ------
    UserError
        If `model.adapter_layers` asks for more than there are.
    """
    if wanted == "all":
        return blocks
    if wanted > blocks:
        raise UserError(
            f"model.adapter_layers = {wanted}: {name} has {blocks} vision blocks; set it to {blocks} or fewer, or "
            "to all"
        )
    return wanted


def _check_file(name: str, weights: str) -> None:
    from open_clip.pretrained import get_pretrained_cfg

    path = user_path(weights)
    if not path.is_file():
        tag = "; a tag goes into backbone.pretrained" if get_pretrained_cfg(name, weights) else ""
        raise UserError(f"backbone.weights = {weights!r}: no such file{tag}")
    if _is_torchscript(path):
        raise UserError(
            f"backbone.weights = {weights!r}: a TorchScript archive, as OpenAI publishes CLIP and CLIP4Clip uses it, "
            "which holds code: set backbone.weights=null and backbone.pretrained=openai, which fetches OpenAI's "
            "weights, or save its state_dict() to a file of its own"
        )


def _is_torchscript(path: Path) -> bool:
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any("/code/" in name for name in archive.namelist())


def _check_architecture(name: str, model: dict[str, Any]) -> None:
    """Refuse what word features cannot be read from: they need CLIP's own causal text tower and its tokens."""
    text, vision = model["text_cfg"], model["vision_cfg"]
    reasons = {
        "its text tower comes from Hugging Face": "hf_model_name" in text,
        "its tokenizer is not CLIP's": "hf_tokenizer_name" in text,
        "its text attention is not causal": text.get("no_causal_mask", False),
        "its text feature is not the end token's": text.get("pool_type", "argmax") != "argmax",
        "it is no plain CLIP but a captioner": "multimodal_cfg" in model,
        "its image tower is no ViT of open_clip's own": "timm_model_name" in vision
        or not isinstance(vision.get("layers", 12), int),
    }
    for reason, applies in reasons.items():
        if applies:
            raise UserError(f"backbone.architecture = {name!r}: {reason}; take a plain CLIP such as ViT-B-16")


def _check_tag(name: str, tag: str | None, model: dict[str, Any]) -> None:
    """Refuse a tag that open_clip lacks, or whose weights were trained with another activation function."""
    from open_clip.pretrained import get_pretrained_cfg, list_pretrained_tags_by_model

    if tag is None:
        raise UserError("backbone.pretrained and backbone.weights are both null: name a tag or a weights file")
    facts = get_pretrained_cfg(name, tag)
    if not facts:
        known = ", ".join(list_pretrained_tags_by_model(name)) or "none"
        file = "; a file goes into backbone.weights" if user_path(tag).is_file() else ""
        raise UserError(f"backbone.pretrained = {tag!r}: open_clip's tags for {name}: {known}{file}")
    quick = facts.get("quick_gelu", False)
    if quick != model.get("quick_gelu", False):
        other = f"{name}-quickgelu" if quick else name.removesuffix("-quickgelu")
        raise UserError(
            f"backbone.pretrained = {tag!r}: trained with {'quick' if quick else 'exact'} GELU, which {name} "
            f"does not use; set backbone.architecture={other}"
        )
