"""Figures of several runs, over methods and seeds."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

from structalign.evaluation.metric_table import METRICS, Metric
from structalign.report.compare import paired_difference
from structalign.report.figures.style import GREY, PALETTE, legend_beside, line_style, new_figure, styled, task_axis

_R1, _BWF, _LEARNT = (next(metric for metric in METRICS if metric.key == key) for key in ("r1", "bwf", "learnt_r1"))

_LOG_FROM = 8
"""Values that span this factor get a logarithmic axis."""


def _measured(runs: pd.DataFrame) -> list[Metric]:
    """Of recall, recall when learnt and forgetting, what these runs have; a run of an older commit may lack one."""
    return [metric for metric in (_R1, _LEARNT, _BWF) if metric.key in runs]


@styled
def recall_against_bwf(runs: pd.DataFrame) -> Figure:
    """Draw recall against forgetting: a point a method, with its spread over seeds.

    Parameters
    ----------
    runs : DataFrame
        A row a run: label, seed, r1 (percent), bwf (points). Check with `structalign.report.tables.check_same_data`
        that they ranked the same data.

    Returns
    -------
    Figure
        Large markers are means, bars one standard deviation over seeds, small dots the single seeds.
    """
    figure, (axes,) = new_figure(1, 1, width=7.6, height=4.8)
    for index, (label, group) in enumerate(runs.groupby("label", sort=False)):
        points = group[["bwf", "r1"]].to_numpy(dtype=float)
        style = line_style(index)
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
            label=f"{label} ({len(points)})",
        )
    axes.axvline(0, color=GREY, linewidth=1, zorder=1)
    axes.set(xlabel=f"{_BWF.name} ← lower is better", ylabel=_R1.axis)
    axes.margins(0.1)
    legend_beside(axes, "method (seeds)")
    figure.suptitle("Recall against forgetting, after the last task")
    return figure


@styled
def differences(runs: pd.DataFrame, labels: Sequence[str], reference: str) -> Figure:
    """Draw how far each label is from the reference, paired by seed.

    Parameters
    ----------
    runs : DataFrame
        A row a run: label, seed, and of r1, learnt_r1 (percent) and bwf (points) what is to be drawn.
    labels : sequence of str
        From top to bottom; those without a seed in common with the reference are left out.
    reference : str
        One of them, with runs.

    Returns
    -------
    Figure
        Large markers are mean differences, bars their 95% intervals, small dots the single seeds.
    """
    by_label = {label: group.set_index("seed") for label, group in runs.groupby("label")}
    base = by_label[reference]
    shown = [
        label
        for label in labels
        if label in by_label and label != reference and len(by_label[label].index.intersection(base.index))
    ]
    metrics = _measured(runs)
    figure, panels = new_figure(1, len(metrics), width=12.5, height=1.6 + 0.32 * len(shown), sharey=True)
    for axes, metric in zip(panels, metrics, strict=True):
        for row, label in enumerate(shown):
            values, reference_values = by_label[label][metric.key], base[metric.key]
            pair = paired_difference(values, reference_values)
            dots = (values - reference_values).dropna()
            axes.scatter(dots, np.full(len(dots), row + 0.22), color=GREY, s=10, alpha=0.6, linewidths=0)
            reach = np.nan_to_num([[pair.mean - pair.low], [pair.high - pair.mean]])  # of one seed
            axes.errorbar(pair.mean, row, xerr=reach, fmt="o", color=PALETTE[0], capsize=3)
        axes.axvline(0, color=GREY, linewidth=1, zorder=1)
        axes.set_xlabel(f"{metric.label} (points)\n{metric.direction}")
    panels[0].set_yticks(range(len(shown)), shown)
    panels[0].invert_yaxis()
    figure.suptitle(f"Difference from {reference}")
    return figure


@styled
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
    figure, panels = new_figure(1, 2, width=10.5, height=4)
    looks = {label: line_style(index) for index, label in enumerate(dict.fromkeys(curves.label))}
    for axes, metric in zip(panels, (_R1, _BWF), strict=True):
        sns.lineplot(
            curves,
            x="after",
            y=metric.key,
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
        axes.set_ylabel(metric.axis)
        task_axis(axes, curves.after)
    panels[0].set_title("Recall over all tasks seen so far")
    panels[1].set_title("Backward forgetting")
    panels[1].axhline(0, color=GREY, linewidth=1)
    legend_beside(panels[-1], "run")
    figure.suptitle("Recall and forgetting by task")
    return figure


@styled
def against_parameter(runs: pd.DataFrame, key: str) -> Figure:
    """Draw recall, recall when learnt and forgetting against a parameter.

    Parameters
    ----------
    runs : DataFrame
        A row a run: line (its name in the legend), value (of the parameter, a number), seed, and of r1, learnt_r1
        (percent) and bwf (points) what is to be drawn.
    key : str
        The parameter, such as ``loss.etf_weight``.

    Returns
    -------
    Figure
        Lines are means over seeds, bars one standard deviation.
    """
    metrics = _measured(runs)
    figure, panels = new_figure(1, len(metrics), width=12.5, height=3.8)
    values = np.unique(runs["value"].astype(float))
    logarithmic = values.min() > 0 and values.max() >= _LOG_FROM * values.min()
    for axes, metric in zip(panels, metrics, strict=True):
        for index, (line, group) in enumerate(runs.groupby("line", sort=False)):
            points = group.astype({"value": float}).groupby("value")[metric.key].agg(["mean", "std"])
            spread = points["std"].fillna(0)  # of one seed
            axes.errorbar(points.index, points["mean"], yerr=spread, capsize=3, label=line, **line_style(index))
        if logarithmic:
            axes.set_xscale("log")
            axes.set_xticks([], minor=True)
        axes.set_xticks(values, [f"{value:g}" for value in values])
        axes.set(xlabel=key, ylabel=metric.axis)
        if metric is _BWF:
            axes.axhline(0, color=GREY, linewidth=1)
    legend_beside(panels[-1])
    figure.suptitle(f"Recall and forgetting against {key}")
    return figure
