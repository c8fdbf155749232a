"""Fixtures that several test modules share, and the guard of the work tree."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers.checkout import ROOT, is_state

os.environ.setdefault("OMP_NUM_THREADS", "1")
"""Tests run side by side; threads of their own would slow all of them. Set before anything imports torch."""

opened: list[Path] = []
"""Paths of the work tree's state that were opened since the last test."""


def _watch(event: str, arguments: tuple) -> None:
    if event in ("open", "os.listdir", "os.scandir") and isinstance(arguments[0], str | bytes | os.PathLike):
        name = os.fsdecode(arguments[0])
        # `os.open` has no mode, and may mean a name in another folder (`dir_fd`), as when pytest deletes old folders.
        elsewhere = event == "open" and arguments[1] is None and not os.path.isabs(name)
        if not elsewhere and is_state(path := Path(os.path.abspath(name))):
            opened.append(path)


sys.addaudithook(_watch)


@pytest.fixture(autouse=True)
def _work_tree_is_not_read() -> Iterator[None]:
    """Fail a test that depends on the user's parameters, data or results; see `tests/helpers/params.py`."""
    yield
    found = sorted(set(map(str, opened)))
    opened.clear()
    assert not found, f"a test, its fixtures or its module read the state of the work tree: {found}"


@pytest.fixture(scope="session")
def shared() -> Path:
    """Reference material beside a developer's checkout: published splits and videos."""
    folder = ROOT.parent / "shared"
    if not folder.is_dir():
        pytest.skip("the reference material (published splits, videos) is not beside this checkout")
    return folder


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder, as stages have it."""
    monkeypatch.chdir(tmp_path)
    return tmp_path
