"""What each parameter means and which values it takes, read off the schema."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from structalign.config.discovery import module_names
from structalign.config.schema import Config
from structalign.config.section import DataSection

FOLLOWS = ("about", "tasks", "last", "annotations")
"""Keys that follow from others; nobody sets them."""


@dataclass(frozen=True)
class Parameter:
    """One parameter of `params.yaml`.

    Attributes
    ----------
    key : str
        Dotted, as for `dvc exp run -S`.
    values : str
        The values that it takes.
    meaning : str
        One sentence or more; empty if the name says it all.
    """

    key: str
    values: str
    meaning: str


def parameters() -> list[Parameter]:
    """List every parameter, those of the data sets under `data`."""
    found = list(_of(Config, ""))
    for name in module_names("data/datasets"):
        section: type[DataSection] = import_module(f"structalign.data.datasets.{name}").DataConfig
        own = [parameter for parameter in _of(section, "data.") if parameter.key != "data.name"]
        found += [Parameter(row.key, row.values, f"(data={name}) {row.meaning}".strip()) for row in own]
    return found


def _of(section: type[BaseModel], prefix: str) -> Iterator[Parameter]:
    schema = section.model_json_schema()
    for name, field in section.model_fields.items():
        if prefix or name not in (*FOLLOWS, "data"):
            inner = _inner(field)
            if inner is not None:
                yield from _of(inner, f"{prefix}{name}.")
            else:
                values = _values(schema["properties"][name], schema.get("$defs", {}))
                yield Parameter(prefix + name, values, " ".join((field.description or "").split()))


def _inner(field: FieldInfo) -> type[BaseModel] | None:
    kind = field.annotation
    return kind if isinstance(kind, type) and issubclass(kind, BaseModel) else None


def _values(schema: dict[str, Any], definitions: dict[str, Any]) -> str:
    """Say in words which values a JSON schema allows."""
    if "anyOf" in schema:
        return ", ".join(_values(one, definitions) for one in schema["anyOf"])
    if "$ref" in schema:
        return "/".join(definitions[schema["$ref"].rpartition("/")[2]]["properties"])
    if "const" in schema or "enum" in schema:
        return ", ".join(map(str, schema.get("enum", [schema.get("const")])))
    names = {"integer": "whole number", "number": "number", "boolean": "true, false", "null": "null"}
    names |= {"string": "text", "array": "list", "object": "keys and values"}
    bounds = [
        f"{word} {schema[key]:g}"
        for key, word in (
            ("minimum", "from"),
            ("exclusiveMinimum", "above"),
            ("maximum", "to"),
            ("exclusiveMaximum", "below"),
        )
        if key in schema
    ]
    return " ".join([names[schema["type"]], *bounds])
