"""Clips that an unfinished stage `frames` decoded, kept until it succeeds: it may take hours, and stop at one clip.

A small archive for each clip, named by everything that its frames follow from.
"""

from __future__ import annotations

import hashlib
import json
import zipfile
from contextlib import suppress
from pathlib import Path
from typing import Any

from structalign.util.files import atomic_write

Packed = tuple[list[bytes], tuple[int, ...], set[str]]
"""A clip's frames as JPEG, their height and width, and what was changed or is doubtful."""


def kept_file(folder: Path, *causes: Any) -> Path:
    """Name the file that keeps what these values, told apart by their `repr`, lead to."""
    return folder / f"{hashlib.sha256(repr(causes).encode()).hexdigest()[:32]}.zip"


def load_packed(path: Path) -> Packed | None:
    """Read a clip that was kept; None if there is none, or it was cut off when the machine stopped."""
    try:
        with zipfile.ZipFile(path) as archive:
            about = json.loads(archive.comment)
            return [archive.read(name) for name in archive.namelist()], tuple(about["size"]), set(about["notes"])
    except (OSError, ValueError, KeyError, zipfile.BadZipFile):
        return None


def save_packed(path: Path, packed: Packed) -> None:
    """Keep a clip if there is room: without it, nothing is lost but time."""
    images, size, notes = packed
    with suppress(OSError), atomic_write(path) as stream, zipfile.ZipFile(stream, "w") as archive:
        for number, image in enumerate(images):
            archive.writestr(f"{number:03d}.jpg", image)
        archive.comment = json.dumps({"size": size, "notes": sorted(notes)}).encode()
