"""Fixtures for tests of data sets."""

from __future__ import annotations

import pytest


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let published splits be as small as those of `tests/helpers/raw_data.py`."""
    sizes = {"msrvtt": (8, 4), "actnet": (8, 4)}
    monkeypatch.setattr("structalign.data.datasets.published_splits.PUBLISHED_SIZES", sizes)
