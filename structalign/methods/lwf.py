"""Learning without forgetting: fine-tuning that also imitates the previous model (METHOD.md, section 7)."""

from __future__ import annotations

from structalign.methods.base import DistillationMethod


class LwF(DistillationMethod):
    """Contrastive loss plus distillation from the model as the previous task left it."""
