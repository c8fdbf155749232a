"""Parameters composed from `conf/` alone, whatever `params.yaml` of the work tree says."""

from __future__ import annotations

import contextlib
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from structalign.config.compose import compose
from structalign.config.schema import Config

ROOT = Path(__file__).resolve().parents[2]


@cache
def _composed(*overrides: str) -> str:
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(ROOT):
        target = Path(folder) / "params.yaml"
        compose(list(overrides), target)
        return target.read_text()


def params(*overrides: str) -> dict[str, Any]:
    """The default parameters with overrides such as `K=2`, as plain values that a test may change."""
    return yaml.safe_load(_composed(*overrides))


def config(*overrides: str) -> Config:
    """The same as stages receive it."""
    return Config.parse(params(*overrides))
