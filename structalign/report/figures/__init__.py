"""Figures of one run and of several: every function takes tables or arrays and returns a matplotlib `Figure`."""

from structalign.report.figures.compare import against_parameter, compare_recall, differences, recall_against_bwf
from structalign.report.figures.features import feature_map, gram
from structalign.report.figures.run import (
    LINES,
    accuracy_matrix,
    against_published,
    collapse,
    drift,
    etf,
    recall_by_category,
    recall_by_task,
    training_loss,
)
from structalign.report.figures.style import footnote, save

__all__ = [
    "LINES",
    "accuracy_matrix",
    "against_parameter",
    "against_published",
    "collapse",
    "compare_recall",
    "differences",
    "drift",
    "etf",
    "feature_map",
    "footnote",
    "gram",
    "recall_against_bwf",
    "recall_by_category",
    "recall_by_task",
    "save",
    "training_loss",
]
