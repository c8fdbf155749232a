"""The state of the work tree, which no test may read, and a copy of the checkout without it."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

STATE = ("params.yaml", "dvc.lock", "data", "models", "metrics", "plots", ".cache", ".dvc/cache", ".dvc/tmp")
"""Files and folders that the user's runs write."""


def is_state(path: Path) -> bool:
    """Whether an absolute path belongs to the state of this work tree."""
    if not path.is_relative_to(ROOT) or path.name == "README.md":
        return False
    return any(path.is_relative_to(ROOT / name) for name in STATE)


def copy_checkout(folder: Path) -> None:
    """Copy what git tracks, or would track, apart from the state of the work tree."""
    listed = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    for name in subprocess.run(listed, cwd=ROOT, capture_output=True, check=True).stdout.decode().split("\0"):
        source = ROOT / name
        if source.is_file() and not is_state(source):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, folder / name)
