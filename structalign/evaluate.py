"""Rank the galleries of all seen tasks for the queries of all seen tasks (METHOD.md, sections 3 and 5)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize

from structalign import metrics
from structalign.config import SimilarityConfig
from structalign.encode import encode_texts
from structalign.gallery import TaskGallery
from structalign.method.similarity import fuse, word_frame_similarity
from structalign.model.retriever import Retriever


@dataclass
class Ranking:
    """Scores of all queries against all gallery videos, after some task.

    Attributes
    ----------
    scores : Tensor, shape (Q, V)
        Higher is better. Queries and videos are those of the galleries, one task after the other.
    target : Tensor, shape (Q,)
        Column of each query's own video.
    query_task : Tensor, shape (Q,)
    video_task : Tensor, shape (V,)
        The task that each query and video belongs to, from 1.
    """

    scores: Tensor
    target: Tensor
    query_task: Tensor
    video_task: Tensor


@torch.inference_mode()
def rank(retriever: Retriever, galleries: list[TaskGallery], similarity: SimilarityConfig) -> Ranking:
    """Score every query against every stored video.

    A query meets task s's gallery as it is encoded with task s's prototype; z-scores are taken over the whole
    seen gallery (METHOD.md, sections 2 and 3).

    Parameters
    ----------
    retriever : Retriever
        The current model; it encodes the queries only.
    galleries : list of TaskGallery
        Of tasks 1..t.
    similarity : SimilarityConfig
        `alpha` 0 or 1 spares the cost of the score that would not count.
    """
    queries = [caption for gallery in galleries for caption in gallery.queries]
    offsets = _offsets([len(gallery.clips) for gallery in galleries])
    return Ranking(
        scores=query_scores(retriever, queries, galleries, similarity),
        target=torch.cat(
            [torch.tensor(g.target, dtype=torch.long) + o for g, o in zip(galleries, offsets, strict=True)]
        ),
        query_task=_tasks(galleries, [len(gallery.queries) for gallery in galleries]),
        video_task=_tasks(galleries, [len(gallery.clips) for gallery in galleries]),
    )


def query_scores(
    retriever: Retriever, queries: list[str], galleries: list[TaskGallery], similarity: SimilarityConfig
) -> Tensor:
    """Fused scores (Q, V) of any queries against all videos of `galleries`, one task after the other."""
    blocks = [_gallery_scores(retriever, queries, gallery, similarity) for gallery in galleries]
    word_frame = torch.cat([block[0] for block in blocks], dim=1)  # [Q,V]
    global_ = torch.cat([block[1] for block in blocks], dim=1)  # [Q,V]
    return fuse(word_frame, global_, similarity.alpha)


def _gallery_scores(
    retriever: Retriever, queries: list[str], gallery: TaskGallery, similarity: SimilarityConfig
) -> tuple[Tensor, Tensor]:
    """Word-frame and global scores, each (Q, V), of all queries against one task's gallery."""
    frames = gallery.frames.to(next(retriever.parameters()).device)  # [V,N,D]
    videos = normalize(frames.mean(dim=1), dim=-1)  # [V,D]
    word_frame, global_ = [], []
    for words, mask, text in encode_texts(retriever, queries, gallery.task):
        cosine = normalize(text.float(), dim=-1) @ videos.T  # [q,V]
        if similarity.alpha > 0:
            scores = word_frame_similarity(frames, words.float(), mask, pooling=similarity.pooling).T  # [q,V]
        else:
            scores = torch.zeros_like(cosine)
        word_frame.append(scores.cpu())
        global_.append(cosine.cpu())
    return torch.cat(word_frame), torch.cat(global_)


def _offsets(sizes: list[int]) -> list[int]:
    return [sum(sizes[:index]) for index in range(len(sizes))]


def _tasks(galleries: list[TaskGallery], sizes: list[int]) -> Tensor:
    return torch.tensor([g.task for g, size in zip(galleries, sizes, strict=True) for _ in range(size)])


def recall_over_all(ranking: Ranking) -> dict[str, float]:
    """Recall of all queries against the galleries of all seen tasks, in percent; ranks count from 1."""
    return metrics.recall(ranking.scores, ranking.target)


def recall_within_task(ranking: Ranking, task: int) -> dict[str, float]:
    """Recall of one task's queries within the task's own gallery; its r1 is A[t, task] (METHOD.md, section 5)."""
    rows = (ranking.query_task == task).nonzero().squeeze(1)
    columns = (ranking.video_task == task).nonzero().squeeze(1)
    scores = ranking.scores[rows][:, columns]  # [q,v]
    return metrics.recall(scores, ranking.target[rows] - columns[0])


def video_to_text(ranking: Ranking) -> dict[str, float]:
    """Recall of all seen videos as queries against all captions, in percent; the best-ranked caption counts."""
    return metrics.video_to_text_recall(ranking.scores, ranking.target)
