"""Figures of one run, drawn from its tables (`structalign.report.tables`)."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from structalign.evaluation.geometry import GEOMETRY
from structalign.evaluation.metric_table import Metric, panels
from structalign.report.figures.style import (
    CELL_LIMIT,
    GREY,
    HEAT,
    MARKERS,
    ORANGE,
    PALETTE,
    legend_beside,
    new_figure,
    styled,
    task_axis,
    task_colours,
)

LINES: dict[str, Any] = {
    "text to video": "",
    "video to text": (3, 2),
    "zero-shot CLIP": (1, 1),
    "chance": (6, 2, 1, 2),
}
"""Dashes of the kinds of lines in the figure by task: see `Metric.line`."""

_NAMED_CATEGORIES = 48
"""Bars of more categories stand without names."""

_LINE_MARKERS = {"text to video": "o", "video to text": "s", "zero-shot CLIP": ".", "chance": "."}


@styled
def recall_by_task(table: pd.DataFrame) -> Figure:
    """Draw every metric that has a panel, after each task: recall, forgetting and forward transfer.

    Parameters
    ----------
    table : DataFrame
        `recall_table`: after, and metrics by their keys.

    Returns
    -------
    Figure
        A panel for each title in `structalign.evaluation.metric_table.panels`.
    """
    known = {
        title: [m for m in some if m.key in table and table[m.key].notna().any()] for title, some in panels().items()
    }
    known = {title: metrics for title, metrics in known.items() if metrics}
    figure, axes_of = new_figure(1, len(known), width=3 + 3.2 * len(known), height=4.8)
    for axes, (title, metrics) in zip(axes_of, known.items(), strict=True):
        long = pd.concat(
            pd.DataFrame({"after": table.after, "value": table[m.key], "metric": m.colour or m.label, "line": m.line})
            for m in metrics
        )
        several = len(metrics) > 1
        looks = {
            "dashes": LINES,
            "markers": _LINE_MARKERS,
            "style_order": [kind for kind in LINES if kind in set(long.line)],
        }
        looks["palette"] = PALETTE[: long.metric.nunique()] if several else [ORANGE]
        sns.lineplot(
            long, x="after", y="value", hue="metric", style="line", ax=axes, legend=several and "full", **looks
        )
        if several:
            _legend_below(axes)
        main = metrics[0]
        axes.set(title=title, ylabel=f"recall ({main.unit})\n{main.direction}" if several else main.axis)
        if main.ideal is None:
            axes.axhline(0, color=GREY, linewidth=1)
        else:
            axes.set_ylim(bottom=0)
        axes.margins(y=0.15)
        task_axis(axes, table.after)
    figure.suptitle("Recall, forgetting and forward transfer by task")
    return figure


def _legend_below(axes: Axes) -> None:
    """Put seaborn's legend below the panel, with a column for colours and one for kinds of lines."""
    handles, labels = axes.get_legend_handles_labels()
    entries = dict(zip(labels, handles, strict=True))
    lines = [entries[label] for label in entries if label in LINES]
    colours = [entries[label] for label in entries if label not in (*LINES, "metric", "line")]
    length = max(len(lines), len(colours))
    blank = Line2D([], [], linestyle="none", label=" ")
    columns = [part + [blank] * (length - len(part)) for part in (colours, lines)]
    axes.legend(handles=[*columns[0], *columns[1]], loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=2)


@styled
def accuracy_matrix(table: pd.DataFrame) -> Figure:
    """Draw the lower triangle of A as a heat map.

    Parameters
    ----------
    table : DataFrame
        `accuracy_table`: after, task, r1 (percent).
    """
    matrix = table.pivot(index="after", columns="task", values="r1")
    size = len(matrix)
    side = min(4 + 0.35 * size, 12)
    figure, (axes,) = new_figure(1, 1, width=side + 1.2, height=side)
    sns.heatmap(
        matrix,
        ax=axes,
        cmap=HEAT,
        annot=size <= CELL_LIMIT,
        fmt=".0f",
        annot_kws={"fontsize": 10 if size <= 10 else 8},
        square=True,
        linewidths=0.5,
        xticklabels=1,
        yticklabels=1,
        cbar_kws={"label": "R@1 within the task's own gallery (%), ↑ higher is better", "shrink": 0.8},
    )
    axes.grid(False)
    axes.set(xlabel="queries and gallery of task", ylabel="after learning task")
    axes.tick_params(axis="y", rotation=0)
    figure.suptitle("Accuracy matrix A")
    return figure


@styled
def recall_by_category(table: pd.DataFrame) -> Figure:
    """Draw R@1 of each category, in the order in which tasks brought them.

    Parameters
    ----------
    table : DataFrame
        `category_table`: category, learnt_in, train_videos, r1 (percent).
    """
    count = len(table)
    figure, (axes,) = new_figure(1, 1, width=7, height=min(1.8 + 0.24 * count, 12))
    colours = task_colours(sorted(set(table.learnt_in)))
    for task, group in table.groupby("learnt_in"):
        axes.barh(group.index, group.r1, color=colours[int(task)], label=str(task))
    names = table.category
    if table.train_videos.nunique() > 1:
        names = names + " (" + table.train_videos.astype(str) + ")"
    named = count <= _NAMED_CATEGORIES
    axes.set_yticks(range(count) if named else [], names if named else [])
    axes.invert_yaxis()
    axes.grid(axis="y", visible=False)
    counted = table.train_videos.nunique() > 1 and named
    axes.set(
        xlabel="R@1 over the videos of all seen tasks (%), ↑ higher is better",
        ylabel="category" + (" (training videos)" if counted else ""),
    )
    legend_beside(axes, "learnt in task")
    figure.suptitle("R@1 of each category's queries, after the last task")
    return figure


@styled
def training_loss(table: pd.DataFrame) -> Figure:
    """Draw each term of the training loss over the steps of all tasks.

    Parameters
    ----------
    table : DataFrame
        `loss_table`: task, global_step, term, value, weighted, panel.

    Returns
    -------
    Figure
        A panel a term: single steps (thin), their running mean (thick), and what the term adds to the total (dashed).
    """
    terms = table.panel.unique()
    figure, axes_of = new_figure(len(terms), 1, width=9.6, height=1.2 + 1.7 * len(terms), sharex=True)
    for axes, term in zip(axes_of, terms, strict=True):
        for index, (_, steps) in enumerate(table[table.panel == term].groupby("task")):
            labels = ("unweighted", "weighted") if index == 0 else (None, None)
            axes.plot(steps.global_step, steps.value, color=PALETTE[0], linewidth=0.7, alpha=0.4)
            axes.plot(steps.global_step, _running_mean(steps.value), color=PALETTE[0], label=labels[0])
            if term != "total":
                axes.plot(
                    steps.global_step, _running_mean(steps.weighted), color=ORANGE, linestyle="--", label=labels[1]
                )
        axes.set_title(term, loc="left", fontsize=10)
        axes.set_ylabel("loss")
        axes.grid(False, axis="x")
        axes.yaxis.set_major_locator(MaxNLocator(4))
        axes.yaxis.set_major_formatter("{x:.3g}")
    legend_beside(axes_of[-1], "loss (running mean)")
    _mark_tasks(axes_of, table.groupby("task").global_step.agg(["min", "max"]))
    axes_of[-1].set_xlabel("training step, counted over all tasks")
    figure.suptitle("Training loss by task: the total, and its terms before and after weighting")
    return figure


def _running_mean(values: pd.Series) -> pd.Series:
    """Mean over a centred window of a twentieth of the curve, narrower at its ends."""
    return values.rolling(2 * max(len(values) // 40, 1) + 1, center=True, min_periods=1).mean()


def _mark_tasks(axes_of: np.ndarray, spans: pd.DataFrame) -> None:
    """Part the tasks (min and max step, by task) by lines, and name them at the top of the first panel."""
    for index, (task, span) in enumerate(spans.iterrows()):
        for axes in axes_of if index else ():
            axes.axvline(span["min"], color=GREY, linewidth=0.8, linestyle=":")
        axes_of[0].annotate(
            f"task {task}" if len(spans) <= 10 else str(task),
            (span.mean(), 1.0),
            xycoords=("data", "axes fraction"),
            xytext=(0, 3),
            textcoords="offset points",
            ha="center",
            fontsize=9,
            color=GREY,
        )


@styled
def drift(table: pd.DataFrame) -> Figure:
    """Draw how far class means have moved since their class was learnt.

    Parameters
    ----------
    table : DataFrame
        `drift_table`: after, learnt_in, modality, cosine.

    Returns
    -------
    Figure
        A panel a modality; a line a task, the mean over its classes, with their range as a band if few tasks leave
        room for it.
    """
    tasks = sorted(set(table.learnt_in))
    modalities = sorted(set(table.modality))
    banded = len(tasks) <= 6  # more bands than that cover each other
    figure, axes_of = new_figure(1, len(modalities), width=1 + 4.5 * len(modalities), height=4, sharey=True)
    for axes, modality in zip(axes_of, modalities, strict=True):
        own = table[table.modality == modality].astype({"learnt_in": str}).rename(columns={"learnt_in": "task"})
        sns.lineplot(
            own,
            x="after",
            y="cosine",
            hue="task",
            style="task",
            palette={str(task): colour for task, colour in task_colours(tasks).items()},
            markers=[MARKERS[index % len(MARKERS)] for index in range(own.task.nunique())],
            dashes=False,
            errorbar=("pi", 100) if banded else None,
            err_kws={"alpha": 0.12, "linewidth": 0},
            ax=axes,
        )
        axes.set_title(modality)
        axes.set_ylabel("cosine to the mean when learnt\n↑ higher is better")
        task_axis(axes, table.after)
        axes.get_legend().remove()
    legend_beside(axes_of[-1], "classes of task")
    band = "; band: range over classes" if banded else ""
    figure.suptitle(f"Drift of class means (1: has not moved{band})")
    return figure


@styled
def collapse(table: pd.DataFrame) -> Figure:
    """Draw how close the class means are to a simplex ETF, by task.

    Parameters
    ----------
    table : DataFrame
        `geometry_table`: after, modality, measure, value.

    Returns
    -------
    Figure
        A panel a measure of `GEOMETRY`, a line a modality; dashed: the ideal value.
    """
    shown = [measure for measure in GEOMETRY if measure.key in set(table.measure)]
    columns = min(len(shown), 4)
    lines = -(-len(shown) // columns)
    figure, axes_of = new_figure(lines, columns, width=1.5 + 3.2 * columns, height=0.8 + 3.1 * lines)
    for axes in axes_of[len(shown) :]:
        axes.remove()
    for axes, measure in zip(axes_of, shown, strict=False):
        own = table[table.measure == measure.key]
        for index, (modality, line) in enumerate(own.groupby("modality")):
            axes.plot(line.after, line.value, marker=MARKERS[index], color=PALETTE[index], label=modality)
        _mark_ideal(axes, measure)
        axes.set_title(measure.label)
        task_axis(axes, table.after)
    legend_beside(axes_of[columns - 1])
    figure.suptitle("How close the class means are to a simplex ETF (dashed: ideal)")
    return figure


@styled
def etf(table: pd.DataFrame) -> Figure:
    """Draw, for the classes of each task, how the simplex ETF is approached, and kept or lost later.

    Parameters
    ----------
    table : DataFrame
        `etf_table`: after, learnt_in, modality, measure, value.

    Returns
    -------
    Figure
        A row a measure, a column a modality, a line the classes of a task; dashed: the ideal value.
    """
    shown = [measure for measure in GEOMETRY if measure.key in set(table.measure)]
    modalities = sorted(set(table.modality))
    colours = task_colours(sorted(set(table.learnt_in)))
    size = {"width": 1.5 + 4.2 * len(modalities), "height": 1 + 3 * len(shown)}
    figure, axes_of = new_figure(len(shown), len(modalities), **size, sharey="row")
    for axes, (measure, modality) in zip(axes_of, product(shown, modalities), strict=True):
        own = table[(table.measure == measure.key) & (table.modality == modality)]
        for index, (task, line) in enumerate(own.groupby("learnt_in")):
            marker = MARKERS[index % len(MARKERS)]
            axes.plot(line.after, line.value, marker=marker, color=colours[task], label=f"task {task}")
        _mark_ideal(axes, measure)
        axes.set_title(f"{measure.label}, {modality}")
        task_axis(axes, table.after)
    legend_beside(axes_of[len(modalities) - 1], "classes of")
    figure.suptitle("Class means and the ETF: approached when learnt, kept or lost later (dashed: ideal)")
    return figure


def _mark_ideal(axes: Axes, measure: Metric) -> None:
    """Say the unit of a measure and which way is good, and mark its ideal value."""
    axes.set_ylabel(f"{measure.unit}\n{measure.direction}")
    axes.margins(y=0.15)
    if measure.ideal is not None:
        axes.axhline(measure.ideal, color=GREY, linewidth=1.2, linestyle="--", zorder=1)


@styled
def against_published(table: pd.DataFrame) -> Figure:
    """Compare a run with the published results on its benchmark.

    Parameters
    ----------
    table : DataFrame
        `published_table`: benchmark, method, r1 (percent), bwf (points), source.

    Returns
    -------
    Figure
        R@1 and BWF, a bar a method, the best R@1 on top, the run's own bars in orange.
    """
    ordered = table.sort_values("r1", ascending=False)
    figure, axes_of = new_figure(1, 2, width=10, height=1.6 + 0.36 * len(table), sharey=True)
    labels = {"r1": "R@1 after the last task (%)\n↑ higher is better", "bwf": "BWF (points)\n↓ lower is better"}
    colours = {"published": PALETTE[0], "this run": ORANGE}
    for axes, (key, label) in zip(axes_of, labels.items(), strict=True):
        sns.barplot(
            ordered, x=key, y="method", hue="source", palette=colours, legend=False, ax=axes, width=0.7, saturation=1
        )
        for bars in axes.containers:
            axes.bar_label(bars, fmt="%.2f", padding=3, fontsize=9)
        axes.axvline(0, color=GREY, linewidth=1)
        axes.set(xlabel=label, ylabel="")
        axes.grid(False, axis="y")
        axes.margins(x=0.18)
    figure.suptitle(f"Against published results, {table.benchmark.iloc[0]}")
    return figure
