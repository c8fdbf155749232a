"""How features move and how they are arranged: class means as stored and at present, drift, and sample points.

Everything here is for looking at; no result depends on it. Features are pooled as the prototype memory pools them:
the mean over words (or frames), L2-normalised.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity, normalize

from structalign.losses.contrastive import pool_frames
from structalign.methods.base import Method
from structalign.model.retriever import Retriever
from structalign.retrieval.encode import pooled_texts
from structalign.retrieval.gallery import TaskGallery

POINTS_PER_CLASS = 10
"""Texts and videos per class that the scatter plots show."""


def class_means(features: Tensor, category: Tensor, classes: Tensor) -> Tensor:
    """Mean feature (C, D) of each of `classes` (C,) over features (M, D) with categories (M,)."""
    member = (category == classes[:, None]).float()  # [C,M]
    return (member @ features) / member.sum(dim=1, keepdim=True).clamp_min(1)


def class_scatter(features: Tensor, category: Tensor, classes: Tensor, means: Tensor) -> Tensor:
    """Mean squared distance (C,) of each class's features (M, D) to their mean (C, D)."""
    distance = (features - means[torch.searchsorted(classes, category)]).square().sum(dim=1)  # [M]
    member = (category == classes[:, None]).float()  # [C,M]
    return (member @ distance) / member.sum(dim=1).clamp_min(1)


def diagnose(
    previous: dict[str, Tensor],
    galleries: list[TaskGallery],
    method: Method,
    encode_clips: Callable[[list[str], int], Tensor],
    videos_per_class: int,
) -> dict[str, Tensor]:
    """Measure the present model on all classes seen so far.

    Parameters
    ----------
    previous : dict of Tensor
        What this function returned after the previous task; empty after task 1.
    galleries : list of TaskGallery
        Of tasks 1..t.
    method : Method
        Holds the present model, and the maps to the class prototypes if it has any.
    encode_clips : callable
        Encodes clip ids of a task into frame features (V, N, D) with the present model.
    videos_per_class : int
        Videos of each class to encode again; 0 leaves out the drift of videos.

    Returns
    -------
    dict of Tensor
        `classes` (C,); per modality m in text, video: `m/stored` and `m/current` class means (C, D), `m/scatter`
        (C,), and `drift/m` (t, C), the cosine between a class's mean when it was learnt and after each task (NaN
        before); `points/m` and `points/first/m` (M, D) with `points/m_category`. If the method has prototypes,
        there are also `prototypes` (C, D) and means `m/aligned` (C, D), and points and scatter are projected.
    """
    with torch.inference_mode():
        text, text_category = _texts(method.retriever, galleries)
        chosen = [_first_of_each_class(gallery.category, videos_per_class) for gallery in galleries]
        stored, video_category = _stored_videos(galleries, chosen)
        current = _current_videos(galleries, chosen, encode_clips)
        classes = torch.tensor(sorted({c for gallery in galleries for c in gallery.category}))
        means = {
            "text": class_means(text, text_category, classes),
            "video": class_means(current, video_category, classes) if len(current) else torch.empty(0),
        }
        result = {"classes": classes}
        result |= _drift("text", previous, classes, means["text"])
        result["text/scatter"] = class_scatter(text, text_category, classes, means["text"])
        if len(current):
            result["video/scatter"] = class_scatter(current, video_category, classes, means["video"])
            video_stored = class_means(stored, video_category, classes)
            result |= _drift("video", previous, classes, means["video"], video_stored)
        device = method.retriever.device
        if aligned := method.align(text.to(device), current.to(device)):
            text, current, prototypes = (part.float().cpu() for part in aligned)
            result["prototypes"] = prototypes[classes]
            result |= _aligned("text", text, text_category, classes)
            if len(current):
                result |= _aligned("video", current, video_category, classes)
        if len(current):
            result |= _points(previous, text, text_category, current, video_category)
        return result


def _texts(retriever: Retriever, galleries: list[TaskGallery]) -> tuple[Tensor, Tensor]:
    """Pooled features and categories of all queries, each encoded with its own task's prototype."""
    features = [pooled_texts(retriever, gallery.queries, gallery.task) for gallery in galleries]
    category = [gallery.category[video] for gallery in galleries for video in gallery.target]
    return torch.cat(features), torch.tensor(category)


def _first_of_each_class(category: list[int], count: int) -> list[int]:
    """Positions of the first `count` videos of each class."""
    seen: dict[int, int] = {}
    chosen = []
    for position, name in enumerate(category):
        seen[name] = seen.get(name, 0) + 1
        if seen[name] <= count:
            chosen.append(position)
    return chosen


def _stored_videos(galleries: list[TaskGallery], chosen: list[list[int]]) -> tuple[Tensor, Tensor]:
    pooled = [pool_frames(g.frames[positions]) for g, positions in zip(galleries, chosen, strict=True)]
    category = [g.category[p] for g, positions in zip(galleries, chosen, strict=True) for p in positions]
    return torch.cat(pooled), torch.tensor(category)


def _current_videos(
    galleries: list[TaskGallery], chosen: list[list[int]], encode_clips: Callable[[list[str], int], Tensor]
) -> Tensor:
    """Encode the chosen videos again, except the newest gallery's, which the present model has just encoded."""
    parts = []
    for gallery, positions in zip(galleries, chosen, strict=True):
        if gallery is galleries[-1]:
            frames = gallery.frames[positions]
        elif positions:
            frames = encode_clips([gallery.clips[position] for position in positions], gallery.task)
        else:
            continue
        parts.append(pool_frames(frames))
    return torch.cat(parts)


def _drift(
    name: str, previous: dict[str, Tensor], classes: Tensor, current: Tensor, stored: Tensor | None = None
) -> dict[str, Tensor]:
    """Compare class means when learnt (from the previous task's record, if known) with the present ones."""
    learnt = current.clone() if stored is None else stored
    rows = torch.full((0, len(classes)), torch.nan)
    if previous:
        places = torch.searchsorted(classes, previous["classes"])
        learnt = learnt.clone()
        learnt[places] = previous[f"{name}/stored"]
        rows = torch.full((len(previous[f"drift/{name}"]), len(classes)), torch.nan)
        rows[:, places] = previous[f"drift/{name}"]
    row = cosine_similarity(learnt, current, dim=-1)[None]  # [1,C]
    return {f"{name}/stored": learnt, f"{name}/current": current, f"drift/{name}": torch.cat([rows, row])}


def _aligned(name: str, projected: Tensor, category: Tensor, classes: Tensor) -> dict[str, Tensor]:
    """Class means and scatter of features (M, D) that were projected to the prototypes."""
    unit = normalize(projected, dim=-1)
    means = class_means(unit, category, classes)  # [C,D]
    return {f"{name}/aligned": means, f"{name}/scatter": class_scatter(unit, category, classes, means)}


def _points(
    previous: dict[str, Tensor], text: Tensor, text_category: Tensor, video: Tensor, video_category: Tensor
) -> dict[str, Tensor]:
    """Sample the same number of texts and videos per class."""
    rows = _first_of_each_class(text_category.tolist(), POINTS_PER_CLASS)
    columns = _first_of_each_class(video_category.tolist(), POINTS_PER_CLASS)
    result = {"points/text_category": text_category[rows], "points/video_category": video_category[columns]}
    result |= {"points/text": normalize(text[rows], dim=-1), "points/video": normalize(video[columns], dim=-1)}
    names = ("text", "video", "text_category", "video_category")
    first = previous if previous else {f"points/first/{name}": result[f"points/{name}"] for name in names}
    return result | {f"points/first/{name}": first[f"points/first/{name}"] for name in names}
