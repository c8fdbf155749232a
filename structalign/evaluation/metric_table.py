"""All metrics in one table: key, label, unit, which way is good, how each is computed, and what it means.

Everything that shows numbers reads this table: the record of a run, `metrics/summary.json`, the CSV files and
figures in `plots/`, the report page, `structalign show`, `inspect` and `compare`, and docs/metrics.md. To add a
metric, add an entry to `METRICS`.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import numpy as np

from structalign.evaluation.forgetting import (
    backward_forgetting,
    backward_transfer,
    forward_transfer,
    learnt,
    max_forgetting,
)


@dataclass(frozen=True)
class Metric:
    """One metric, or one measure of geometry or cost.

    Attributes
    ----------
    key : str
        Name in JSON files and CSV columns.
    label : str
        Name in tables and figures.
    unit : str
        Such as ``%``; empty for a plain number.
    better : {"higher", "lower", ""}
        Which way is good; empty for a number that only describes.
    ideal : float or None
        Value of a perfect result; None if there is none.
    range : str
        Possible values, such as ``0 to 100``.
    meaning : str
        One paragraph.
    compute : callable
        Takes `Measured` (metrics), class means (geometry) or the costs of all tasks, and returns a number, or None if
        it does not apply.
    headline : bool
        Whether the report page and `structalign show` print it.
    panel : str
        Title of the panel of the figure by task in which it is drawn; empty: not drawn.
    colour, line : str
        In that panel: the metric whose colour it shares, and the kind of line (a key of
        `structalign.report.figures.run.LINES`).
    """

    key: str
    label: str
    unit: str
    better: Literal["higher", "lower", ""]
    ideal: float | None
    range: str
    meaning: str
    compute: Callable[[Any], float | None] = field(repr=False)
    headline: bool = False
    panel: str = ""
    colour: str = ""
    line: str = "text to video"

    @property
    def name(self) -> str:
        """Label with unit, such as `R@1 (%)`."""
        return f"{self.label} ({self.unit})" if self.unit else self.label

    @property
    def direction(self) -> str:
        """Which way is good, such as `↑ higher is better`; empty if neither is."""
        return {"higher": "↑ higher is better", "lower": "↓ lower is better", "": ""}[self.better]

    @property
    def axis(self) -> str:
        """Label of an axis: name and direction."""
        return "\n".join(filter(None, (self.name, self.direction)))


@dataclass(frozen=True)
class Measured:
    """What metrics are computed from, after a task t.

    Attributes
    ----------
    ranks : ndarray, shape (Q,)
        Rank of each query's own video among all seen videos, from 1.
    caption_ranks : ndarray, shape (V,)
        Rank of each video's best caption among those of other videos, from 1.
    zero_shot_ranks : ndarray, shape (Q,)
        `ranks` for the untouched CLIP.
    queries : list of str, length Q
        Captions.
    target : ndarray, shape (Q,)
        Number of each query's own video.
    num_videos : int
        Videos of all seen tasks.
    train_videos : ndarray, shape (Q,)
        Training videos of each query's category.
    accuracy : list of list of float
        Rows 1..t of A: R@1 (percent) of each task within its own gallery.
    categories : list of int
        Number of categories of each seen task.
    before, untouched : list of float
        R@1 (percent) of tasks 2..t within their own galleries: just before each was learnt, and of the
        untouched CLIP.
    earlier_r1 : list of float
        R@1 over all seen tasks after each of tasks 1..t - 1.
    val_r1 : float, optional
        R@1 over the validation videos of all seen tasks.
    """

    ranks: np.ndarray
    caption_ranks: np.ndarray
    zero_shot_ranks: np.ndarray
    queries: list[str]
    target: np.ndarray
    num_videos: int
    train_videos: np.ndarray
    accuracy: list[list[float]]
    categories: list[int]
    before: list[float]
    untouched: list[float]
    earlier_r1: list[float]
    val_r1: float | None = None


def recall_at(ranks: np.ndarray, cutoff: int) -> float:
    """Share (percent) of ranks (Q,) that are at most `cutoff`."""
    return float((ranks <= cutoff).mean() * 100)


def recall_ceiling(queries: Sequence[str], target: Sequence[int], cutoff: int = 1) -> float:
    """Highest possible recall at `cutoff`, in percent: queries with equal captions get equal rankings.

    Captions that differ in case and spaces alone are equal, because the tokenizer reads them alike.

    Parameters
    ----------
    queries : sequence of str, length Q
    target : sequence of int, length Q
        Number of each query's own video.
    """
    videos: dict[str, Counter[int]] = defaultdict(Counter)
    for query, video in zip(queries, target, strict=True):
        videos[" ".join(query.lower().split())][int(video)] += 1
    found = sum(count for group in videos.values() for _, count in group.most_common(cutoff))
    return 100 * found / len(queries)


def _recall(cutoff: int, measured: Measured) -> float:
    return recall_at(measured.ranks, cutoff)


def _recall_of_half(measured: Measured, rare: bool) -> float | None:
    """R@1 of the queries whose categories have fewer, or more, training videos than the median query's."""
    distance = measured.train_videos - np.median(measured.train_videos)
    half = distance < 0 if rare else distance > 0
    return recall_at(measured.ranks[half], 1) if half.any() else None


def _video_to_text(cutoff: int, measured: Measured) -> float:
    return recall_at(measured.caption_ranks, cutoff)


METRICS: tuple[Metric, ...] = (
    *(
        Metric(
            key=f"r{cutoff}",
            label=f"R@{cutoff}",
            unit="%",
            better="higher",
            ideal=100,
            range="0 to 100",
            meaning=f"Recall at {cutoff}: share of text queries of all seen tasks whose own video is "
            + ("ranked first" if cutoff == 1 else f"among the first {cutoff}")
            + " of the videos of all seen tasks. Ties count against the query.",
            compute=partial(_recall, cutoff),
            headline=True,
            panel="Recall over all seen tasks",
            colour=f"R@{cutoff}",
        )
        for cutoff in (1, 5, 10)
    ),
    Metric(
        key="val_r1",
        label="validation R@1",
        unit="%",
        better="higher",
        ideal=100,
        range="0 to 100",
        meaning="R@1 of the validation queries of all seen tasks against galleries of validation videos alone, which "
        "are smaller than those of the test videos. Choose parameters and epochs by it.",
        compute=lambda measured: measured.val_r1,
    ),
    Metric(
        key="medr",
        label="median rank",
        unit="",
        better="lower",
        ideal=1,
        range="1 to the number of seen videos",
        meaning="Median, over the text queries of all seen tasks, of the rank of a query's own video; 1 is best.",
        compute=lambda measured: float(np.median(measured.ranks)),
        headline=True,
    ),
    *(
        Metric(
            key=f"{kind}_r1",
            label=f"R@1 of {kind} categories",
            unit="%",
            better="higher",
            ideal=100,
            range="0 to 100",
            meaning=f"R@1 of the queries whose categories have {than} training videos than the median query's. There "
            "is none if all categories have as many.",
            compute=partial(_recall_of_half, rare=kind == "rare"),
        )
        for kind, than in (("rare", "fewer"), ("frequent", "more"))
    ),
    Metric(
        key="meanr",
        label="mean rank",
        unit="",
        better="lower",
        ideal=1,
        range="1 to the number of seen videos",
        meaning="Mean of the same ranks; a few queries that are ranked last weigh much.",
        compute=lambda measured: float(measured.ranks.mean()),
    ),
    Metric(
        key="mean_r1",
        label="mean R@1",
        unit="%",
        better="higher",
        ideal=100,
        range="0 to 100",
        meaning="Mean of R@1 over the moments after task 1, 2, ... up to now (average incremental recall). Early "
        "galleries are small and easy, so it is higher than R@1.",
        compute=lambda measured: float(np.mean([*measured.earlier_r1, recall_at(measured.ranks, 1)])),
        headline=True,
    ),
    Metric(
        key="bwf",
        label="BWF",
        unit="points",
        better="lower",
        ideal=None,
        range="-100 to 100; 0: nothing forgotten",
        meaning="Backward forgetting: how many points of R@1 earlier tasks have lost since they were learnt, each "
        "ranked within its own gallery and weighted by its number of categories. Negative: they gained.",
        compute=lambda measured: backward_forgetting(measured.accuracy, measured.categories),
        headline=True,
        panel="Backward forgetting",
    ),
    Metric(
        key="learnt_r1",
        label="R@1 when learnt",
        unit="%",
        better="higher",
        ideal=100,
        range="0 to 100",
        meaning="Mean over the tasks of R@1 within a task's own gallery, right after the task was learnt (learning "
        "accuracy; Riemer et al., 2019): what a method learns, whatever it forgets later.",
        compute=lambda measured: learnt(measured.accuracy),
        headline=True,
    ),
    Metric(
        key="backward_transfer",
        label="backward transfer",
        unit="points",
        better="higher",
        ideal=None,
        range="-100 to 100; 0: nothing forgotten",
        meaning="Mean gain in R@1 of earlier tasks since they were learnt, every task with equal weight (Lopez-Paz "
        "and Ranzato, 2017). It is the negative of BWF if all tasks have the same number of categories.",
        compute=lambda measured: backward_transfer(measured.accuracy),
    ),
    Metric(
        key="max_forgetting",
        label="max forgetting",
        unit="points",
        better="lower",
        ideal=0,
        range="0 to 100",
        meaning="Mean distance of earlier tasks from their best R@1 at any time since they were learnt. Unlike BWF, "
        "a gain in one task does not hide a loss in another.",
        compute=lambda measured: max_forgetting(measured.accuracy),
    ),
    Metric(
        key="forward_transfer",
        label="forward transfer",
        unit="points",
        better="higher",
        ideal=None,
        range="-100 to 100; 0: earlier tasks did not matter",
        meaning="Mean over tasks 2, 3, ... of R@1 just before the task is learnt, minus R@1 of the untouched CLIP, "
        "both scored alike within the task's own gallery (Lopez-Paz and Ranzato, 2017). Positive: what was "
        "learnt helps with what is still unknown. Negative: CLIP's general knowledge is being lost.",
        compute=lambda measured: forward_transfer(measured.before, measured.untouched),
        headline=True,
        panel="Forward transfer",
    ),
    Metric(
        key="r1_ceiling",
        label="R@1 ceiling",
        unit="%",
        better="",
        ideal=100,
        range="0 to 100",
        meaning="The highest R@1 that any model can reach. Queries with equal captions get equal rankings, so only "
        "one of several videos that share a caption can be ranked first. 100 if no two videos share a caption.",
        compute=lambda measured: recall_ceiling(measured.queries, measured.target.tolist()),
    ),
    Metric(
        key="zero_shot_r1",
        label="R@1 of zero-shot CLIP",
        unit="%",
        better="",
        ideal=None,
        range="0 to 100",
        meaning="R@1 of the untouched CLIP on the same queries and videos, ranked by the cosine of global features: "
        "what a method starts from.",
        compute=lambda measured: recall_at(measured.zero_shot_ranks, 1),
        panel="Recall over all seen tasks",
        colour="R@1",
        line="zero-shot CLIP",
    ),
    Metric(
        key="chance_r1",
        label="R@1 by chance",
        unit="%",
        better="",
        ideal=None,
        range="0 to 100",
        meaning="R@1 of a random ranking: 100 divided by the number of seen videos.",
        compute=lambda measured: 100 / measured.num_videos,
        panel="Recall over all seen tasks",
        colour="R@1",
        line="chance",
    ),
    *(
        Metric(
            key=f"v2t_r{cutoff}",
            label=f"R@{cutoff}, video to text",
            unit="%",
            better="higher",
            ideal=100,
            range="0 to 100",
            meaning="Share of videos of all seen tasks whose best caption is "
            + ("ranked first" if cutoff == 1 else f"among the first {cutoff}")
            + " of the captions of all seen tasks; other captions of the same video do not compete.",
            compute=partial(_video_to_text, cutoff),
            panel="Recall over all seen tasks",
            colour=f"R@{cutoff}",
            line="video to text",
        )
        for cutoff in (1, 5, 10)
    ),
    Metric(
        key="v2t_medr",
        label="median rank, video to text",
        unit="",
        better="lower",
        ideal=1,
        range="1 to the number of seen captions",
        meaning="Median, over the videos of all seen tasks, of the rank of a video's best caption.",
        compute=lambda measured: float(np.median(measured.caption_ranks)),
    ),
    Metric(
        key="v2t_meanr",
        label="mean rank, video to text",
        unit="",
        better="lower",
        ideal=1,
        range="1 to the number of seen captions",
        meaning="Mean of the same ranks.",
        compute=lambda measured: float(measured.caption_ranks.mean()),
    ),
)

COST: tuple[Metric, ...] = (
    Metric(
        key="trained_parameters",
        label="trained parameters",
        unit="",
        better="lower",
        ideal=0,
        range="0 to the number of parameters",
        meaning="Numbers that get gradients: the most in any one task.",
        compute=lambda costs: max((cost["trained_parameters"] for cost in costs), default=None),
    ),
    Metric(
        key="train_seconds",
        label="training",
        unit="s",
        better="lower",
        ideal=0,
        range="at least 0",
        meaning="Wall-clock time of the training loops of all tasks, on the machine that ran them.",
        compute=lambda costs: _over_all(sum, "seconds", costs),
    ),
    Metric(
        key="seconds_per_task",
        label="training per task",
        unit="s",
        better="lower",
        ideal=0,
        range="at least 0",
        meaning="Mean over the tasks that trained: joint training has one, zero-shot CLIP none.",
        compute=lambda costs: _over_all(np.mean, "seconds", [cost for cost in costs if cost["steps"]]),
    ),
    Metric(
        key="peak_memory_mb",
        label="peak memory",
        unit="MB",
        better="lower",
        ideal=0,
        range="at least 0",
        meaning="Most memory that any task's training held: of the GPU if it trained on one, else of the process "
        "(of a quick run: evaluation included).",
        compute=lambda costs: _over_all(max, "peak_memory_mb", costs),
    ),
)
"""What training took, from the costs of all tasks. Seconds and memory differ from run to run: see `util.cost`."""


def _over_all(function: Callable, key: str, costs: Sequence[Mapping[str, float]]) -> float | None:
    """Apply a function to one number of every task; None if a task's is unknown or there are no tasks."""
    values = [cost.get(key) for cost in costs]
    return None if not values or None in values else float(function(values))


def computed(table: Sequence[Metric], context: object) -> dict[str, float]:
    """Compute all metrics of a table that apply, by key."""
    values = {metric.key: metric.compute(context) for metric in table}
    return {key: value for key, value in values.items() if value is not None}


def panels() -> dict[str, list[Metric]]:
    """Metrics that the figure by task draws, by the title of their panel."""
    found: dict[str, list[Metric]] = {}
    for metric in METRICS:
        if metric.panel:
            found.setdefault(metric.panel, []).append(metric)
    return found
