"""ZSCL: the initial CLIP as teacher, and weights averaged along the way (METHOD.md, section 7)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from structalign.methods.base import DistillationMethod, Teacher
from structalign.model.retriever import Retriever


class ZSCL(DistillationMethod):
    """Fine-tuning, distillation from the untouched CLIP, and a running average of weights.

    The reference data of the original are images and texts from elsewhere; in this harness, which has only the
    benchmark's own data, the batch serves as reference.
    """

    def teacher_kind(self, task: int) -> Teacher | None:
        """The untouched CLIP teaches in every task, the first included."""
        return "initial" if self.config.loss.distill_weight > 0 else None

    def start_task(self, task: int, teacher: Retriever | None) -> None:
        """Start the average from the weights that the task starts from."""
        super().start_task(task, teacher)
        self.count = 1
        self.average = [weight.detach().clone() for weight in self._trained()]

    def _trained(self) -> list[Tensor]:
        return [weight for weight in self.retriever.parameters() if weight.requires_grad]

    def finish_step(self) -> None:
        """Update the running average with the weights that the step led to."""
        self.count += 1
        torch._foreach_lerp_(self.average, [weight.detach() for weight in self._trained()], 1 / self.count)

    def averaged_weights(self) -> list[Tensor]:
        """The average, in place of the last weights."""
        return self.average

    def training_state(self) -> dict[str, Any]:
        """The running average and how many weights it holds."""
        return {"count": self.count, "average": self.average}

    def load_training_state(self, state: dict[str, Any]) -> None:
        """Restore the running average from `training_state()`."""
        self.count = state["count"]
        self.average = [average.to(weight) for average, weight in zip(state["average"], self._trained(), strict=True)]
