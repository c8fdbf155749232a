"""Forgetting and transfer over a sequence of tasks, from the accuracy matrix A (METHOD.md, section 5)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from structalign.util.errors import UserError


def backward_forgetting(accuracy: Sequence[Sequence[float]], weights: Sequence[float] | None = None) -> float:
    """BWF after the last task: how much earlier tasks lost since they were learnt.

    Sum over j < t of c_j (A[j, j] - A[t, j]) / sum of c_j over j < t (METHOD.md, section 5). Lower is better;
    negative means backward gain. After a single task it is 0.

    Parameters
    ----------
    accuracy : sequence of rows
        A[t][j]: accuracy on task j after task t. Only the lower triangle is read, so rows may be ragged.
    weights : sequence of float, optional
        c_j, the number of categories of each task, at least t - 1 of them; equal by default.

    Raises
    ------
    UserError
        If there are no rows, a row is too short, a number is not finite, or the weights do not fit.
    """
    rows = _lower_triangle(accuracy)
    return _weighted([rows[j][j] - last for j, last in enumerate(rows[-1][:-1])], weights)


def backward_transfer(accuracy: Sequence[Sequence[float]], weights: Sequence[float] | None = None) -> float:
    """Backward transfer, BWT: how much earlier tasks gained since they were learnt. Higher is better.

    The mean over j < t of A[t, j] - A[j, j] (Lopez-Paz and Ranzato, 2017): mammoth's `backward_transfer` and
    avalanche's `StreamBWT`. Its negative is avalanche's forgetting, and `backward_forgetting` with equal weights.
    Parameters and errors are those of `backward_forgetting`.
    """
    return 0.0 - backward_forgetting(accuracy, weights)


def max_forgetting(accuracy: Sequence[Sequence[float]], weights: Sequence[float] | None = None) -> float:
    """Max-based forgetting: how far each earlier task is below its best. Lower is better, at least 0.

    The mean over j < t of max over l in j..t of A[l, j], minus A[t, j]: mammoth's `forgetting`. A task that is at
    its best now counts 0. (In Chaudhry et al., 2018, l ends at t - 1, so such a task counts as a gain.)
    Parameters and errors are those of `backward_forgetting`.
    """
    rows = _lower_triangle(accuracy)
    return _weighted([max(row[j] for row in rows[j:]) - last for j, last in enumerate(rows[-1][:-1])], weights)


def learnt(accuracy: Sequence[Sequence[float]]) -> float:
    """Mean of A[j, j] over the tasks: accuracy on each task right after it was learnt. Higher is better.

    Also called learning accuracy (Riemer et al., 2019). Parameters and errors are those of `backward_forgetting`.
    """
    rows = _lower_triangle(accuracy)
    return float(np.mean([row[j] for j, row in enumerate(rows)]))


def forward_transfer(before: Sequence[float], untouched: Sequence[float]) -> float:
    """Forward transfer, FWT: how much learning earlier tasks helps tasks not yet learnt. Higher is better.

    The mean over j in 2..t of A[j - 1, j] - b_j (Lopez-Paz and Ranzato, 2017). After a single task it is 0.

    Parameters
    ----------
    before : sequence of float
        A[j - 1, j] for j = 2..t: accuracy on each task just before it is learnt.
    untouched : sequence of float
        b_j for j = 2..t: accuracy of the model before any training on the same tasks.
    """
    if not len(before):
        return 0.0
    return float(np.mean([seen - start for seen, start in zip(before, untouched, strict=True)]))


def _lower_triangle(accuracy: Sequence[Sequence[float]]) -> list[list[float]]:
    """Copy the first i + 1 entries of each row i, checked."""
    if not len(accuracy):
        raise UserError("A has no rows; there is one after every task")
    rows = []
    for i, row in enumerate(accuracy):
        if len(row) <= i:
            raise UserError(f"A: row {i + 1} has {len(row)} entries, one for each of {i + 1} tasks is needed")
        rows.append([float(row[j]) for j in range(i + 1)])
        if not np.isfinite(rows[-1]).all():
            raise UserError(f"A: row {i + 1} holds {rows[-1]}; all up to the diagonal must be finite numbers")
    return rows


def _weighted(losses: list[float], weights: Sequence[float] | None) -> float:
    if not losses:
        return 0.0
    shares = np.ones(len(losses)) if weights is None else np.asarray(weights, dtype=float)[: len(losses)]
    if len(shares) < len(losses) or not (np.isfinite(shares) & (shares >= 0)).all() or not shares.any():
        raise UserError(
            f"weights of tasks are {shares.tolist()}: {len(losses)} numbers of at least 0 are needed, not all 0"
        )
    return float(np.average(losses, weights=shares))
