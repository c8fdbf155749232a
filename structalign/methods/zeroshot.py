"""Zero-shot CLIP: nothing trains; the lower bound that every method should beat (METHOD.md, section 7)."""

from __future__ import annotations

from typing import ClassVar

from structalign.methods.base import Method


class ZeroShot(Method):
    """Untouched CLIP."""

    trains: ClassVar[bool] = False
