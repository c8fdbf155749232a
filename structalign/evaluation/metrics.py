"""Recall and forgetting (METHOD.md, section 5), each by its name in the field."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from structalign.util.errors import UserError

CUTOFFS = (1, 5, 10)

_BLOCK = 256
"""Queries, or videos, whose scores are compared at a time."""


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
        How many columns score at least as high as the target, itself included. Rows do not depend on each
        other, so a large matrix may come a few queries at a time.

    Raises
    ------
    UserError
        Where a score is not a number, so that no rank can be given, or a target is no column.
    """
    similarity, target = _checked(similarity, target)
    own = similarity.gather(1, target[:, None])  # [Q,1]
    # A block of queries at a time, because a sum over booleans makes integers of all of them first.
    blocks = zip(similarity.split(_BLOCK), own.split(_BLOCK), strict=True)
    return torch.cat([(scores >= best).sum(dim=1) for scores, best in blocks])


def _checked(similarity: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Scores (Q, V) and targets (Q,) as tensors (arrays are taken as well), fit to be ranked."""
    similarity = torch.as_tensor(similarity)
    target = torch.as_tensor(target, device=similarity.device).long()
    broken = torch.isnan(similarity)
    if broken.any():
        query, video = broken.nonzero()[0].tolist()
        raise UserError(
            f"scores: NaN for query {query} and gallery video {video} ({int(broken.sum())} in all): "
            "a feature or a weight is broken"
        )
    queries, videos = similarity.shape
    if target.shape != (queries,):
        raise UserError(f"targets: expected one for each of {queries} queries, found shape {tuple(target.shape)}")
    outside = (target < 0) | (target >= videos)
    if outside.any():
        query = int(outside.nonzero()[0])
        raise UserError(f"target of query {query} is {int(target[query])}: must be 0 to {videos - 1}")
    return similarity, target


def recall_from_ranks(rank: Tensor) -> dict[str, float]:
    """Recall at 1, 5 and 10 in percent, median and mean rank, from ranks (Q,) that count from 1."""
    values = torch.as_tensor(rank).double().cpu().numpy()
    if not values.size:
        raise UserError("recall: there are no queries to rank")
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

    That rank is 1 + the number of other videos' captions that score at least as high: captions of one video never
    stand in each other's way, even where two of them are the same.

    Parameters
    ----------
    similarity : Tensor, shape (Q, V)
        Columns are the queries here, and only scores within a column are compared: none that was standardised over
        videos will do.
    target : Tensor, shape (Q,), int64
        The video that each text describes. Videos without a text are left out.
    """
    similarity, target = _checked(similarity, target)
    rank = []
    for videos in target.unique().split(_BLOCK):
        columns = similarity[:, videos]  # [Q,v]
        own = target[:, None] == videos  # [Q,v]
        best = columns.masked_fill(~own, -torch.inf).amax(dim=0)  # [v]
        rank.append(1 + ((columns >= best) & ~own).sum(dim=0))
    return recall_from_ranks(torch.cat(rank) if rank else target)


def backward_forgetting(accuracy: Sequence[Sequence[float]], weights: Sequence[float] | None = None) -> float:
    """BWF after the last task: how much earlier tasks lost since they were learnt.

    Sum over j < t of c_j (A[j, j] - A[t, j]) / sum of c_j over j < t (METHOD.md, section 5). Lower is better;
    negative means backward gain. After a single task it is 0.

    Parameters
    ----------
    accuracy : sequence of rows
        A[t][j]: accuracy on task j after task t. Only the lower triangle is used, so rows may be ragged.
    weights : sequence of float, optional
        c_j, the number of categories of each task, at least t - 1 of them; equal by default.

    Raises
    ------
    UserError
        Where there are no rows, a row is too short, a number in use is not finite, or the weights do not fit.
    """
    rows = _lower_triangle(accuracy)
    return _weighted([rows[j][j] - last for j, last in enumerate(rows[-1][:-1])], weights)


def backward_transfer(accuracy: Sequence[Sequence[float]], weights: Sequence[float] | None = None) -> float:
    """Backward transfer, BWT: how much earlier tasks gained since they were learnt. Higher is better.

    The mean over j < t of A[t, j] - A[j, j] (Lopez-Paz and Ranzato, 2017): mammoth's `backward_transfer` and
    avalanche's `StreamBWT`. What avalanche calls forgetting is its negative, which is `backward_forgetting` with
    equal weights. Parameters and errors are as there.
    """
    return 0.0 - backward_forgetting(accuracy, weights)


def max_forgetting(accuracy: Sequence[Sequence[float]], weights: Sequence[float] | None = None) -> float:
    """Max-based forgetting: how far each earlier task is below the best it ever was. Lower is better, at least 0.

    The mean over j < t of max over l in j..t of A[l, j], minus A[t, j]: mammoth's `forgetting`. A task that is at
    its best now counts 0. (In Chaudhry et al., 2018, l ends at t - 1, so that such a task counts as a gain.)
    Parameters and errors are as in `backward_forgetting`.
    """
    rows = _lower_triangle(accuracy)
    return _weighted([max(row[j] for row in rows[j:]) - last for j, last in enumerate(rows[-1][:-1])], weights)


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
