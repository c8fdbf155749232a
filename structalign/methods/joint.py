"""Joint training, the upper bound: all tasks' data at once, with nothing to forget (METHOD.md, section 7)."""

from __future__ import annotations

from typing import ClassVar

from structalign.methods.base import FullMethod


class Joint(FullMethod):
    """All of CLIP trains on all tasks in task 1; later tasks only grow the gallery."""

    needs_all_tasks: ClassVar[bool] = True
