"""What installing the project brings: its own package, and the libraries that it imports."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import zipfile
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

from tests.helpers.checkout import ROOT, copy_checkout

NOT_IMPORTED = {"torchvision", "tabulate"}
"""Used by other libraries alone: by open_clip (and it has to fit torch), and by pandas for Markdown."""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    folder = tmp_path_factory.mktemp("wheel")
    copy_checkout(folder / "checkout")
    options = ["--no-deps", "--no-build-isolation", "--no-index", "--quiet", "--wheel-dir", str(folder)]
    command = [sys.executable, "-m", "pip", "wheel", *options, str(folder / "checkout")]
    subprocess.run(command, check=True, capture_output=True)
    return zipfile.ZipFile(next(folder.glob("*.whl")))


def required(file: str) -> set[str]:
    lines = (ROOT / file).read_text().splitlines()
    return {normalized(line) for line in lines if line and not line.startswith("#")}


def normalized(requirement: str) -> str:
    return re.split(r"[^\w.-]", requirement)[0].lower().replace("_", "-")


@pytest.mark.slow
def test_the_wheel_holds_one_package_with_all_its_files(wheel: zipfile.ZipFile) -> None:
    names = {name for name in wheel.namelist() if ".dist-info/" not in name}
    assert {name.split("/")[0] for name in names} == {"structalign"}
    assert names == {
        str(path.relative_to(ROOT))
        for path in (ROOT / "structalign").rglob("*")
        if path.is_file() and path.suffix != ".pyc"
    }


def test_the_wheel_depends_on_what_runs_need_alone(wheel: zipfile.ZipFile) -> None:
    metadata = next(name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
    lines = wheel.read(metadata).decode().splitlines()
    depends = {normalized(line.split(": ")[1]) for line in lines if line.startswith("Requires-Dist: ")}
    assert depends == required("requirements.txt")
    assert not depends & required("requirements-dev.txt")


def test_requirements_are_what_the_code_imports() -> None:
    imported: set[str] = set()
    for folder in ("structalign", "stages", "conf"):
        for path in (ROOT / folder).rglob("*.py"):
            imported |= top_level_imports(path)
    known = packages_distributions()
    ours = imported - sys.stdlib_module_names - {"structalign", "stages"}
    assert {normalized(known[name][0]) for name in ours} == required("requirements.txt") - NOT_IMPORTED


def top_level_imports(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module.split(".")[0])
    return names
