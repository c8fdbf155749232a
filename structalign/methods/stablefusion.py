"""StableFusion, the CTVR benchmark's own method (METHOD.md, section 7): adapters and a cross-task loss."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize

from structalign.losses.contrastive import contrastive, cross_task
from structalign.methods.base import AdapterMethod, Batch, joint_text, joint_video
from structalign.retrieval.gallery import TaskGallery


class StableFusion(AdapterMethod):
    """Frame fusion and text experts, contrasted on global features, against stored galleries as well."""

    def start_galleries(self, galleries: list[TaskGallery]) -> None:
        """Keep the global features (S, D) of all earlier galleries as further negatives."""
        self.stored = None
        if galleries and self.config.loss.cross_task_weight > 0:
            pooled = [normalize(gallery.frames.mean(dim=1), dim=-1) for gallery in galleries]
            self.stored = torch.cat(pooled).to(self.retriever.device)

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Compute scl, cross and their weighted total for a batch of B pairs."""
        _, _, text = joint_text(self.retriever, batch.tokens, self.task)  # [B,D]
        _, video = joint_video(self.retriever, batch)  # [B,D]
        scl = contrastive(text, video, self.retriever.log_scale, self.config.loss.same_video, batch.video)
        if self.stored is None:
            return {"scl": scl, "total": scl}
        weights = self.config.loss
        share = weights.cross_task_weight
        cross = cross_task(text, video, self.stored, self.retriever.log_scale, weights.same_video, batch.video)
        return {"scl": scl, "cross": cross, "total": (1 - share) * scl + share * cross}
