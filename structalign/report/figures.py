"""Figures of one run and of several, drawn from plain tables and arrays.

Every function returns a matplotlib `Figure`; `footnote` says below it which run it shows, `save` writes it as
a PNG whose bytes depend on nothing but what is drawn. Colours are seaborn's colour-blind-safe palette or
perceptually even maps, and no meaning rests on colour alone where a marker or a label can carry it too.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from structalign.evaluation import metric_table
from structalign.evaluation.geometry import GEOMETRY
from structalign.evaluation.metric_table import Metric
from structalign.util.files import atomic_write_bytes

PALETTE = sns.color_palette("colorblind")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "p", "*")
"""One more than there are colours, so that no two of a hundred lines share both."""
TERM_NAMES = {  # a term without an entry is shown under its own name
    "total": "total",
    "scl": "contrastive (SCL)",
    "crp": "relation preserving (CRP)",
    "etf": "ETF alignment",
    "pseudo": "contrastive with pseudo features",
    "distill": "distillation",
    "cross": "cross-task",
}
LINES: dict[str, Any] = {
    "text to video": "",
    "video to text": (3, 2),
    "zero-shot CLIP": (1, 1),
    "chance": (6, 2, 1, 2),
}
"""Dashes of the kinds of lines in the figure by task: see `Metric.line`."""

_LINE_MARKERS = {"text to video": "o", "video to text": "s", "zero-shot CLIP": ".", "chance": "."}

_ORANGE = PALETTE[3]
_GREY = "0.45"
_HEAT = "viridis"
_DOTS_PER_INCH = 150
_CELL_LIMIT = 20  # up to so many rows a heat map can carry its numbers readably
_KIND_STYLES: dict[str, dict[str, Any]] = {
    "text": {"marker": "o", "s": 16, "alpha": 0.6, "linewidths": 0},
    "video": {"marker": "^", "s": 20, "alpha": 0.6, "linewidths": 0},
    "prototype": {"marker": "*", "s": 170, "edgecolors": "black", "linewidths": 0.8},
}
_PROJECTION_NAMES = {"pca": "PCA", "tsne": "t-SNE"}
_STYLE = {
    **sns.axes_style("whitegrid"),
    "axes.titlesize": 11,
    "axes.labelsize": 10,
    "axes.edgecolor": "0.3",
    "figure.titlesize": 13,
    "figure.titleweight": "bold",
    "font.family": "DejaVu Sans",  # ships with matplotlib, so that every machine draws the same glyphs
    "grid.color": "0.9",
    "legend.fontsize": 9,
    "legend.frameon": False,
    "lines.linewidth": 1.8,
    "lines.markersize": 6,
}

# Some defaults are read when a figure is made and others when something is drawn: hold them for all of it.
_styled = mpl.rc_context(_STYLE)


def save(figure: Figure, path: str | Path) -> None:
    """Write `figure` as a PNG, whole or not at all; equal figures give equal bytes."""
    image = io.BytesIO()
    # The default metadata name the version of matplotlib.
    figure.savefig(image, format="png", dpi=_DOTS_PER_INCH, metadata={"Software": None})
    atomic_write_bytes(path, image.getvalue())


@_styled
def footnote(figure: Figure, run: str, warning: str = "") -> None:
    """Say below a figure which run it shows, and what stands against its numbers.

    Parameters
    ----------
    figure : Figure
    run : str
        Such as `structalign.report.tables.Run.label`.
    warning : str
        Such as "epoch picked on the test set"; makes the whole line bold and orange.
    """
    text = f"{run}\n{warning}" if warning else run
    style = {"color": _ORANGE, "fontweight": "bold"} if warning else {"color": _GREY}
    figure.supxlabel(text, fontsize=9, **style)


@_styled
def recall_by_task(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """Draw every metric that has a panel, after each task: recall, forgetting and forward transfer.

    Parameters
    ----------
    rows : sequence of mapping
        Rows of `structalign.report.tables.recall_table`: after, and metrics by their keys.

    Returns
    -------
    Figure
        A panel for each title in `structalign.evaluation.metric_table.panels`.
    """
    table = pd.DataFrame(rows)
    found = {
        title: [m for m in some if m.key in table and table[m.key].notna().any()]
        for title, some in metric_table.panels().items()
    }
    found = {title: metrics for title, metrics in found.items() if metrics}
    figure, axes_of = _figure(1, len(found), 3 + 3.2 * len(found), 4.8)
    for axes, (title, metrics) in zip(axes_of, found.items(), strict=True):
        long = pd.concat(
            pd.DataFrame({"after": table.after, "value": table[m.key], "metric": m.colour or m.label, "line": m.line})
            for m in metrics
        )
        colours = PALETTE[: long.metric.nunique()] if len(metrics) > 1 else [_ORANGE]
        kinds = [line for line in LINES if line in set(long.line)]
        looks = {"palette": colours, "dashes": LINES, "markers": _LINE_MARKERS, "style_order": kinds}
        sns.lineplot(long, x="after", y="value", hue="metric", style="line", ax=axes, **looks)
        if len(metrics) > 1:
            _legend_below(axes)
        else:
            axes.get_legend().remove()
        main = metrics[0]
        axes.set(title=title, ylabel=main.axis if len(metrics) == 1 else f"recall ({main.unit})\n{main.direction}")
        if main.ideal is None:
            axes.axhline(0, color=_GREY, linewidth=1)
        else:
            axes.set_ylim(bottom=0)
        axes.margins(y=0.15)
        _task_axis(axes, table.after)
    figure.suptitle("Recall, forgetting and forward transfer by task")
    return figure


@_styled
def accuracy_matrix(rows: Sequence[Sequence[float]]) -> Figure:
    """Draw the lower triangle of A as a heat map.

    Parameters
    ----------
    rows : sequence of sequence of float
        Row t holds A[t, 1..t]: R@1 (percent) of each task's queries within its own gallery.

    Returns
    -------
    Figure
    """
    size = len(rows)
    matrix = np.full((size, size), np.nan)
    for index, row in enumerate(rows):
        matrix[index, : len(row)] = row
    side = min(4 + 0.35 * size, 12)
    figure, (axes,) = _figure(1, 1, width=side + 1.2, height=side)
    names = [str(task) for task in range(1, size + 1)]
    sns.heatmap(
        matrix,
        ax=axes,
        mask=np.isnan(matrix),
        cmap=_HEAT,
        annot=size <= _CELL_LIMIT,
        fmt=".0f",
        annot_kws={"fontsize": 10 if size <= 10 else 8},
        square=True,
        linewidths=0.5,
        xticklabels=names,
        yticklabels=names,
        cbar_kws={"label": "R@1 within the task's own gallery (%)", "shrink": 0.8},
    )
    axes.grid(False)
    axes.set(xlabel="queries and gallery of task", ylabel="after learning task")
    axes.tick_params(axis="y", rotation=0)
    figure.suptitle("Accuracy matrix A")
    return figure


@_styled
def training_loss(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """Draw each term of the training loss over the steps of all tasks.

    Parameters
    ----------
    rows : sequence of mapping
        Rows of `structalign.report.tables.loss_table`: task, global_step, term, value, weighted.

    Returns
    -------
    Figure
        A panel for each term: steps (thin), their running mean (thick), and what the term adds to the total (dashed).
    """
    terms = list(dict.fromkeys(row["term"] for row in rows))
    tasks = sorted({row["task"] for row in rows})
    figure, panels = _figure(len(terms), 1, width=9, height=1.0 + 1.7 * len(terms), sharex=True)
    for axes, term in zip(panels, terms, strict=True):
        for task in tasks:
            points = [
                (row["global_step"], row["value"], row["weighted"])
                for row in rows
                if row["task"] == task and row["term"] == term
            ]
            if points:
                steps, values, weighted = np.array(points, dtype=float).T
                axes.plot(steps, values, color=PALETTE[0], linewidth=0.7, alpha=0.4)
                axes.plot(steps, _running_mean(values), color=PALETTE[0], label="value")
                if term != "total":
                    axes.plot(steps, _running_mean(weighted), color=_ORANGE, linestyle="--", label="weighted")
        axes.set_title(TERM_NAMES.get(term, term), loc="left", fontsize=10)
        axes.set_ylabel("loss")
        axes.grid(False, axis="x")
        axes.yaxis.set_major_locator(MaxNLocator(4))
        axes.yaxis.set_major_formatter("{x:.3g}")
    if len(panels) > 1:
        handles, labels = panels[-1].get_legend_handles_labels()
        named = dict(zip(labels, handles, strict=True))
        panels[-1].legend(named.values(), named.keys(), loc="upper right", fontsize=8)
    _mark_tasks(panels, rows, tasks)
    panels[-1].set_xlabel("training step, counted over all tasks")
    figure.suptitle("Training loss by task")
    return figure


@_styled
def drift(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """Draw how far class means have moved since their class was learnt.

    Parameters
    ----------
    rows : sequence of mapping
        Rows of `structalign.report.tables.drift_table`: after, learnt_in, modality, cosine.

    Returns
    -------
    Figure
        A panel a modality; a line a task, the mean over its classes, with their range as a band where few
        enough tasks leave room for it.
    """
    modalities = sorted({row["modality"] for row in rows})
    learnt = sorted({row["learnt_in"] for row in rows})
    colours = _task_colours(learnt)
    banded = len(learnt) <= 6  # more bands than that cover each other
    figure, panels = _figure(1, len(modalities), width=1 + 4.5 * len(modalities), height=4, sharey=True)
    for axes, modality in zip(panels, modalities, strict=True):
        for index, task in enumerate(learnt):
            cosines: dict[int, list[float]] = {}
            for row in rows:
                if row["modality"] == modality and row["learnt_in"] == task:
                    cosines.setdefault(row["after"], []).append(row["cosine"])
            after = sorted(cosines)
            if banded:
                low, high = ([bound(cosines[step]) for step in after] for bound in (min, max))
                axes.fill_between(after, low, high, color=colours[task], alpha=0.12, linewidth=0)
            axes.plot(
                after,
                [np.mean(cosines[step]) for step in after],
                marker=MARKERS[index % len(MARKERS)],
                markersize=6 if banded else 3,
                color=colours[task],
                label=f"task {task}",
            )
        axes.set_title(modality)
        _task_axis(axes, sorted({row["after"] for row in rows}))
    panels[0].set_ylabel("cosine to the mean when learnt")
    _legend_beside(panels[-1], "classes of")
    band = "; band: range over classes" if banded else ""
    figure.suptitle(f"Drift of class means (1: has not moved{band})")
    return figure


@_styled
def gram(means: Mapping[str, np.ndarray], tasks: Sequence[int], names: Sequence[str] | None = None) -> Figure:
    """Draw cosines between class means beside those of the ideal frame.

    Parameters
    ----------
    means : mapping of str to ndarray of shape (C, D)
        Class means per modality. The mean over classes is taken off first: a simplex frame is centred, and
        features of one modality share a large common part.
    tasks : sequence of int
        The task each class was learnt in, ascending; lines mark where a task ends.
    names : sequence of str, optional
        Names of the classes, drawn where they fit.

    Returns
    -------
    Figure
    """
    num_classes = len(tasks)
    ideal = np.full((num_classes, num_classes), -1 / max(num_classes - 1, 1))
    np.fill_diagonal(ideal, 1)
    named = names is not None and num_classes <= _CELL_LIMIT
    panels_of = {modality: _cosines(values) for modality, values in means.items()}
    panels_of[f"ideal: {ideal[0, -1]:.3f} off the diagonal"] = ideal
    figure, panels = _figure(1, len(panels_of), width=1.5 + 4 * len(panels_of), height=4.6)
    ends = np.flatnonzero(np.diff(tasks)) + 1
    for axes, (title, cosines) in zip(panels, panels_of.items(), strict=True):
        image = axes.imshow(cosines, cmap="vlag", vmin=-1, vmax=1, interpolation="nearest")
        for end in ends:
            axes.axhline(end - 0.5, color="black", linewidth=0.6)
            axes.axvline(end - 0.5, color="black", linewidth=0.6)
        axes.set_title(title)
        axes.grid(False)
        axes.set_xlabel("class, in order of learning")
        if named:
            axes.set_xticks([])
            axes.set_yticks(range(num_classes), names if axes is panels[0] else [""] * num_classes, fontsize=8)
    figure.colorbar(image, ax=list(panels), label="cosine, mean over classes removed", shrink=0.8)
    figure.suptitle("Gram matrix of class means against the ideal frame")
    return figure


@_styled
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
    colours = _task_colours(sorted(set(tasks)))
    crowded = len(tasks) > _CELL_LIMIT
    figure, panels = _figure(1, len(samples), width=1.6 + 5 * len(samples), height=5)
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


@_styled
def collapse(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """Draw how close the class means are to a simplex frame, by task.

    Parameters
    ----------
    rows : sequence of mapping
        Rows of `structalign.report.tables.geometry_table`: after, modality, measure, value.

    Returns
    -------
    Figure
        A panel a measure of `GEOMETRY`, a line a modality; dashed: the ideal value.
    """
    table = pd.DataFrame(rows)
    shown = [measure for measure in GEOMETRY if measure.key in set(table.measure)]
    columns = min(len(shown), 4)
    lines = -(-len(shown) // columns)
    figure, panels = _figure(lines, columns, width=1.5 + 3.2 * columns, height=0.8 + 3.1 * lines)
    for axes in panels[len(shown) :]:
        axes.remove()
    for axes, measure in zip(panels, shown, strict=False):
        some = table[table.measure == measure.key]
        _modality_lines(axes, some)
        _ideal_line(axes, measure)
        axes.set_title(measure.label)
        _task_axis(axes, sorted(set(table.after)))
    _legend_beside(panels[columns - 1])
    figure.suptitle("How close the class means are to a simplex frame (dashed: ideal)")
    return figure


@_styled
def frame(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """Draw, for the classes of each task, how the frame is approached or lost after later tasks.

    Parameters
    ----------
    rows : sequence of mapping
        Rows of `structalign.report.tables.frame_table`: after, learnt_in, modality, measure, value.

    Returns
    -------
    Figure
        A row a measure, a column a modality, a line the classes of a task; dashed: the ideal value.
    """
    table = pd.DataFrame(rows)
    shown = [measure for measure in GEOMETRY if measure.key in set(table.measure)]
    modalities = sorted(set(table.modality))
    tasks = sorted(set(table.learnt_in))
    colours = _task_colours(tasks)
    figure, panels = _figure(
        len(shown), len(modalities), width=1.5 + 4.2 * len(modalities), height=1 + 3 * len(shown), sharey="row"
    )
    for axes, (measure, modality) in zip(panels, product(shown, modalities), strict=True):
        some = table[(table.measure == measure.key) & (table.modality == modality)]
        for index, (task, line) in enumerate(some.groupby("learnt_in")):
            marker = MARKERS[index % len(MARKERS)]
            axes.plot(line.after, line.value, marker=marker, color=colours[task], label=f"task {task}")
        _ideal_line(axes, measure)
        axes.set_title(f"{measure.label}, {modality}")
        _task_axis(axes, sorted(set(table.after)))
    _legend_beside(panels[len(modalities) - 1], "classes of")
    figure.suptitle("The frame, class by class: approached when learnt, kept or lost later (dashed: ideal)")
    return figure


def _modality_lines(axes: Axes, table: pd.DataFrame) -> None:
    for index, (modality, line) in enumerate(table.groupby("modality")):
        axes.plot(line.after, line.value, marker=MARKERS[index], color=PALETTE[index], label=modality)


def _ideal_line(axes: Axes, measure: Metric) -> None:
    """Say the unit of a measure and which way is good, and mark its ideal value."""
    axes.set_ylabel(f"{measure.unit}\n{measure.direction}")
    axes.margins(y=0.15)
    if measure.ideal is not None:
        axes.axhline(measure.ideal, color=_GREY, linewidth=1.2, linestyle="--", zorder=1)


@_styled
def against_published(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """Set a run beside the published results on its benchmark.

    Parameters
    ----------
    rows : sequence of mapping
        Rows of `structalign.report.tables.published_table`: benchmark, method, r1 (percent), bwf (points), source.

    Returns
    -------
    Figure
        R@1 and BWF a bar a method, best R@1 on top, the run's own bars in orange.
    """
    ordered = sorted(rows, key=lambda row: row["r1"])
    names = [row["method"] for row in ordered]
    colours = [PALETTE[0] if row["source"] == "published" else _ORANGE for row in ordered]
    figure, panels = _figure(1, 2, width=10, height=1.6 + 0.36 * len(rows), sharey=True)
    titles = {"r1": "R@1 after the last task (%)", "bwf": "BWF (percentage points, lower is better)"}
    for axes, (key, title) in zip(panels, titles.items(), strict=True):
        values = [row[key] for row in ordered]
        bars = axes.barh(names, values, color=colours, height=0.7)
        axes.bar_label(bars, fmt="%.2f", padding=3, fontsize=9)
        axes.axvline(0, color=_GREY, linewidth=1)
        axes.set_xlabel(title)
        axes.grid(False, axis="y")
        axes.margins(x=0.18)
    figure.suptitle(f"Against published results, {rows[0]['benchmark']}")
    return figure


@_styled
def recall_against_bwf(runs: Sequence[Mapping[str, Any]]) -> Figure:
    """Draw recall against forgetting: a point a method, with its spread over seeds.

    Parameters
    ----------
    runs : sequence of mapping
        One a run: method, seed, r1 (percent), bwf (points). Check with `structalign.report.tables.check_same_data`
        that they ranked the same data.

    Returns
    -------
    Figure
        Large markers are means, bars one standard deviation over seeds, small dots the single seeds.
    """
    figure, (axes,) = _figure(1, 1, width=7.6, height=4.8)
    for index, method in enumerate(dict.fromkeys(run["method"] for run in runs)):
        points = np.array([(run["bwf"], run["r1"]) for run in runs if run["method"] == method], dtype=float)
        style = _line_style(index)
        spread = points.std(axis=0, ddof=1) if len(points) > 1 else np.zeros(2)
        axes.scatter(*points.T, color=style["color"], s=10, alpha=0.5, linewidths=0)
        axes.errorbar(
            *points.mean(axis=0),
            xerr=spread[0],
            yerr=spread[1],
            **{**style, "linestyle": "none"},
            markersize=9,
            markeredgecolor="0.2",
            capsize=3,
            linewidth=1.2,
            label=f"{method} ({len(points)})",
        )
    axes.axvline(0, color=_GREY, linewidth=1, zorder=1)
    axes.set(xlabel="BWF (percentage points; left is better)", ylabel="R@1 (%; up is better)")
    axes.margins(0.1)
    _legend_beside(axes, "method (seeds)")
    figure.suptitle("Recall against forgetting, after the last task")
    return figure


@_styled
def compare_recall(curves: pd.DataFrame) -> Figure:
    """Draw recall and forgetting by task for several runs, also of different numbers of tasks.

    Parameters
    ----------
    curves : DataFrame
        A row a run, seed and task: label, seed, after, r1 (percent), bwf (points). Check with
        `structalign.report.tables.check_same_data` that runs of one seed ranked the same data.

    Returns
    -------
    Figure
        Lines are means over seeds, bands one standard deviation.
    """
    figure, panels = _figure(1, 2, width=10.5, height=4)
    looks = {label: _line_style(index) for index, label in enumerate(dict.fromkeys(curves.label))}
    for axes, key in zip(panels, ("r1", "bwf"), strict=True):
        sns.lineplot(
            curves,
            x="after",
            y=key,
            hue="label",
            style="label",
            palette={label: look["color"] for label, look in looks.items()},
            markers={label: look["marker"] for label, look in looks.items()},
            dashes={label: "" if look["linestyle"] == "-" else (4, 2) for label, look in looks.items()},
            errorbar="sd",
            err_kws={"alpha": 0.12, "linewidth": 0},
            markeredgewidth=0,
            ax=axes,
        )
        axes.get_legend().remove()
        _task_axis(axes, range(1, int(curves.after.max()) + 1))
    panels[0].set(title="Recall over all tasks seen so far", ylabel="R@1 (%)")
    panels[1].set(title="Backward forgetting (lower is better)", ylabel="BWF (percentage points)")
    panels[1].axhline(0, color=_GREY, linewidth=1)
    _legend_beside(panels[-1], "run")
    figure.suptitle("Recall and forgetting by task")
    return figure


def _figure(rows: int, columns: int, width: float, height: float, **axes: Any) -> tuple[Figure, np.ndarray]:
    """Make a figure whose layout keeps titles, legends and footnotes off the data, and its panels."""
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False, **axes).ravel()


def _line_style(index: int) -> dict[str, Any]:
    """Tell the lines of many revisions apart: by colour and marker, and dashed where the colours come again."""
    return {
        "marker": MARKERS[index % len(MARKERS)],
        "color": PALETTE[index % len(PALETTE)],
        "linestyle": "-" if index < len(PALETTE) else "--",
    }


def _number(value: Any) -> float:
    return float("nan") if value is None else float(value)


def _task_axis(axes: Axes, after: Sequence[int] | range) -> None:
    """Put a tick on every task, or on some of them where there are many."""
    step = 1 if len(after) <= 10 else 2
    axes.set_xticks(list(after)[::step])
    axes.set_xlabel("after learning task")


def _legend_below(axes: Axes) -> None:
    """Put seaborn's legend below the panel, with a column for colours and one for kinds of lines."""
    handles, labels = axes.get_legend_handles_labels()
    entries = dict(zip(labels, handles, strict=True))
    lines = [label for label in entries if label in LINES]
    colours = [label for label in entries if label not in LINES and label not in ("metric", "line")]
    blank = Line2D([], [], linestyle="none", label=" ")
    pad = [blank] * abs(len(lines) - len(colours))
    columns = [[entries[label] for label in part] for part in (colours, lines)]
    shorter = min(columns, key=len)
    shorter += pad
    axes.legend(handles=[*columns[0], *columns[1]], loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=2)


def _legend_beside(axes: Axes, title: str = "") -> None:
    many = len(axes.get_legend_handles_labels()[0]) > 12
    axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), title=title or None, ncols=2 if many else 1)


def _task_colours(tasks: Sequence[int]) -> dict[int, str]:
    """Give tasks colours from dark to bright in their order; the palest end of the map is left out."""
    shades = mpl.colormaps[_HEAT](np.linspace(0, 0.88, max(len(tasks), 2)))
    return {task: to_hex(shade) for task, shade in zip(tasks, shades, strict=False)}


def _running_mean(values: np.ndarray) -> np.ndarray:
    """Mean over a centred window of a twentieth of the curve, narrower at its ends."""
    half = max(len(values) // 40, 1)
    sums = np.concatenate([[0.0], np.cumsum(values)])
    start = np.clip(np.arange(len(values)) - half, 0, None)
    stop = np.clip(np.arange(len(values)) + half + 1, None, len(values))
    return (sums[stop] - sums[start]) / (stop - start)


def _mark_tasks(panels: np.ndarray, rows: Sequence[Mapping[str, Any]], tasks: Sequence[int]) -> None:
    """Part the tasks by lines, and name them at the top of the first panel."""
    for task in tasks:
        steps = [row["global_step"] for row in rows if row["task"] == task]
        if task != tasks[0]:
            for axes in panels:
                axes.axvline(min(steps), color=_GREY, linewidth=0.8, linestyle=":")
        panels[0].annotate(
            f"task {task}" if len(tasks) <= 10 else str(task),
            ((min(steps) + max(steps)) / 2, 1.0),
            xycoords=("data", "axes fraction"),
            xytext=(0, 3),
            textcoords="offset points",
            ha="center",
            fontsize=9,
            color=_GREY,
        )


def _cosines(means: np.ndarray) -> np.ndarray:
    centred = _unit(means - means.mean(axis=0, keepdims=True))
    return centred @ centred.T


def _clouds(
    sample: Mapping[str, tuple[np.ndarray, np.ndarray]], prototypes: Mapping[int, np.ndarray]
) -> list[tuple[str, np.ndarray, np.ndarray]]:
    """List what a panel shows: kind, unit vectors (M, D) and categories (M,)."""
    clouds = [(kind, features, category.astype(int)) for kind, (features, category) in sample.items()]
    shown = sorted({int(index) for _, _, category in clouds for index in category} & set(prototypes))
    if shown:
        clouds.append(("prototype", np.stack([prototypes[index] for index in shown]), np.array(shown)))
    return [(kind, _unit(part.astype(np.float64)), category) for kind, part, category in clouds]


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True).clip(1e-12)


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
    from matplotlib.patheffects import withStroke

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
        Line2D([], [], linestyle="none", marker=_KIND_STYLES[kind]["marker"], color=_GREY, label=kind)
        for kind in kinds
    ]
    return handles + [
        Line2D([], [], linestyle="none", marker="s", color=colour, label=f"task {task}")
        for task, colour in colours.items()
    ]
