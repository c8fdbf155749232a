"""MoE-Adapters (CVPR 2024): frozen CLIP with routed adapter experts in both towers (METHOD.md, section 7)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from structalign.methods.base import AdapterMethod, Batch, Term, Terms, TrainingFeatures
from structalign.util import distributed


class MoEAdapter(AdapterMethod):
    """Adapter experts, contrasted on global features; those that a task used most keep what they learnt."""

    def start_epoch(self, generator: torch.Generator) -> None:
        """Note the counts that the epoch starts from."""
        self.counted = {name: experts.usage.clone() for name, experts in self.retriever.routed_experts().items()}

    def finish_epoch(self) -> None:
        """Add up what all devices counted in the epoch."""
        for name, experts in self.retriever.routed_experts().items():
            experts.usage.copy_(self.counted[name] + distributed.all_reduce_sum(experts.usage - self.counted[name]))

    def loss(self, batch: Batch) -> Terms:
        """Contrast the batch's global features."""
        scl, _, _ = self.contrast(batch)
        return {"scl": Term(scl)}

    def parameter_groups(self) -> list[dict[str, Any]]:
        """The experts without weight decay: without a gradient, a frozen expert then keeps its very bits."""
        groups = super().parameter_groups()
        return [{**group, "weight_decay": 0.0} if group["name"] == "attention" else group for group in groups]

    def trained_parameters(self) -> int:
        """Those of the retriever, less the frozen experts'."""
        return super().trained_parameters() - sum(
            experts.frozen_parameters() for experts in self.retriever.routed_experts().values()
        )

    def finish_task(self, features: TrainingFeatures | None) -> None:
        """Freeze the experts that the task used most."""
        if self.config.train.freeze_experts:
            for experts in self.retriever.routed_experts().values():
                experts.freeze_most_used()

    def training_state(self) -> dict[str, Any]:
        """How often each expert was picked so far, by block."""
        return {name: experts.usage for name, experts in self.retriever.routed_experts().items()}

    def load_training_state(self, state: dict[str, Any]) -> None:
        """Restore the counts from `training_state()`."""
        for name, experts in self.retriever.routed_experts().items():
            experts.usage.copy_(state[name])

    def state(self) -> dict[str, Tensor]:
        """Which experts are frozen, by block."""
        return {f"frozen.{name}": experts.frozen for name, experts in self.retriever.routed_experts().items()}

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Restore which experts are frozen; before the first task ends, none is."""
        for name, experts in self.retriever.routed_experts().items():
            if f"frozen.{name}" in state:
                experts.frozen.copy_(state[f"frozen.{name}"])
