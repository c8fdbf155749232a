"""Query a trained model: rank the stored gallery for a text, and show which words match which frames."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize

from structalign import paths
from structalign.config.schema import Config
from structalign.data.clips import raw_folder, read_manifest
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
        self.captions = {clip.id: clip.captions[0] for clip in read_manifest(raw_folder(config) / "manifest.jsonl")}

    def search(self, query: str, top: int) -> list[Hit]:
        """Rank all videos of tasks 1..after for a query; return the best `top`, or all that the index returns."""
        if not query.strip():
            raise UserError("the query is empty; say what the video should show")
        scores = self.ranker.scores([query])[0]  # [V]
        found = int((~scores.isneginf()).sum())  # an index need not return all videos
        best = scores.argsort(descending=True, stable=True)[: min(top, found)].tolist()
        return [
            self._hit(query, rank, *self._stored(place), float(scores[place])) for rank, place in enumerate(best, 1)
        ]

    def _stored(self, place: int) -> tuple[TaskGallery, int]:
        """Return the gallery of the video in a column of the scores, and its position in that gallery."""
        for gallery in self.galleries:
            if place < len(gallery.clips):
                break
            place -= len(gallery.clips)
        return gallery, place

    def _hit(self, query: str, rank: int, gallery: TaskGallery, position: int, score: float) -> Hit:
        clip = gallery.clips[position]
        return Hit(
            rank=rank,
            clip=clip,
            score=score,
            category=self.categories[gallery.category[position]],
            task=gallery.task,
            caption=self.captions.get(clip, ""),
            matches=self._matches(query, gallery.task, gallery.frames[position]),
        )

    def _matches(self, query: str, task: int, frames: Tensor) -> list[tuple[str, int]]:
        """Find the frame (of N) that each piece of the query matches best, on average over its tokens."""
        retriever = self.learner.retriever
        with torch.inference_mode():
            words, mask, _ = next(encode_texts(retriever, [query], task))  # [1,L,D], [1,L]
        cosine = normalize(words[0][mask[0]].float().cpu(), dim=-1) @ normalize(frames, dim=-1).T  # [L,N]
        return [(piece, int(cosine[places].mean(dim=0).argmax())) for piece, places in retriever.word_pieces(query)]
