"""What dvc.yaml declares: a stage names the files or folders of every module that it imports, and few others."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
import yaml

from structalign.config.discovery import module_names
from structalign.config.pipeline import dependencies, is_code
from structalign.methods.base.discover import method_names

ROOT = Path(__file__).resolve().parents[2]
STAGES = list(yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"])
CHOSEN = {"method.name": "structalign", "data.name": "creatures"}


def imported(path: Path) -> set[Path]:
    """Modules of the project that a file imports, those within functions included."""
    found: set[Path] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        for name in names:
            module = ROOT / name.replace(".", "/")
            files = (module.with_suffix(".py"), module / "__init__.py")
            found |= {file for file in files if name.startswith("structalign") and file.exists()}
    return found


def closure(start: Path) -> set[Path]:
    """All modules of the project that a file imports, directly or not, and the file itself."""
    seen: set[Path] = set()
    waiting = {start}
    while waiting:
        path = waiting.pop()
        seen.add(path)
        waiting |= imported(path) - seen
    return seen


def computes(path: Path) -> bool:
    """Whether a module can change a number.

    What reads parameters, names paths, reports errors, logs, or starts processes cannot, if it has no arrays.
    """
    library = ROOT / "structalign"
    tools = path.parent == library or any(path.is_relative_to(library / name) for name in ("config", "util"))
    text = path.read_text(encoding="utf-8")
    return path.name != "__init__.py" and (not tools or "import torch" in text or "import numpy" in text)


def unnamed(start: str, stage: str, **chosen: str) -> list[str]:
    """Modules behind a file that a stage does not name."""
    named = [ROOT / item for item in dependencies(stage, CHOSEN | chosen) if is_code(item)]
    modules = (path for path in closure(ROOT / start) if computes(path))
    return sorted(
        str(path.relative_to(ROOT)) for path in modules if not any(path.is_relative_to(item) for item in named)
    )


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_names_the_code_that_its_results_depend_on(stage: str) -> None:
    assert unnamed(f"stages/{stage}.py", stage) == []


@pytest.mark.parametrize("stage", STAGES)
def test_the_code_that_a_stage_names_exists(stage: str) -> None:
    missing = [item for item in dependencies(stage, CHOSEN) if is_code(item) and not (ROOT / item).exists()]
    assert missing == []


@pytest.mark.parametrize("stage", ["train", "evaluate"])
def test_editing_what_a_long_stage_does_not_import_leaves_it_alone(stage: str) -> None:
    named = [ROOT / item for item in dependencies(stage, CHOSEN) if is_code(item)]
    files = {file for item in named for file in ([item] if item.is_file() else item.rglob("*.py"))}
    method = ROOT / f"structalign/methods/{CHOSEN['method.name']}.py"  # imported by its name
    imported = closure(ROOT / f"stages/{stage}.py") | closure(method)
    extra = {str(path.relative_to(ROOT)) for path in files - imported if path.name != "__init__.py"}
    assert extra == set()


@pytest.mark.parametrize("method", method_names())
@pytest.mark.parametrize("stage", ["train", "evaluate"])
def test_a_method_builds_on_its_base_and_itself(method: str, stage: str) -> None:
    assert unnamed(f"structalign/methods/{method}.py", stage, **{"method.name": method}) == []


@pytest.mark.parametrize("data", module_names("data/datasets"))
def test_download_names_what_a_data_set_builds_on(data: str) -> None:
    assert unnamed(f"structalign/data/datasets/{data}.py", "download", **{"data.name": data}) == []


def test_editing_one_method_retrains_no_other() -> None:
    named = dependencies("train", CHOSEN)
    others = [name for name in method_names() if f"structalign/methods/{name}.py" in named]
    assert others == ["structalign"]
    assert not any(item in named for item in ("structalign/methods", "structalign"))


def test_editing_figures_reruns_the_report_alone() -> None:
    assert [stage for stage in STAGES if "structalign/report" in dependencies(stage, CHOSEN)] == ["report"]
