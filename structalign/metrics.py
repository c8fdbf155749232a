"""Recall and forgetting (METHOD.md, section 5), each by its name in the field."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

CUTOFFS = (1, 5, 10)


def ranks(similarity: Tensor, target: Tensor) -> Tensor:
    """Rank of each query's target in its row, from 1; ties count against the query.

    Parameters
    ----------
    similarity : Tensor, shape (Q, V)
        Higher is better.
    target : Tensor, shape (Q,), int64
        The correct column of each row.

    Returns
    -------
    Tensor, shape (Q,), int64
        How many columns score at least as high as the target, itself included.

    Raises
    ------
    ValueError
        Where a score is not a number: no rank can be given.
    """
    if torch.isnan(similarity).any():
        raise ValueError("scores hold NaN; a feature or a weight is broken")
    own = similarity.gather(1, target[:, None])  # [Q,1]
    return (similarity >= own).sum(dim=1)


def recall_from_ranks(rank: Tensor) -> dict[str, float]:
    """Recall at 1, 5 and 10 in percent, median and mean rank, from ranks (Q,) that count from 1."""
    values = rank.double().numpy()
    recalls = {f"r{cutoff}": float((values <= cutoff).mean() * 100) for cutoff in CUTOFFS}
    return {**recalls, "medr": float(np.median(values)), "meanr": float(values.mean())}


def recall(similarity: Tensor, target: Tensor) -> dict[str, float]:
    """Recall of queries: `ranks`, then `recall_from_ranks`.

    Parameters
    ----------
    similarity : Tensor, shape (Q, V)
    target : Tensor, shape (Q,), int64

    Returns
    -------
    dict
        r1, r5, r10 in percent; medr and meanr, ranks from 1.
    """
    return recall_from_ranks(ranks(similarity, target))


def video_to_text_recall(similarity: Tensor, target: Tensor) -> dict[str, float]:
    """Recall with videos as queries: a video is found where the best of its captions ranks.

    Parameters
    ----------
    similarity : Tensor, shape (Q, V)
        Text-to-video scores; columns are the queries here.
    target : Tensor, shape (Q,), int64
        The video that each text describes. Videos without a text are left out.
    """
    best = torch.full((similarity.shape[1],), torch.inf, dtype=torch.float64)
    for start in range(0, len(target), 256):  # texts compared at a time, so that memory stays bounded
        rows = slice(start, start + 256)
        columns = similarity[:, target[rows]]  # [Q,b]
        own = similarity[rows].gather(1, target[rows][:, None]).T  # [1,b]
        rank = (columns >= own).sum(dim=0).double()  # [b]
        best.scatter_reduce_(0, target[rows], rank, "amin")
    return recall_from_ranks(best[best.isfinite()])


def backward_forgetting(accuracy: Sequence[Sequence[float]], weights: Sequence[float] | None = None) -> float:
    """BWF after the last task: how much earlier tasks lost since they were learnt.

    Sum over j < t of c_j (A[j, j] - A[t, j]) / sum of c_j over j < t (METHOD.md, section 5). Lower is better;
    negative means backward gain. After a single task it is 0.

    Parameters
    ----------
    accuracy : sequence of rows
        A[t][j]: accuracy on task j after task t. Only the lower triangle is used, so rows may be ragged.
    weights : sequence of float, optional
        c_j, the number of categories of each task; equal by default.
    """
    return _weighted([accuracy[j][j] - accuracy[-1][j] for j in range(len(accuracy) - 1)], weights)


def backward_transfer(accuracy: Sequence[Sequence[float]]) -> float:
    """BWT (Lopez-Paz and Ranzato, 2017): mean over j < t of A[t, j] - A[j, j]. Higher is better."""
    return -backward_forgetting(accuracy)


def max_forgetting(accuracy: Sequence[Sequence[float]]) -> float:
    """Forgetting (Chaudhry et al., 2018): loss since the best accuracy a task ever had, not since it was learnt.

    The mean over j < t of max over l in j..t-1 of A[l, j], minus A[t, j]. Lower is better.
    """
    last = len(accuracy) - 1
    return _weighted(
        [max(accuracy[t][j] for t in range(j, last)) - accuracy[-1][j] for j in range(last)], None
    )


def _weighted(losses: list[float], weights: Sequence[float] | None) -> float:
    if not losses:
        return 0.0
    return float(np.average(losses, weights=None if weights is None else list(weights)[: len(losses)]))
