"""X-Pool (CVPR 2022): fine-tuning with a pooling of frames that each text steers (METHOD.md, section 7)."""

from __future__ import annotations

import torch
from torch import Tensor

from structalign.losses.contrastive import symmetric
from structalign.methods.base import Batch, FullMethod, Term, Terms, joint_text, joint_video

DROPOUT = 0.3
"""On the residual linear map of the pooling."""


class XPool(FullMethod):
    """All of CLIP and the pooling train with the symmetric contrastive loss."""

    def start_epoch(self, generator: torch.Generator) -> None:
        """Draw dropout from the epoch's generator, alike on all devices: each pools the whole batch."""
        self.generator = generator

    def loss(self, batch: Batch) -> Terms:
        """Contrast texts with what each of them makes of the batch's videos."""
        _, _, text = joint_text(self.retriever, batch.tokens, self.task)  # [B,D]
        frames, _ = joint_video(self.retriever, batch)  # [B,N,D]
        pooling = self.retriever.text_pooling
        assert pooling is not None  # the schema sees to it
        cosines = pooling.cosines(text.float(), frames.float(), self._keep(text))  # [B,B]
        logits = cosines * self.retriever.log_scale.exp()
        return {"scl": Term(symmetric(logits, self.config.loss.same_video, batch.video))}

    def _keep(self, text: Tensor) -> Tensor:
        size = (len(text), *text.shape)  # [B,B,D]
        return (torch.rand(size, generator=self.generator) >= DROPOUT).to(text.device) / (1 - DROPOUT)
