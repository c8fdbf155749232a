"""The simplex equiangular tight frame: its construction, and pooling towards its prototypes."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from structalign.util.errors import UserError

Construction = Literal["exact", "random"]
Projection = Tensor | nn.Linear | Callable[[Tensor], Tensor]
"""A linear map without bias: its weight (out, in), the layer, or a function of (..., in)."""


def simplex_etf(num_classes: int, dim: int, seed: int = 0, construction: Construction = "exact") -> Tensor:
    """Build C unit vectors of D numbers, every pair at cosine -1 / (C - 1) (METHOD.md, section 4).

    E = sqrt(C / (C - 1)) (I - 11^T / C) U^T with U (D, C) of orthonormal columns, from a seeded QR
    decomposition. `random` puts a Gaussian matrix in place of U and normalises, as the released code does; its
    angles are only roughly equal.

    Parameters
    ----------
    num_classes : int
        C, at least 2. It may exceed the number of categories.
    dim : int
        D, at least C - 1: fewer dimensions have no room for the ETF that `random` comes near to as well.
    seed : int
    construction : {"exact", "random"}

    Returns
    -------
    Tensor, shape (C, D), float64

    Raises
    ------
    UserError
        If C or D is too small, with both numbers.
    """
    if num_classes < 2:
        raise UserError(f"etf.num_classes = {num_classes}: a simplex needs at least 2 classes")
    if dim < num_classes - 1:
        raise UserError(
            f"{num_classes} equiangular prototypes need at least {num_classes - 1} dimensions, "
            f"and features have {dim}: lower etf.num_classes or take a wider backbone"
        )
    if construction not in ("exact", "random"):
        raise UserError(f"etf.construction = {construction!r}: must be exact or random")
    generator = torch.Generator().manual_seed(seed)
    # One more column than dimensions cannot be orthonormal; C = D + 1 goes through the ETF's own C - 1 axes.
    columns = num_classes if construction == "random" else num_classes - 1
    gaussian = torch.randn(dim, columns, generator=generator, dtype=torch.float64)
    centre = torch.eye(num_classes, dtype=torch.float64) - 1 / num_classes  # [C,C]
    if construction == "random":
        return normalize(centre @ gaussian.T, dim=-1)
    axes, upper = torch.linalg.qr(gaussian)  # [D,C-1]
    axes = axes * upper.diagonal().sign()  # QR leaves signs open; fixing them makes the ETF unique
    simplex = _simplex_coordinates(num_classes)  # [C,C-1]
    return normalize(simplex @ axes.T, dim=-1)


def _simplex_coordinates(num_classes: int) -> Tensor:
    """Coordinates (C, C - 1) of sqrt(C / (C - 1)) (I - 11^T / C) in an orthonormal basis of its own span.

    The basis is Helmert's: column k contrasts the first k classes with class k + 1.
    """
    size = torch.arange(1, num_classes, dtype=torch.float64)  # [C-1]
    row = torch.arange(num_classes, dtype=torch.float64)[:, None]  # [C,1]
    helmert = torch.where(row < size, 1.0, torch.where(row == size, -size, 0.0)) / (size * (size + 1)).sqrt()
    return (num_classes / (num_classes - 1)) ** 0.5 * helmert


def pool_to_prototype(
    features: Tensor, prototype: Tensor, projection: Projection, mask: Tensor | None = None
) -> Tensor:
    """Project words or frames and average them, each weighted by how well it answers the sample's prototype.

    Parameters
    ----------
    features : Tensor, shape (B, L, D)
        Word or frame features.
    prototype : Tensor, shape (B, D)
        Each sample's class prototype e.
    projection : Tensor of shape (D, D), nn.Linear or callable
        The linear map P, without bias.
    mask : Tensor of bool, shape (B, L), optional
        False at padding. A sample without any feature gives zeros.

    Returns
    -------
    Tensor, shape (B, D)
        sum over l of a_l P f_l, with a = softmax over l of e . P f_l.

    Notes
    -----
    Source: METHOD.md, section 4. P is linear, so it maps e once (e . P f = P^T e . f) and the average once, which
    is cheaper than mapping all L features by a factor of L / 2.
    """
    weight = projection_weight(projection, features)
    if mask is not None:
        features = features.masked_fill(~mask[..., None], 0)
    attention_logits = torch.einsum("bld,bd->bl", features, prototype @ weight)  # [B,L]
    if mask is not None:
        kept = mask | ~mask.any(1, keepdim=True)  # a softmax over nothing is no number
        attention_logits = attention_logits.masked_fill(~kept, -math.inf)
    return torch.einsum("bl,bld->bd", attention_logits.softmax(-1), features) @ weight.T


def projection_weight(projection: Projection, features: Tensor) -> Tensor:
    """Return the matrix (out, in) of a linear map without bias that acts on the last dimension of `features`."""
    if isinstance(projection, Tensor):
        return projection
    if isinstance(projection, nn.Linear):
        if projection.bias is not None:
            raise TypeError("the projections onto prototypes are linear maps without bias")
        return projection.weight
    return projection(torch.eye(features.shape[-1], dtype=features.dtype, device=features.device)).T
