"""Methods that train all of CLIP with the symmetric contrastive loss on global features."""

from __future__ import annotations

from typing import Any, ClassVar

from structalign.methods.base.batch import Batch
from structalign.methods.base.method import Method
from structalign.methods.base.terms import Term, Terms


class FullMethod(Method):
    """All of CLIP trains with the symmetric contrastive loss on global features."""

    trains_clip: ClassVar[bool] = True

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Put every trained weight into one group."""
        weights = [weight for weight in self.retriever.parameters() if weight.requires_grad]
        return [{"name": "clip", "params": weights, "lr": self.config.train.lr_clip, "key": "lr_clip"}]

    def loss(self, batch: Batch) -> Terms:
        """Contrast the batch's global features."""
        scl, _, _ = self.contrast(batch)
        return {"scl": Term(scl)}
