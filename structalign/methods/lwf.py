"""Learning without forgetting: fine-tuning that also imitates the previous model (METHOD.md, section 7)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize

from structalign.losses.contrastive import contrastive, distillation, scaled_cosines
from structalign.methods.base import Batch, Teacher, joint_text, joint_video
from structalign.methods.finetune import Finetune
from structalign.model.retriever import Retriever


class LwF(Finetune):
    """Contrastive loss plus distillation from the model as the previous task left it."""

    def teacher_kind(self, task: int) -> Teacher | None:
        """There is something to remember from task 2 on."""
        return "previous" if task > 1 and self.config.loss.distill_weight > 0 else None

    def reference_tokens(self, batch: Batch) -> Tensor:
        """Texts (B, L) that the teacher answers for: here the batch's own captions."""
        return batch.tokens

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Compute scl, distill and their total for a batch of B pairs."""
        _, _, text = joint_text(self.retriever, batch.tokens, self.task)  # [B,D]
        _, video = joint_video(self.retriever, batch)  # [B,D]
        scl = contrastive(text, video, self.retriever.log_scale, self.config.loss.same_video, batch.video)
        if self.teacher is None:
            return {"scl": scl, "total": scl}
        distill = self._distill(self.teacher, batch, video)
        return {"scl": scl, "distill": distill, "total": scl + self.config.loss.distill_weight * distill}

    def _distill(self, teacher: Retriever, batch: Batch, video: Tensor) -> Tensor:
        """Current videos meet the teacher's texts as the teacher's own videos do."""
        with torch.inference_mode():
            _, _, text = joint_text(teacher, self.reference_tokens(batch), max(1, self.task - 1))
            _, taught = joint_video(teacher, batch)
        text, taught = text.clone(), taught.clone()  # what autograd may keep: inference tensors it refuses
        text = normalize(text, dim=-1)  # [B,D]
        student = scaled_cosines(normalize(video, dim=-1), text, self.retriever.log_scale)  # [B,B]
        target = scaled_cosines(normalize(taught, dim=-1), text, self.retriever.log_scale)  # [B,B]
        return distillation(student, target, self.config.loss.temperature)
