"""What dvc.yaml declares: a stage names every module that its results depend on, found by following imports."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
import yaml

from structalign.methods.registry import CLASSES

ROOT = Path(__file__).resolve().parents[2]
STAGES = {
    name: stage.get("do", stage) for name, stage in yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"].items()
}

PLUMBING = {"config", "errors", "files", "log", "usage", "resume", "workers"} | {
    "data/split",
    "data/splitfile",
    "data/video",
}
"""Modules that check, report and store, or whose work is done in another stage: editing them changes no result."""

NOT_ITS_WORK = {
    "backbone": {"data/frames", "data/manifest", "encode", "evaluate", "examples", "gallery", "index", "metrics"}
    | {"method/etf", "model/adapters", "model/retriever", "model/routed", "ranking", "record"},
    # Ranking within a training serves train.select=best_on_test alone.
    "train": {"data/manifest", "evaluate", "index", "metrics", "ranking", "method/registry"},
    "evaluate": {"data/manifest", "distributed", "method/registry", "seeding"},
    "frames": set[str](),
    "split": {"data/video"},
}
"""What a stage imports only to name a type, to make something empty, or for a choice that is not the default."""


def imported(path: Path) -> set[Path]:
    """Modules of the library that a file imports, those within functions included."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        files = [ROOT / f"{name.replace('.', '/')}.py" for name in names if name.startswith("structalign")]
        found |= {file for file in files if file.exists()}
    return found


def closure(start: Path) -> set[str]:
    """All modules that a file imports, directly or not, as `data/frames`."""
    seen: set[Path] = set()
    waiting = {start}
    while waiting:
        path = waiting.pop()
        seen.add(path)
        waiting |= imported(path) - seen
    library = ROOT / "structalign"
    return {str(path.relative_to(library).with_suffix("")) for path in seen if path.is_relative_to(library)}


def declared(stage: str) -> set[str]:
    modules = [item for item in STAGES[stage]["deps"] if item.startswith("structalign/") and item.endswith(".py")]
    return {item.removeprefix("structalign/").removesuffix(".py") for item in modules}


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_names_the_modules_that_its_results_depend_on(stage: str) -> None:
    needed = closure(ROOT / f"stages/{stage}.py") - PLUMBING - NOT_ITS_WORK.get(stage, set())
    assert needed - declared(stage) == set()


@pytest.mark.parametrize("stage", STAGES)
def test_what_a_stage_names_exists(stage: str) -> None:
    for item in STAGES[stage]["deps"]:
        if item.startswith(("stages/", "structalign/")) and "${" not in item:
            assert (ROOT / item).exists(), item


@pytest.mark.parametrize("method", CLASSES)
def test_training_names_what_a_method_builds_on(method: str) -> None:
    needed = closure(ROOT / f"structalign/methods/{method}.py") - {f"method/{method}"}
    assert needed - PLUMBING - NOT_ITS_WORK["train"] - declared("train") == set()
