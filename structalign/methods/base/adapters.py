"""Methods that train adapters and leave CLIP frozen."""

from __future__ import annotations

from typing import Any

from structalign.methods.base.method import Method


class AdapterMethod(Method):
    """A method that trains adapters, with separate rates for attention and for scalars."""

    def parameter_groups(self) -> list[dict[str, Any]]:
        """One rate in task 1; from task 2 on, one for attention adapters and one for scalars and prototypes."""
        train = self.config.train
        attention, scalars = self.retriever.parameter_groups()
        first = self.task == 1
        groups = [
            {"name": "attention", "params": attention, "lr": train.lr_first if first else train.lr_later},
            {"name": "scalars", "params": scalars, "lr": train.lr_first if first else train.lr_scalars},
        ]
        return [group for group in groups if group["params"]]
