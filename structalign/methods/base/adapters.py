"""Methods that train adapters and leave CLIP frozen."""

from __future__ import annotations

from typing import Any

from structalign.methods.base.method import Method


class AdapterMethod(Method):
    """A method that trains adapters, with separate rates for attention and for scalars."""

    def parameter_groups(self) -> list[dict[str, Any]]:
        """One rate in task 1; from task 2 on, one for attention adapters and one for scalars and prototypes."""
        attention, scalars = self.retriever.parameter_groups()
        first = self.task == 1
        groups = (
            ("attention", attention, "lr_first" if first else "lr_later"),
            ("scalars", scalars, "lr_first" if first else "lr_scalars"),
        )
        return [
            {"name": name, "params": weights, "lr": getattr(self.config.train, key), "key": key}
            for name, weights, key in groups
            if weights
        ]
