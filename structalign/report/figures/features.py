"""Figures of class means and feature samples: Gram matrices, and projections to the plane."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke

from structalign.evaluation.geometry import ClassMeans
from structalign.report.figures.style import CELL_LIMIT, GREY, drawable, new_figure, styled, task_colours, unit

_KIND_STYLES: dict[str, dict[str, Any]] = {
    "text": {"marker": "o", "s": 16, "alpha": 0.6, "linewidths": 0},
    "video": {"marker": "^", "s": 20, "alpha": 0.6, "linewidths": 0},
    "prototype": {"marker": "*", "s": 170, "edgecolors": "black", "linewidths": 0.8},
}
_PROJECTION_NAMES = {"pca": "PCA", "tsne": "t-SNE"}


@styled
def gram(means: Mapping[str, np.ndarray], tasks: Sequence[int], names: Sequence[str] | None = None) -> Figure:
    """Draw cosines between class means beside those of the ideal ETF.

    Parameters
    ----------
    means : mapping of str to ndarray of shape (C, D)
        Class means per modality. The mean over classes is subtracted first: a simplex ETF is centred, and
        features of one modality share a large common part.
    tasks : sequence of int
        The task each class was learnt in, ascending; lines mark where a task ends.
    names : sequence of str, optional
        Names of the classes, drawn if they fit.

    Returns
    -------
    Figure
    """
    num_classes = len(tasks)
    measured = {modality: ClassMeans(values) for modality, values in means.items()}
    ideal = next(iter(measured.values())).ideal_gram
    labels = drawable(names) if names is not None and num_classes <= CELL_LIMIT else []
    panels_of = {modality: values.cosines for modality, values in measured.items()}
    panels_of[f"ideal: {ideal[0, -1]:.3f} off the diagonal"] = ideal
    figure, panels = new_figure(1, len(panels_of), width=1.5 + 4 * len(panels_of), height=4.7, sharey=True)
    ends = np.flatnonzero(np.diff(tasks)) + 1
    for axes, (title, cosines) in zip(panels, panels_of.items(), strict=True):
        image = axes.imshow(cosines, cmap="vlag", vmin=-1, vmax=1, interpolation="nearest")
        for end in ends:
            axes.axhline(end - 0.5, color="black", linewidth=0.6)
            axes.axvline(end - 0.5, color="black", linewidth=0.6)
        axes.set_title(title)
        axes.grid(False)
        axes.set_xlabel("class, in order of learning")
        axes.set_xticks([])
    if labels:
        panels[0].set_yticks(range(num_classes), labels, fontsize=8)
    else:
        panels[0].set_ylabel("class, in order of learning")
    figure.colorbar(image, ax=list(panels), label="cosine, mean over classes removed", shrink=0.8)
    figure.suptitle("Gram matrix of class means against the ideal ETF")
    return figure


@styled
def feature_map(
    samples: Mapping[str, Mapping[str, tuple[np.ndarray, np.ndarray]]],
    tasks: Sequence[int],
    prototypes: Mapping[int, np.ndarray],
    projection: str = "pca",
    seed: int = 0,
) -> Figure:
    """Project text features, video features and prototypes to the plane, a panel per moment.

    Parameters
    ----------
    samples : mapping of str to mapping
        Per panel title and modality (text, video): features of shape (M, D) and categories of shape (M,).
    tasks : sequence of int
        The task of each category, indexed by the category.
    prototypes : mapping of int to ndarray of shape (D,)
        Prototypes by category; a panel shows those of its own categories. May be empty.
    projection : {"pca", "tsne"}
        ``pca``: one projection for all panels, so that they can be compared. ``tsne``: neighbourhoods only,
        one projection a panel.
    seed : int
        Seed of t-SNE.

    Returns
    -------
    Figure
        Colour tells the task, the marker the modality, and the number (up to 20 categories) the category.
    """
    clouds = [_clouds(sample, prototypes) for sample in samples.values()]
    planes = _project([np.concatenate([part for _, part, _ in cloud]) for cloud in clouds], projection, seed)
    colours = task_colours(sorted(set(tasks)))
    crowded = len(tasks) > CELL_LIMIT
    figure, panels = new_figure(1, len(samples), width=1.6 + 5 * len(samples), height=5)
    if projection == "pca":
        for axes in panels[1:]:
            axes.sharex(panels[0])
            axes.sharey(panels[0])
    axis = {"pca": "principal component {} of unit vectors", "tsne": "t-SNE dimension {}"}[projection]
    for axes, title, cloud, plane in zip(panels, samples, clouds, planes, strict=True):
        for kind, part, category in cloud:
            points, plane = plane[: len(part)], plane[len(part) :]
            style = _KIND_STYLES[kind] | ({"s": _KIND_STYLES[kind]["s"] / 3} if crowded else {})
            axes.scatter(*points.T, color=[colours[tasks[index]] for index in category], **style)
            if not crowded and kind != "prototype":
                for index in np.unique(category):
                    _outlined(axes, points[category == index].mean(axis=0), str(index))
        axes.set(title=title, xticklabels=[], yticklabels=[], xlabel=axis.format(1), ylabel=axis.format(2))
    handles = _feature_handles(colours, dict.fromkeys(kind for cloud in clouds for kind, _, _ in cloud))
    panels[-1].legend(
        handles=handles, loc="center left", bbox_to_anchor=(1.01, 0.5), ncols=2 if len(handles) > 14 else 1
    )
    kinds = "Text, video and prototypes" if prototypes else "Text and video"
    numbers = "" if crowded else "; numbers: categories"
    figure.suptitle(f"{kinds}, {_PROJECTION_NAMES[projection]}{numbers}")
    return figure


def _clouds(
    sample: Mapping[str, tuple[np.ndarray, np.ndarray]], prototypes: Mapping[int, np.ndarray]
) -> list[tuple[str, np.ndarray, np.ndarray]]:
    """List what a panel shows: kind, unit vectors (M, D) and categories (M,)."""
    clouds = [(kind, features, category.astype(int)) for kind, (features, category) in sample.items()]
    shown = sorted({int(index) for _, _, category in clouds for index in category} & set(prototypes))
    if shown:
        clouds.append(("prototype", np.stack([prototypes[index] for index in shown]), np.array(shown)))
    return [(kind, unit(part.astype(np.float64)), category) for kind, part, category in clouds]


def _project(groups: Sequence[np.ndarray], projection: str, seed: int) -> list[np.ndarray]:
    """Map each group of vectors to the plane; scikit-learn is slow to import, so only here."""
    if projection == "pca":
        from sklearn.decomposition import PCA

        fitted = PCA(2, svd_solver="full").fit(np.concatenate(list(groups)))
        return [fitted.transform(group) for group in groups]
    from sklearn.manifold import TSNE

    return [
        TSNE(2, init="pca", perplexity=min(30, (len(group) - 1) / 3), random_state=seed).fit_transform(group)
        for group in groups
    ]


def _outlined(axes: Axes, position: np.ndarray, text: str) -> None:
    axes.annotate(
        text,
        tuple(position),
        ha="center",
        va="center",
        fontsize=8,
        fontweight="bold",
        path_effects=[withStroke(linewidth=2.5, foreground="white")],
    )


def _feature_handles(colours: Mapping[int, str], kinds: Iterable[str]) -> list[Line2D]:
    """Legend entries: markers for kinds of points, then colours for tasks."""
    handles = [
        Line2D([], [], linestyle="none", marker=_KIND_STYLES[kind]["marker"], color=GREY, label=kind)
        for kind in kinds
    ]
    return handles + [
        Line2D([], [], linestyle="none", marker="s", color=colour, label=f"task {task}")
        for task, colour in colours.items()
    ]
