"""StableFusion, the CTVR benchmark's own method (METHOD.md, section 7): adapters and a cross-task loss."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch.nn.functional import normalize

from structalign.losses.contrastive import cross_task
from structalign.methods.base import AdapterMethod, Batch, Term, Terms
from structalign.retrieval.gallery import TaskGallery


class StableFusion(AdapterMethod):
    """Frame fusion and text experts, contrasted on global features, against stored galleries as well."""

    needs_galleries: ClassVar[bool] = True

    def start_galleries(self, galleries: list[TaskGallery]) -> None:
        """Keep the global features (S, D) of all earlier galleries as further negatives."""
        self.stored = None
        if galleries and self.config.loss.cross_task_weight > 0:
            pooled = [normalize(gallery.frames.mean(dim=1), dim=-1) for gallery in galleries]
            self.stored = torch.cat(pooled).to(self.retriever.device)

    def loss(self, batch: Batch) -> Terms:
        """Compute scl, and cross if there are stored galleries, for a batch of B pairs."""
        scl, text, video = self.contrast(batch)
        if self.stored is None:
            return {"scl": Term(scl)}
        loss = self.config.loss
        cross = cross_task(text, video, self.stored, self.retriever.log_scale, loss.same_video, batch.video)
        return {"scl": Term(scl, 1 - loss.cross_task_weight), "cross": Term(cross, loss.cross_task_weight)}
