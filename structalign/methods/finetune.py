"""Plain fine-tuning of all of CLIP, the CLIP4Clip baseline with mean pooling (METHOD.md, section 7)."""

from __future__ import annotations

from structalign.methods.base import FullMethod


class Finetune(FullMethod):
    """All of CLIP trains on each task with the contrastive loss, and nothing prevents forgetting."""
