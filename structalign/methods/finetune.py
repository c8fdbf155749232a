"""Plain fine-tuning of all of CLIP, the CLIP4Clip baseline with mean pooling (METHOD.md, section 7)."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor

from structalign.losses.contrastive import contrastive
from structalign.methods.base import Batch, Method, joint_text, joint_video


class Finetune(Method):
    """All of CLIP trains with the symmetric contrastive loss on global features."""

    trains_clip: ClassVar[bool] = True

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Put every trained weight into one group."""
        weights = [weight for weight in self.retriever.parameters() if weight.requires_grad]
        return [{"name": "clip", "params": weights, "lr": self.config.train.lr_clip}]

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Contrast the batch's global text and video features, each (B, D)."""
        _, _, text = joint_text(self.retriever, batch.tokens, self.task)
        _, video = joint_video(self.retriever, batch)
        scl = contrastive(text, video, self.retriever.log_scale, self.config.loss.same_video, batch.video)
        return {"scl": scl, "total": scl}
