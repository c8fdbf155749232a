"""The terms of a loss: each has a name, a value and a weight; their weighted sum is what training minimises."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Term:
    """One term of the loss.

    Attributes
    ----------
    value : Tensor, shape ()
        The term itself.
    weight : float or Tensor, shape ()
        Its factor in the total; no gradient flows through it.
    """

    value: Tensor
    weight: float | Tensor = 1.0

    @property
    def weighted(self) -> Tensor:
        """What the term adds to the total."""
        return self.weight * self.value


Terms = Mapping[str, Term]


def total(terms: Terms) -> Tensor:
    """Add up the weighted terms, in their order."""
    first, *others = (term.weighted for term in terms.values())
    return sum(others, first)
