"""Describe all metrics in Markdown, from their tables.

python -m structalign.report.metric_docs > docs/metrics.md
"""

from __future__ import annotations

from collections.abc import Sequence

from structalign.evaluation.geometry import GEOMETRY
from structalign.evaluation.metric_table import COST, METRICS, Metric

_HEAD = """# Metrics

Written by `python -m structalign.report.metric_docs > docs/metrics.md` from the tables that everything else reads
(`structalign/evaluation/metric_table.py` and `geometry.py`). METHOD.md, section 5, has the formulas.
"""

_SECTIONS: tuple[tuple[str, str, Sequence[Metric]], ...] = (
    (
        "Retrieval",
        "One value after each task, over all tasks seen by then. `metrics/summary.json` has the values after the "
        "last task, `plots/recall_by_task.csv` all of them.",
        METRICS,
    ),
    (
        "Geometry of the class means",
        "One value after each task and for each modality, in `plots/geometry.csv`; `plots/etf.csv` has alignment "
        "and angle error for the classes of each task. They compare the mean feature of every class seen so far "
        "with a simplex equiangular tight frame, in which all classes have the same norm and every pair has the "
        "same angle, the largest that they can all have. Unless a paragraph says otherwise, the mean over all "
        "classes is subtracted first, because features of one modality share a large common part. If the method "
        "projects features to prototypes, the projected ones are measured.",
        GEOMETRY,
    ),
    (
        "Cost",
        "Trained parameters stand in `metrics/summary.json`. Seconds and memory differ from run to run, so they lie "
        "in `.cache/cost`, outside of everything that DVC or git tracks; on the machine that trained, "
        "`structalign show` prints seconds, and `structalign compare` both.",
        COST,
    ),
)


def describe() -> str:
    """Return the whole of docs/metrics.md."""
    return "\n".join([_HEAD, *(_section(*section) for section in _SECTIONS)])


def _section(title: str, text: str, metrics: Sequence[Metric]) -> str:
    lines = [
        f"## {title}",
        text,
        "",
        "| key | name | unit | better | ideal | range | meaning |",
        "|---|---|---|---|---|---|---|",
    ]
    for metric in metrics:
        ideal = "" if metric.ideal is None else f"{metric.ideal:g}"
        cells = (f"`{metric.key}`", metric.label, metric.unit, metric.better, ideal, metric.range, metric.meaning)
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(describe(), end="")
