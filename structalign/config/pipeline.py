"""What `dvc.yaml` declares of a stage, so that nothing else has to repeat it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]
"""The project: the folder of `dvc.yaml`, `stages/` and `structalign/`."""


def stage_entry(name: str) -> dict[str, Any]:
    """Read the entry of a stage in `dvc.yaml`; empty if the project has no such file or stage."""
    path = ROOT / "dvc.yaml"
    stages = yaml.safe_load(path.read_text(encoding="utf-8"))["stages"] if path.exists() else {}
    stage = stages.get(name, {})
    return stage.get("do", stage)


def dependencies(name: str, values: Mapping[str, str]) -> list[str]:
    """List the files and folders that a stage depends on, with `${key}` replaced by `values[key]`."""
    return [_filled(item, values) for item in stage_entry(name).get("deps", [])]


def is_code(path: str) -> bool:
    """Whether a dependency is code of the project and not data."""
    return path.startswith(("stages/", "structalign/"))


def code_digest(stage: str) -> str:
    """Hash the code that a stage depends on."""
    digest = hashlib.sha256()
    for name in filter(is_code, stage_entry(stage).get("deps", [])):
        digest.update((ROOT / name).read_bytes())
    return digest.hexdigest()[:16]


def _filled(text: str, values: Mapping[str, str]) -> str:
    for key, value in values.items():
        text = text.replace("${" + key + "}", value)
    return text
