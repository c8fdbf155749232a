"""The simplex equiangular tight frame: its construction, and how close class means come to one."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import normalize

from structalign.errors import UserError

Construction = Literal["exact", "random"]


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
        D, at least C - 1 for `exact`: fewer dimensions have no room for the frame.
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


def ideal_gram(num_classes: int) -> Tensor:
    """Gram matrix (C, C) of a simplex ETF: 1 on the diagonal, -1 / (C - 1) elsewhere."""
    ones = torch.full((num_classes, num_classes), -1 / (num_classes - 1), dtype=torch.float64)
    return ones.fill_diagonal_(1.0)


def geometry(class_means: Tensor) -> dict[str, float]:
    """Measure how close class means are to a simplex ETF, as neural collapse has it (Papyan et al., 2020).

    Parameters
    ----------
    class_means : Tensor, shape (C, D)
        One mean feature per class, C at least 2. They are centred by their own mean first.

    Returns
    -------
    dict
        equinorm : coefficient of variation of the centred means' norms; 0 when all are equal.
        equiangularity : standard deviation of the cosines between pairs; 0 when all are equal.
        maximal_angle : mean absolute difference of those cosines from -1 / (C - 1).
        gram_distance : Frobenius distance of the two Gram matrices, each divided by its own norm; 0 is ideal.
    """
    means = class_means.double()
    num_classes = len(means)
    centred = means - means.mean(dim=0)  # [C,D]
    norms = centred.norm(dim=1)
    directions = normalize(centred, dim=1)
    cosines = directions @ directions.T  # [C,C]
    pairs = cosines[~torch.eye(num_classes, dtype=torch.bool, device=cosines.device)]
    ideal = ideal_gram(num_classes).to(cosines)
    gram = centred @ centred.T
    return {
        "equinorm": float(norms.std(correction=0) / norms.mean().clamp_min(1e-12)),
        "equiangularity": float(pairs.std(correction=0)),
        "maximal_angle": float((pairs + 1 / (num_classes - 1)).abs().mean()),
        "gram_distance": float((gram / gram.norm().clamp_min(1e-12) - ideal / ideal.norm()).norm()),
    }
