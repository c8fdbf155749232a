"""Which methods and data sets there are: each is a file in its folder, so that a new one needs no list."""

from __future__ import annotations

from difflib import get_close_matches
from pathlib import Path
from typing import Any

LIBRARY = Path(__file__).resolve().parents[1]

SHARED = ("__init__", "common", "published_splits")
"""Files in such folders that several methods or data sets share."""


def module_names(folder: str) -> list[str]:
    """List the modules in a folder of the library, such as `methods`, by name; none of them is imported."""
    return sorted(path.stem for path in (LIBRARY / folder).glob("*.py") if path.stem not in SHARED)


def one_of(names: list[str], name: Any) -> str:
    """Return `name` if it is one of `names`.

    Raises
    ------
    ValueError
        If it is not; the message lists the names, the most similar one first.
    """
    if name not in names:
        similar = get_close_matches(str(name), names, n=1)
        raise ValueError(f"must be one of {', '.join(similar + [other for other in names if other not in similar])}")
    return name
