"""What every refusal of bad input has in common."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from structalign.util.errors import UserError


@contextmanager
def refused(match: str, leaves: Collection[str] = ()) -> Iterator[None]:
    """The block has to end with a `UserError` of one line that matches, and to write nothing but `leaves`."""
    before = _files()
    with pytest.raises(UserError, match=match) as caught:
        yield
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 2000
    assert _files() - before <= set(leaves)


def _files() -> set[str]:
    """Files below the working folder."""
    return {str(path) for path in Path().rglob("*") if path.is_file()}
