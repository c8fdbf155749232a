"""Dual prompts: general ones that all tasks share, and expert ones of each task (METHOD.md, section 7)."""

from __future__ import annotations

from structalign.methods.base import AlignedMethod


class DualPrompts(AlignedMethod):
    """Prompts train and CLIP is frozen; with loss weights above 0, StructAlign's terms join its contrastive loss."""
