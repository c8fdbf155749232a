"""The page of a run: its numbers, its main figures, and queries with what they found after each task.

One HTML file without scripts, fonts or pictures from elsewhere: it opens from a disk, a mail or a cache. Captions
and names come from users' data, so everything is escaped, and a content policy forbids whatever got through.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined

from structalign.evaluation.geometry import GEOMETRY
from structalign.evaluation.metric_table import METRICS
from structalign.report.run import Run
from structalign.report.tables import PUBLISHED_NOTE, summary

FIGURES = {
    "recall_by_task": "Recall over all seen tasks, backward forgetting and forward transfer, after each task",
    "accuracy_matrix": "Accuracy matrix: recall of each task's queries within its own gallery, after each task",
    "recall_by_category": "Recall of each category's queries over the videos of all seen tasks, after the last task",
    "published": f"Against published results on the same benchmark ({PUBLISHED_NOTE})",
    "etf": "How close the classes of each task are to the simplex ETF, when learnt and after later tasks",
    "collapse": "How close the class means of all seen tasks are to a simplex ETF, measure by measure",
    "drift": "How far class means have moved since they were learnt",
    "loss": "Training loss by task",
}
"""Figures on the page, in their order, with what a reader who cannot see them is told."""

KINDS = {
    "lost": "Found when learnt, lost since",
    "kept": "Found after every task",
    "varied": "Found at times",
    "never": "Never found",
}
"""Headings of the kinds of `structalign.evaluation.examples.kind_of`, in the order of the page."""

_TEMPLATE = Path(__file__).with_name("page.html.j2")


def render(run: Run, figures: Mapping[str, bytes]) -> str:
    """Lay out the page of a run.

    Parameters
    ----------
    run : Run
    figures : mapping of str to bytes
        PNG images by name; those of `FIGURES` are shown, if they are given.

    Returns
    -------
    str
        A whole HTML document; equal input gives equal text.
    """
    shown = run.shown or {"top": 0, "queries": [], "videos": {}}
    queries = [_query(query, shown["videos"]) for query in shown["queries"]]
    numbers = summary(run)
    measured = {key for measures in run.rows[-1].get("geometry", {}).values() for key in measures}
    shown_metrics = [metric for metric in METRICS if metric.key in numbers]
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(_TEMPLATE.read_text(encoding="utf-8")).render(
        run=run,
        numbers=numbers,
        headlines=[metric for metric in shown_metrics if metric.headline],
        metrics=shown_metrics,
        geometry=[measure for measure in GEOMETRY if measure.key in measured],
        top=shown["top"],
        groups=[(name, some) for kind, name in KINDS.items() if (some := [q for q in queries if q["kind"] == kind])],
        figures=[(_png(figures[name]), text) for name, text in FIGURES.items() if name in figures],
    )


def _query(query: Mapping[str, Any], videos: Mapping[str, Any]) -> dict[str, Any]:
    """Replace the numbers of a query's own video and results by the videos themselves."""
    own = _video(videos[str(query["video"])])
    moments = [
        {
            "after": moment["after"],
            "rank": moment["rank"],
            "of": moment["of"],
            "found": moment["rank"] <= len(moment["top"]),
            "results": [_result(number, query["video"], own, videos) for number in moment["top"]],
        }
        for moment in query["history"]
    ]
    return {"kind": query["kind"], "text": query["query"], "own": own, "moments": moments}


def _result(number: int, target: int, own: Mapping[str, Any], videos: Mapping[str, Any]) -> dict[str, Any]:
    video = _video(videos[str(number)])
    near = "near" if video["category"] == own["category"] else "miss"
    return {**video, "verdict": "hit" if number == target else near}


def _video(video: Mapping[str, Any]) -> dict[str, Any]:
    """Add a video's pictures as data URIs, and the one that represents it."""
    pictures = [f"data:image/jpeg;base64,{picture}" for picture in video["pictures"]]
    return {**video, "pictures": pictures, "picture": pictures[len(pictures) // 2]}


def _png(image: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(image).decode('ascii')}"
