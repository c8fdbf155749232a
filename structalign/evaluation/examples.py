"""Examples of what a run finds: a few queries, with their best results after each task since they were learnt.

Only the end of a run shows which queries are interesting (found and then lost, always found, never found). So a
seeded sample of each task's queries is followed from that task on; their ranks and results are small and are passed
along the chain. After each task a few of them are chosen, and only their videos get pictures.
"""

from __future__ import annotations

import base64
import io
from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from structalign.data.store import FrameStore
from structalign.evaluation.metrics import ranks
from structalign.retrieval.gallery import TaskGallery, locate

FOLLOWED = 120
"""Number of queries that a run follows, the same number for every task."""

TOP = 5
"""Number of results kept for each query. A query counts as found if its own video is among them."""

MOMENTS = 6
"""Most tasks after which a chosen query's results are shown; if there are more, evenly spaced ones are taken."""

SHARES = {"lost": 3, "kept": 2, "varied": 1, "never": 2}
"""How many of the chosen queries should be of each kind (`kind_of`)."""

SHOWN = sum(SHARES.values())

PICTURES = ((96, 75), (96, 50), (72, 50), (56, 40), (48, 30))
"""Longer side (pixels) and JPEG quality of the pictures; the first pair that keeps them within the budget is used, or
else the last."""

BUDGET = 180_000
"""Characters that all pictures of a record should not exceed."""


@dataclass
class Moment:
    """What a query found after one task.

    Attributes
    ----------
    after : int
        The task, from 1.
    rank : int
        Rank of the query's own video among all stored ones, from 1; ties count against it.
    of : int
        Number of stored videos.
    top : list of int
        Positions of the best results, best first, in the galleries of all tasks, one after the other.
    """

    after: int
    rank: int
    of: int
    top: list[int]

    @property
    def found(self) -> bool:
        """Whether the query's own video is among the first `TOP`."""
        return self.rank <= TOP


@dataclass
class Followed:
    """A query that is followed: its task, text and position, the position of its own video, and what it found.

    Positions count over the galleries of all tasks, one after the other; later tasks do not change them.
    """

    task: int
    query: str
    row: int
    video: int
    history: list[Moment] = field(default_factory=list)


def kind_of(followed: Followed) -> str:
    """Classify a query by its history: `kept`, `never`, `lost` (found when learnt, not found now) or `varied`."""
    found = [moment.found for moment in followed.history]
    if all(found):
        return "kept"
    if not any(found):
        return "never"
    return "lost" if found[0] and not found[-1] else "varied"


def follow(
    earlier: list[Followed],
    galleries: list[TaskGallery],
    scores: Tensor,
    num_tasks: int,
    seed: int,
) -> list[Followed]:
    """Draw queries of the newest task, and record what all followed queries find now.

    Parameters
    ----------
    earlier : list of Followed
        What this function returned after the previous task.
    galleries : list of TaskGallery
        Of tasks 1..t.
    scores : Tensor, shape (Q, V)
        Scores of all queries with all stored videos; higher is better.
    num_tasks : int
        K.
    seed : int
        The seed of the run.
    """
    newest = galleries[-1]
    first_row = sum(len(gallery.queries) for gallery in galleries[:-1])
    first_video = sum(len(gallery.clips) for gallery in galleries[:-1])
    order = np.random.default_rng([seed, newest.task]).permutation(len(newest.queries))
    drawn = order[: max(1, FOLLOWED // num_tasks)].tolist()
    added = [
        Followed(newest.task, newest.queries[index], first_row + index, first_video + newest.target[index])
        for index in drawn
    ]
    followed = [Followed(one.task, one.query, one.row, one.video, list(one.history)) for one in earlier] + added
    rows = scores[[one.row for one in followed]]  # [q,V]
    own = ranks(rows, torch.tensor([one.video for one in followed])).tolist()
    best = rows.argsort(dim=1, descending=True, stable=True)[:, :TOP].tolist()
    for one, rank, top in zip(followed, own, best, strict=True):
        one.history.append(Moment(newest.task, rank, scores.shape[1], top))
    return followed


def choose(followed: list[Followed]) -> list[Followed]:
    """Choose up to `SHOWN` queries: the share of each kind if there are enough, spread over the tasks."""
    chosen: list[Followed] = []
    for shares in (SHARES, dict.fromkeys(SHARES, SHOWN)):  # the second round fills free places
        for kind, share in shares.items():
            for _ in range(share):
                used = Counter(one.task for one in chosen)
                left = [one for one in followed if kind_of(one) == kind and one not in chosen]
                if left and len(chosen) < SHOWN:
                    chosen.append(min(left, key=lambda one: (used[one.task], one.task)))
    return sorted(chosen, key=lambda one: (list(SHARES).index(kind_of(one)), one.task))


def illustrate(
    followed: list[Followed], galleries: list[TaskGallery], categories: list[str], store: FrameStore
) -> dict[str, Any]:
    """Collect what the page shows of the chosen queries, as plain values and small pictures.

    Parameters
    ----------
    followed : list of Followed
    galleries : list of TaskGallery
        Of tasks 1..t.
    categories : list of str
        Names, indexed by global category id.
    store : FrameStore
        Holds the frames of all stored videos.

    Returns
    -------
    dict
        `top`; `queries`: kind, task, query, video and history of each; `videos`: by position (a string, because
        JSON keys are strings) the clip, task, category, caption and pictures. A result has one picture, a query's
        own video has three: its first, middle and last frame. Pictures are JPEG in base64.
    """
    queries = [{"kind": kind_of(one), **asdict(one), "history": _thinned(one.history)} for one in choose(followed)]
    own = {query["video"] for query in queries}
    needed = own.union(*(moment["top"] for query in queries for moment in query["history"]))
    videos = {str(position): _facts(position, galleries, categories) for position in sorted(needed)}
    frames = {key: _frames(store.read(video["clip"]), int(key) in own) for key, video in videos.items()}
    for side, quality in PICTURES:
        pictures = {key: [_picture(frame, side, quality) for frame in some] for key, some in frames.items()}
        if sum(len(picture) for some in pictures.values() for picture in some) <= BUDGET:
            break
    return {
        "top": TOP,
        "queries": queries,
        "videos": {key: {**video, "pictures": pictures[key]} for key, video in videos.items()},
    }


def _thinned(history: list[Moment]) -> list[dict[str, Any]]:
    """Return at most `MOMENTS` of a history, evenly spaced."""
    chosen = np.linspace(0, len(history) - 1, min(len(history), MOMENTS)).round().astype(int)
    return [asdict(history[index]) for index in chosen]


def _facts(position: int, galleries: list[TaskGallery], categories: list[str]) -> dict[str, Any]:
    """Return clip, task, category and first caption of the video at a position in the galleries."""
    gallery, position = locate(galleries, position)
    return {
        "clip": gallery.clips[position],
        "task": gallery.task,
        "category": categories[gallery.category[position]],
        "caption": gallery.caption(position),
    }


def _frames(clip: np.ndarray, strip: bool) -> list[np.ndarray]:
    """Return the middle one of a clip's frames (N, H, W, 3), or the first, middle and last."""
    last = len(clip) - 1
    # A view would keep the whole clip in memory.
    return [clip[index].copy() for index in (sorted({0, last // 2, last}) if strip else [last // 2])]


def _picture(frame: np.ndarray, side: int, quality: int) -> str:
    image = Image.fromarray(frame)
    image.thumbnail((side, side))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality, optimize=True)  # the standard Huffman tables would be half of it
    return base64.b64encode(buffer.getvalue()).decode("ascii")
