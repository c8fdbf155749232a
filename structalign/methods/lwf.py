"""Learning without forgetting: fine-tuning that also imitates the previous model (METHOD.md, section 7)."""

from __future__ import annotations

from structalign.methods.base import DistillationMethod, Teacher


class LwF(DistillationMethod):
    """Contrastive loss plus distillation from the model as the previous task left it."""

    def teacher_kind(self, task: int) -> Teacher | None:
        """There is something to remember from task 2 on."""
        return "previous" if task > 1 and self.config.loss.distill_weight > 0 else None
