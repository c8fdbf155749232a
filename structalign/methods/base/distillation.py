"""Methods that train all of CLIP and imitate a teacher: the similarities of its videos with its texts."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize

from structalign.losses.contrastive import distillation, scaled_cosines
from structalign.methods.base.batch import Batch, joint_text, joint_video
from structalign.methods.base.full import FullMethod
from structalign.methods.base.method import Teacher
from structalign.methods.base.terms import Term, Terms
from structalign.model.retriever import Retriever


class DistillationMethod(FullMethod):
    """Contrastive loss plus distillation from the teacher that `teacher_kind` asks for."""

    def teacher_kind(self, task: int) -> Teacher | None:
        """The previous model teaches from task 2 on."""
        return "previous" if task > 1 and self.config.loss.distill_weight > 0 else None

    def reference_tokens(self, batch: Batch) -> Tensor:
        """Texts (B, L) that the teacher answers for: here the batch's own captions."""
        return batch.tokens

    def loss(self, batch: Batch) -> Terms:
        """Compute scl, and distill if there is a teacher, for a batch of B pairs."""
        scl, _, video = self.contrast(batch)
        if self.teacher is None:
            return {"scl": Term(scl)}
        distill = self._distill(self.teacher, batch, video)
        return {"scl": Term(scl), "distill": Term(distill, self.config.loss.distill_weight)}

    def _distill(self, teacher: Retriever, batch: Batch, video: Tensor) -> Tensor:
        """Current videos meet the teacher's texts as the teacher's own videos do."""
        with torch.inference_mode():
            _, _, text = joint_text(teacher, self.reference_tokens(batch), max(1, self.task - 1))
            _, taught = joint_video(teacher, batch)
        text, taught = text.clone(), taught.clone()  # because autograd does not save inference tensors
        text = normalize(text, dim=-1)  # [B,D]
        student = scaled_cosines(normalize(video, dim=-1), text, self.retriever.log_scale)  # [B,B]
        target = scaled_cosines(normalize(taught, dim=-1), text, self.retriever.log_scale)  # [B,B]
        return distillation(student, target, self.config.loss.temperature)
