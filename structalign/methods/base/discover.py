"""Find methods: each is a file in `structalign/methods/`, and the file's name is `method.name`."""

from __future__ import annotations

from importlib import import_module

from structalign.config.discovery import module_names
from structalign.config.schema import Config
from structalign.methods.base.method import Method
from structalign.model.retriever import Retriever


def method_names() -> list[str]:
    """List the methods that there are."""
    return module_names("methods")


def method_class(name: str) -> type[Method]:
    """Import the class of `method.name`: the one subclass of `Method` that its file defines."""
    module = import_module(f"structalign.methods.{name}")
    classes = [
        value
        for value in vars(module).values()
        if isinstance(value, type) and issubclass(value, Method) and value.__module__ == module.__name__
    ]
    if len(classes) != 1:
        raise TypeError(f"structalign/methods/{name}.py: must define one subclass of Method, defines {len(classes)}")
    return classes[0]


def build_method(config: Config, retriever: Retriever, num_categories: int) -> Method:
    """Make the method that `config.method.name` asks for."""
    return method_class(config.method.name)(config, retriever, num_categories)
