"""Methods by name."""

from __future__ import annotations

from importlib import import_module

from structalign.config.schema import Config
from structalign.methods.base import Method
from structalign.model.retriever import Retriever

CLASSES = {
    "structalign": "StructAlign",
    "zeroshot": "ZeroShot",
    "finetune": "Finetune",
    "lwf": "LwF",
    "vr_lwf": "VrLwF",
    "zscl": "ZSCL",
    "moe_adapter": "MoEAdapter",
    "stablefusion": "StableFusion",
    "joint": "Joint",
}


def method_class(name: str) -> type[Method]:
    """Look up the class of `method.name`; the module of the same name is imported only now."""
    return getattr(import_module(f"structalign.methods.{name}"), CLASSES[name])


def build_method(config: Config, retriever: Retriever, num_categories: int) -> Method:
    """Make the method that `config.method.name` asks for."""
    return method_class(config.method.name)(config, retriever, num_categories)
