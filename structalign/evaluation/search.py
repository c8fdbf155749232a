"""Query a trained model: rank the stored gallery for a text, and show which words match which frames."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize

from structalign import paths
from structalign.config.schema import Config
from structalign.data.tasks import read_task
from structalign.retrieval.encode import encode_texts
from structalign.retrieval.gallery import TaskGallery, load_galleries
from structalign.retrieval.ranker import Ranker
from structalign.training.learner import Learner
from structalign.util.checkpoint import Checkpoint
from structalign.util.errors import UserError


@dataclass(frozen=True)
class Hit:
    """One retrieved video.

    Attributes
    ----------
    rank : int
        From 1.
    clip : str
        Its id.
    score : float
        Fused score; comparable within one query only.
    category : str
    task : int
        The task it belongs to.
    caption : str
        Its first caption.
    matches : list of (str, int)
        Words of the query with the position of the frame that each matches best.
    """

    rank: int
    clip: str
    score: float
    category: str
    task: int
    caption: str
    matches: list[tuple[str, int]]


class SearchIndex:
    """The galleries as stored after a task, with the model of that time.

    Parameters
    ----------
    config : Config
        The parameters that the checkpoint was trained with.
    after : int
        The task, from 1.
    """

    def __init__(self, config: Config, after: int) -> None:
        if not 1 <= after <= config.K:
            raise UserError(f"--after {after}: tasks go from 1 to {config.K}")
        checkpoint = Checkpoint.load(paths.checkpoint(after))
        split = read_task(paths.split(after))
        self.config, self.after = config, after
        self.galleries = load_galleries(paths.gallery(after))
        self.categories = checkpoint.categories
        self.learner = Learner(config, split.num_categories, checkpoint)
        self.ranker = Ranker(self.learner.retriever, self.galleries, config.similarity, config.evaluate)

    def search(self, query: str, top: int) -> list[Hit]:
        """Rank all videos of tasks 1..after for a query; return the best `top`, or all that the index returns."""
        if not query.strip():
            raise UserError("the query is empty; say what the video should show")
        scores = self.ranker.scores([query])[0]  # [V]
        found = int((~scores.isneginf()).sum())  # an index need not return all videos
        best = scores.argsort(descending=True, stable=True)[: min(top, found)].tolist()
        stored = [self._stored(place) for place in best]
        words = {task: self._words(query, task) for task in {gallery.task for gallery, _ in stored}}
        return [
            Hit(
                rank=rank,
                clip=gallery.clips[position],
                score=float(scores[place]),
                category=self.categories[gallery.category[position]],
                task=gallery.task,
                caption=gallery.caption(position),
                matches=best_frames(words[gallery.task], gallery.frames[position]),
            )
            for rank, (place, (gallery, position)) in enumerate(zip(best, stored, strict=True), 1)
        ]

    def _stored(self, place: int) -> tuple[TaskGallery, int]:
        """Return the gallery of the video in a column of the scores, and its position in that gallery."""
        for gallery in self.galleries:
            if place < len(gallery.clips):
                break
            place -= len(gallery.clips)
        return gallery, place

    def _words(self, query: str, task: int) -> list[tuple[str, Tensor]]:
        """The pieces of a query, each with the features (l, D) of its tokens, as they are read for a task."""
        retriever = self.learner.retriever
        with torch.inference_mode():
            _, words, mask, _ = next(encode_texts(retriever, [query], task))  # [1,L,D], [1,L]
        tokens = words[0][mask[0]].float().cpu()  # [L,D]
        return [(piece, tokens[places]) for piece, places in retriever.word_pieces(query)]


def best_frames(words: list[tuple[str, Tensor]], frames: Tensor) -> list[tuple[str, int]]:
    """Find the frame, of (N, D), that each piece matches best, on average over its tokens' cosines."""
    unit = normalize(frames, dim=-1)
    return [
        (piece, int((normalize(tokens, dim=-1) @ unit.T).mean(dim=0).argmax()))  # [l,N] -> [N]
        for piece, tokens in words
    ]
