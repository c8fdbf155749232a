"""Query a trained model: rank the stored gallery for a text, and show which words match which frames."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from torch.nn.functional import normalize

from structalign import paths
from structalign.config.schema import Config
from structalign.data.tasks import read_task
from structalign.retrieval.gallery import load_galleries, locate
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


class GallerySearch:
    """The galleries as stored after a task, with the model of that time.

    Parameters
    ----------
    config : Config
        The parameters that the checkpoint was trained with.
    after : int
        The task, from 1.

    Raises
    ------
    UserError
        If there is no such task, or its checkpoint or gallery is missing or damaged.
    """

    def __init__(self, config: Config, after: int) -> None:
        if not 1 <= after <= config.K:
            raise UserError(f"task {after}: tasks go from 1 to {config.K}")
        checkpoint = Checkpoint.load(paths.checkpoint(after))
        self.galleries = load_galleries(paths.gallery(after))
        learnt = [read_task(paths.split(task)) for task in range(1, after + 1)]
        self.categories = [category.name for split in learnt for category in split.categories]
        self.learner = Learner(config, learnt[-1].num_categories, checkpoint)
        self.ranker = Ranker(self.learner.retriever, self.galleries, config.similarity, config.evaluate)

    def search(self, query: str, top: int) -> list[Hit]:
        """Rank all videos of tasks 1..after for a query; return the best `top`, or all that the index returns.

        Raises
        ------
        UserError
            If the query is empty, or the model gives no numbers.
        """
        if not query.strip():
            raise UserError("the query is empty; say what the video should show")
        scores, places, words = self.ranker.search(query)  # [F], [F], and [l,D] for each gallery
        if scores.isnan().any():
            raise UserError(
                "scores: NaN for this query: the model's weights or features are broken; train again at a lower "
                "train.lr_first, lr_later or lr_clip"
            )
        best = highest(scores, min(top, len(scores)))
        stored = [locate(self.galleries, place) for place in places[best].tolist()]
        pieces = self.learner.retriever.word_pieces(query)
        read = {gallery.task: tokens for gallery, tokens in zip(self.galleries, words, strict=True)}
        return [
            Hit(
                rank=rank,
                clip=gallery.clips[position],
                score=score,
                category=self.categories[gallery.category[position]],
                task=gallery.task,
                caption=gallery.caption(position),
                matches=best_frames(pieces, read[gallery.task], gallery.frames[position]),
            )
            for rank, (score, (gallery, position)) in enumerate(zip(scores[best].tolist(), stored, strict=True), 1)
        ]


def highest(scores: Tensor, count: int) -> list[int]:
    """Positions of the `count` highest of the scores (V,); of equal ones, the first comes first."""
    if not count:
        return []
    among = (scores >= scores.topk(count).values.amin()).nonzero().flatten()
    return among[scores[among].argsort(descending=True, stable=True)][:count].tolist()  # type: ignore[no-any-return]


def best_frames(pieces: list[tuple[str, list[int]]], words: Tensor, frames: Tensor) -> list[tuple[str, int]]:
    """Find the frame, of (N, D), that each piece of a query matches best, on average over its words' cosines.

    Parameters
    ----------
    pieces : list of (str, list of int)
        Each with the positions of its words.
    words : Tensor, shape (l, D)
    frames : Tensor, shape (N, D)
    """
    cosine = normalize(words, dim=-1) @ normalize(frames, dim=-1).T  # [l,N]
    return [(piece, int(cosine[places].mean(dim=0).argmax())) for piece, places in pieces]
