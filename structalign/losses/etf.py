"""The simplex equiangular tight frame: its construction, and how close class means come to one."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity, normalize

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
        D, at least C - 1: fewer dimensions have no room for the frame that `random` comes near to as well.
    seed : int
    construction : {"exact", "random"}

    Returns
    -------
    Tensor, shape (C, D), float64

    Raises
    ------
    UserError
        Where C or D is too small, with both numbers.
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
    # One more column than dimensions cannot be orthonormal; C = D + 1 goes through the frame's own C - 1 axes.
    columns = num_classes if construction == "random" else num_classes - 1
    gaussian = torch.randn(dim, columns, generator=generator, dtype=torch.float64)
    centre = torch.eye(num_classes, dtype=torch.float64) - 1 / num_classes  # [C,C]
    if construction == "random":
        return normalize(centre @ gaussian.T, dim=-1)
    axes, upper = torch.linalg.qr(gaussian)  # [D,C-1]
    axes = axes * upper.diagonal().sign()  # QR leaves signs open; fixing them makes the frame unique
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
    answers = torch.einsum("bld,bd->bl", features, prototype @ weight)  # [B,L]
    if mask is not None:
        kept = mask | ~mask.any(1, keepdim=True)  # a softmax over nothing is no number
        answers = answers.masked_fill(~kept, -math.inf)
    return torch.einsum("bl,bld->bd", answers.softmax(-1), features) @ weight.T


def projection_weight(projection: Projection, features: Tensor) -> Tensor:
    """Give the matrix (out, in) of a linear map without bias that acts on the last dimension of `features`."""
    if isinstance(projection, Tensor):
        return projection
    if isinstance(projection, nn.Linear):
        if projection.bias is not None:
            raise TypeError("the projections onto prototypes are linear maps without bias")
        return projection.weight
    return projection(torch.eye(features.shape[-1], dtype=features.dtype, device=features.device)).T


def ideal_gram(num_classes: int) -> Tensor:
    """Gram matrix (C, C) of a simplex ETF: 1 on the diagonal, -1 / (C - 1) elsewhere."""
    ones = torch.full((num_classes, num_classes), -1 / (num_classes - 1), dtype=torch.float64)
    return ones.fill_diagonal_(1.0)


def geometry(
    class_means: Tensor,
    *,
    center: bool = True,
    radii: Tensor | None = None,
    prototypes: Tensor | None = None,
) -> dict[str, float]:
    """Measure how near class means come to a simplex equiangular tight frame; every measure is 0 (or 1) for one.

    Parameters
    ----------
    class_means : Tensor, shape (C, D)
        Mean feature of each class.
    center : bool
        Whether to subtract the mean of the class means first, as neural-collapse measures do. Features that cluster
        around one direction, as CLIP's do, are far from any frame without it.
    radii : Tensor, shape (C,), optional
        Per-dimension standard deviation of each class, as `memory.class_statistics` gives it.
    prototypes : Tensor, shape (C, D), optional
        Each class's prototype.

    Returns
    -------
    dict of float
        With m_c the (centred) means, n_c their norms, k_cd their cosines for c != d, and G* = C/(C-1) (I - 11^T/C)
        the ideal Gram matrix:

        - `equinorm`: std(n) / mean(n), biased;
        - `equiangularity`: std(k), biased;
        - `maximal_angle`: mean |k + 1/(C-1)|;
        - `gram_max`: max |G - G*|, G the matrix of cosines, diagonal included;
        - `gram_distance`: || M M^T / ||M M^T|| - G* / ||G*|| ||, Frobenius norms, norms n_c included;
        - `within_between` (with `radii`): mean(D r_c^2) / mean ||m_c||^2, the within-class scatter as a share of
          the spread of the means: 0 once features have collapsed onto their means;
        - `alignment` (with `prototypes`): mean cosine of each class mean, not centred, with its own prototype: 1 once
          they point the same way.

    Raises
    ------
    UserError
        For fewer than 2 classes, and for means that are not finite numbers.

    Notes
    -----
    Source: the measures of neural collapse (Papyan, Han and Donoho, 2020), and of the distance between normalised
    Gram matrices (Zhu et al., 2021).
    """
    raw = class_means.detach().double()
    num_classes, dim = raw.shape
    if num_classes < 2:
        raise UserError(f"class means: {num_classes} given, the geometry of a frame needs at least 2 classes")
    if not raw.isfinite().all():
        bad = (~raw.isfinite()).any(1).nonzero().flatten().tolist()
        raise UserError(f"class means: not finite in rows {bad}; every feature must be a finite number")
    means = raw - raw.mean(0) if center else raw
    norms = means.norm(dim=-1)
    ideal = ideal_gram(num_classes).to(raw)
    unit = normalize(means, dim=-1)
    cosine, gram = unit @ unit.T, means @ means.T
    apart = cosine[~torch.eye(num_classes, dtype=torch.bool, device=raw.device)]
    measures = {
        "equinorm": norms.std(correction=0) / _not_zero(norms.mean()),
        "equiangularity": apart.std(correction=0),
        "maximal_angle": (apart - ideal[0, 1]).abs().mean(),
        "gram_max": (cosine - ideal).abs().max(),
        "gram_distance": (gram / _not_zero(gram.norm()) - ideal / ideal.norm()).norm(),
    }
    if radii is not None:
        measures["within_between"] = dim * radii.double().square().mean() / _not_zero(norms.square().mean())
    if prototypes is not None:
        measures["alignment"] = cosine_similarity(raw, prototypes.double(), dim=-1).mean()
    return {name: float(value) for name, value in measures.items()}


def _not_zero(value: Tensor) -> Tensor:
    return value.clamp(min=torch.finfo(value.dtype).tiny)
