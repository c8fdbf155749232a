"""StructAlign: contrastive learning held together by an equiangular tight frame and by relation preservation.

METHOD.md, section 4. What it trains and adds to the loss is in `methods/base/aligned.py`, which other adapters can be
trained with as well.
"""

from __future__ import annotations

from structalign.methods.base import AlignedMethod


class StructAlign(AlignedMethod):
    """The method of the paper; a loss weight of 0 drops that term and its cost."""
