"""Writing files so that no reader ever sees half of one."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from structalign.util.errors import UserError

REPAIR_ADVICE = "run `structalign repair`, which deletes what is damaged, then `dvc repro`"
"""What to do about a damaged output: DVC may hold the same damaged file in its cache."""


@contextmanager
def atomic_write(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """Yield a binary stream that becomes `path` when the block succeeds: readers see all of it or nothing."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as stream:
            yield stream
        os.chmod(temporary, 0o644)  # mkstemp makes files that only their owner can read
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def atomic_write_bytes(path: str | os.PathLike[str], content: bytes) -> None:
    """`atomic_write` for content that is at hand."""
    with atomic_write(path) as stream:
        stream.write(content)


def atomic_write_text(path: str | os.PathLike[str], text: str) -> None:
    """`atomic_write` for text, always UTF-8 with Unix line ends."""
    atomic_write_bytes(path, text.encode())


def atomic_write_json(path: str | os.PathLike[str], value: Any) -> None:
    """`atomic_write_text` for a JSON value; NaN and infinity are refused because JSON has no such numbers."""
    atomic_write_text(path, json.dumps(value, indent=1, allow_nan=False, ensure_ascii=False) + "\n")


@contextmanager
def fresh_dir(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield an empty folder that replaces `path` when the block succeeds and vanishes when it fails.

    Parameters
    ----------
    path : path
        The folder to make. An existing one is replaced, but only after the block has succeeded.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    for abandoned in path.parent.glob(f".{path.name}.*"):  # of a stage that was killed: its lock is free by now
        if abandoned.is_dir():
            shutil.rmtree(abandoned, ignore_errors=True)
    temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
    try:
        yield temporary
        temporary.chmod(0o755)
        if path.exists():
            shutil.rmtree(path)
        os.replace(temporary, path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def read_json(path: str | os.PathLike[str]) -> Any:
    """Read a JSON file; a missing or damaged one is a `UserError` that names it."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: missing or damaged ({error}); {REPAIR_ADVICE}") from None


PROJECT_VARIABLE = "STRUCTALIGN_PROJECT"
"""Environment variable that tells a run in a clone where the original project is."""


def user_path(path: str | os.PathLike[str]) -> Path:
    """Resolve a path of the user's: a relative one counts from the project, in its temporary copies as well."""
    found = Path(path).expanduser()
    return found if found.is_absolute() else Path(os.path.relpath(project_folder() / found))


def project_folder() -> Path:
    """Where the project lies: here, or, in a copy that is thrown away after a run, where the copy was taken."""
    here = Path.cwd()
    if PROJECT_VARIABLE in os.environ:
        return Path(os.environ[PROJECT_VARIABLE])
    copies = [parent for parent in here.parents if here.is_relative_to(parent / ".dvc" / "tmp" / "exps")]
    return copies[0] if copies else here
