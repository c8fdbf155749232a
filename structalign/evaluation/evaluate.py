"""Rank the galleries of all seen tasks for the queries of all seen tasks (METHOD.md, sections 3 and 5)."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from structalign.config.schema import EvaluateConfig, SimilarityConfig
from structalign.evaluation import metrics
from structalign.model.retriever import Retriever
from structalign.retrieval.gallery import TaskGallery
from structalign.retrieval.ranker import Ranker


@dataclass
class Ranking:
    """Scores of all queries against all gallery videos, after some task.

    Attributes
    ----------
    scores : Tensor, shape (Q, V)
        Rank videos for a query; higher is better. Queries and videos are those of the galleries, one task after the
        other.
    video_scores : Tensor, shape (Q, V)
        Rank queries for a video; higher is better.
    target : Tensor, shape (Q,)
        Column of each query's own video.
    query_task : Tensor, shape (Q,)
    video_task : Tensor, shape (V,)
        The task that each query and video belongs to, from 1.
    """

    scores: Tensor
    video_scores: Tensor
    target: Tensor
    query_task: Tensor
    video_task: Tensor


def rank(
    retriever: Retriever,
    galleries: list[TaskGallery],
    similarity: SimilarityConfig,
    evaluate: EvaluateConfig | None = None,
) -> Ranking:
    """Score every query of the galleries against every stored video.

    Parameters
    ----------
    retriever : Retriever
        The current model; it encodes the queries only.
    galleries : list of TaskGallery
        Of tasks 1..t.
    similarity : SimilarityConfig
    evaluate : EvaluateConfig, optional
        `rerank` and `index`; by default the ranking is full.
    """
    queries = [caption for gallery in galleries for caption in gallery.queries]
    scores, video_scores = Ranker(retriever, galleries, similarity, evaluate).scores_both_ways(queries)
    return Ranking(
        scores=scores,
        video_scores=video_scores,
        target=_targets(galleries),
        query_task=_tasks(galleries, [len(gallery.queries) for gallery in galleries]),
        video_task=_tasks(galleries, [len(gallery.clips) for gallery in galleries]),
    )


def _targets(galleries: list[TaskGallery]) -> Tensor:
    """Column (Q,) of each query's own video."""
    offsets = accumulate((len(gallery.clips) for gallery in galleries[:-1]), initial=0)
    return torch.cat([torch.tensor(g.target, dtype=torch.long) + o for g, o in zip(galleries, offsets, strict=True)])


def _tasks(galleries: list[TaskGallery], sizes: list[int]) -> Tensor:
    return torch.tensor([gallery.task for gallery in galleries]).repeat_interleave(torch.tensor(sizes))


def recall_at_1(retriever: Retriever, galleries: list[TaskGallery], similarity: SimilarityConfig) -> float:
    """R@1 (percent) of all queries of the galleries among all their videos, ranked in full."""
    queries = [caption for gallery in galleries for caption in gallery.queries]
    scores = Ranker(retriever, galleries, similarity).scores(queries)
    return metrics.recall(scores, _targets(galleries))["r1"]


def recall_within_task(ranking: Ranking, task: int) -> dict[str, float]:
    """Recall of one task's queries within the task's own gallery; its r1 is A[t, task] (METHOD.md, section 5)."""
    rows = (ranking.query_task == task).nonzero().squeeze(1)
    columns = (ranking.video_task == task).nonzero().squeeze(1)
    scores = ranking.scores[rows[:, None], columns]  # [q,v]
    return metrics.recall(scores, ranking.target[rows] - columns[0])
