"""CLIP-ViP (ICLR 2023): fine-tuning with proxy tokens that see all frames of a video (METHOD.md, section 7)."""

from __future__ import annotations

from structalign.methods.base import FullMethod


class ClipViP(FullMethod):
    """All of CLIP and the video proxies train on each task with the contrastive loss."""
