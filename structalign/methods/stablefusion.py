"""StableFusion, the CTVR benchmark's own method (METHOD.md, section 7): adapters and a cross-task loss."""

from __future__ import annotations

from typing import ClassVar

import torch

from structalign.config.schema import Config
from structalign.losses.contrastive import cross_task, pool_frames
from structalign.methods.base import AdapterMethod, Batch, Term, Terms, TrainingFeatures
from structalign.model.retriever import Retriever
from structalign.retrieval.gallery import TaskGallery


class StableFusion(AdapterMethod):
    """Frame fusion and text experts, contrasted on global features, against stored galleries as well."""

    needs_galleries: ClassVar[bool] = True

    def __init__(self, config: Config, retriever: Retriever, num_categories: int) -> None:
        super().__init__(config, retriever, num_categories)
        self.trained_on = torch.empty(0, retriever.embed_dim)  # [S,D]: training videos of earlier tasks
        self.stored: torch.Tensor | None = None

    def start_galleries(self, galleries: list[TaskGallery]) -> None:
        """Keep the global features (S, D) of earlier tasks' videos as further negatives."""
        pooled = self.trained_on
        if self.config.loss.cross_task_source == "gallery" and galleries:
            pooled = torch.cat([pool_frames(gallery.frames) for gallery in galleries])
        wanted = len(pooled) > 0 and self.config.loss.cross_task_weight > 0
        self.stored = pooled.to(self.retriever.device) if wanted else None

    def needs_features(self, task: int, num_tasks: int) -> bool:
        """Features of training videos serve the cross-task term of later tasks, if they are its source."""
        loss = self.config.loss
        return task < num_tasks and loss.cross_task_source == "train" and loss.cross_task_weight > 0

    def finish_task(self, features: TrainingFeatures | None) -> None:
        """Keep the finished task's training videos, as the model sees them now."""
        if features is not None:
            self.trained_on = torch.cat([self.trained_on, features.video.cpu()])

    def state(self) -> dict[str, torch.Tensor]:
        """Features of training videos, if they are the source."""
        return {"trained_on": self.trained_on} if len(self.trained_on) else {}

    def load_state(self, state: dict[str, torch.Tensor]) -> None:
        """Restore features of training videos from `state()`."""
        self.trained_on = state.get("trained_on", self.trained_on)

    def loss(self, batch: Batch) -> Terms:
        """Compute scl, and cross if there are stored galleries, for a batch of B pairs."""
        scl, text, video = self.contrast(batch)
        if self.stored is None:
            return {"scl": Term(scl)}
        loss = self.config.loss
        cross = cross_task(text, video, self.stored, self.retriever.log_scale, loss.same_video, batch.video)
        return {"scl": Term(scl, 1 - loss.cross_task_weight), "cross": Term(cross, loss.cross_task_weight)}
