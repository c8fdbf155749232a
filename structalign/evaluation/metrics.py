"""Ranks and recall (METHOD.md, section 5); `metric_table` lists all metrics, `forgetting` has those of A."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from structalign.evaluation.forgetting import backward_forgetting, backward_transfer, max_forgetting
from structalign.util.errors import UserError

__all__ = [
    "backward_forgetting",
    "backward_transfer",
    "max_forgetting",
    "ranks",
    "recall",
    "recall_from_ranks",
    "video_to_text_ranks",
]

CUTOFFS = (1, 5, 10)

_BLOCK = 256
"""Number of queries (or videos) whose scores are compared at a time."""


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
        Number of columns that score at least as high as the target, the target included. Rows are independent,
        so a large matrix can be ranked a few queries at a time.

    Raises
    ------
    UserError
        If a score is NaN, or a target is not a column.
    """
    similarity, target = _checked(similarity, target)
    own = similarity.gather(1, target[:, None])  # [Q,1]
    # A block of queries at a time, because summing booleans first converts all of them to integers.
    blocks = zip(similarity.split(_BLOCK), own.split(_BLOCK), strict=True)
    return torch.cat([(scores >= best).sum(dim=1) for scores, best in blocks])


def _checked(similarity: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Scores (Q, V) and targets (Q,) as checked tensors; arrays and lists are accepted."""
    similarity = torch.as_tensor(similarity)
    target = torch.as_tensor(target, device=similarity.device).long()
    broken = torch.isnan(similarity)
    if broken.any():
        query, video = broken.nonzero()[0].tolist()
        raise UserError(
            f"scores: NaN for query {query} and gallery video {video} ({int(broken.sum())} in all): "
            "the model's weights or features are broken; train again at a lower train.lr_first, lr_later or lr_clip"
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
    """Recall at 1, 5 and 10 in percent, median and mean rank, from ranks (Q,) that count from 1.

    Raises
    ------
    UserError
        If there are no ranks.
    """
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


def video_to_text_ranks(similarity: Tensor, target: Tensor) -> Tensor:
    """Rank of each video's best caption among the captions of all other videos, from 1.

    The rank is 1 + the number of other videos' captions that score at least as high as the video's best own one:
    captions of one video do not compete with each other, even if two of them are equal.

    Parameters
    ----------
    similarity : Tensor, shape (Q, V)
        Only scores within a column are compared, so they must not be standardised over videos.
    target : Tensor, shape (Q,), int64
        The video that each text describes. Videos without a text are left out.

    Returns
    -------
    Tensor, shape (number of videos with a text,), int64
    """
    similarity, target = _checked(similarity, target)
    rank = [target[:0]]
    for videos in target.unique().split(_BLOCK):
        columns = similarity[:, videos]  # [Q,v]
        own = target[:, None] == videos  # [Q,v]
        best = columns.masked_fill(~own, -torch.inf).amax(dim=0)  # [v]
        rank.append(1 + ((columns >= best) & ~own).sum(dim=0))
    return torch.cat(rank)
