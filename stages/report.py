"""Turn the last evaluation into the summary, the tables behind `dvc plots`, figures, and one HTML page."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from matplotlib.figure import Figure

from stages.run import run as run_stage
from structalign import paths
from structalign.config.schema import Config
from structalign.report import figures
from structalign.report.page import render
from structalign.report.run import MODALITIES, Run, read_run
from structalign.report.tables import PUBLISHED_NOTE, outcome, tables, write_tables
from structalign.util.files import atomic_write_text, fresh_dir
from structalign.util.log import log


def main(config: Config) -> None:
    """Write `metrics/summary.json`, the CSVs and the page under `plots/`, the figures under `plots/figures/`."""
    run = read_run(paths.record(config.K))
    with fresh_dir(paths.FIGURES) as folder:
        for name, figure in draw(run):
            figures.save(figure, folder / f"{name}.png")
        images = {path.stem: path.read_bytes() for path in folder.iterdir()}
    atomic_write_text(paths.REPORT, render(run, images))
    log.info(outcome(run, write_tables(run)))


def draw(run: Run) -> Iterator[tuple[str, Figure]]:
    """Draw every figure that the run has the data for.

    Parameters
    ----------
    run : Run

    Yields
    ------
    (str, Figure)
        File name without ending, and the figure with its footnote.
    """
    table = tables(run)
    drawn: dict[str, Figure] = {
        "recall_by_task": figures.recall_by_task(table["recall_by_task"]),
        "accuracy_matrix": figures.accuracy_matrix(table["accuracy_matrix"]),
    }
    optional = {
        "recall_by_category": (figures.recall_by_category, "recall_by_category"),
        "loss": (figures.training_loss, "loss"),
        "drift": (figures.drift, "drift"),
        "collapse": (figures.collapse, "geometry"),
        "etf": (figures.etf, "etf"),
    }
    drawn |= {name: function(table[source]) for name, (function, source) in optional.items() if len(table[source])}
    if len(table["published"]) > 1:
        drawn["published"] = figures.against_published(table["published"])
    drawn |= _feature_figures(run)
    for name, figure in drawn.items():
        warnings = [run.warning, PUBLISHED_NOTE if name == "published" else ""]
        figures.footnote(figure, run.label, "; ".join(filter(None, warnings)))
        yield name, figure


def _feature_figures(run: Run) -> dict[str, Figure]:
    """Figures of class means and feature samples, if the evaluation kept them."""
    features = run.features
    names = [name for name, _ in run.categories]
    tasks = [task for _, task in run.categories]
    drawn = {}
    classes = features.get("classes", np.zeros(0)).astype(int)
    means = {key: _means(features, key) for key in MODALITIES if f"{key}/current" in features}
    if means and len(classes) > 1:
        drawn["gram"] = figures.gram(means, [tasks[i] for i in classes], [names[i] for i in classes])
    if "points/text" in features:
        samples = {f"after task {len(run.rows)}": _sample(features, "points")}
        if len(run.rows) > 1:
            samples = {"after task 1": _sample(features, "points/first"), **samples}
        prototypes = dict(zip(classes.tolist(), features.get("prototypes", ()), strict=False))
        for projection in ("pca", "tsne"):
            drawn[f"features_{projection}"] = figures.feature_map(samples, tasks, prototypes, projection, run.seed)
    return drawn


def _means(features: dict[str, np.ndarray], modality: str) -> np.ndarray:
    """Present class means, projected if the method has prototypes."""
    return features.get(f"{modality}/aligned", features[f"{modality}/current"])


def _sample(features: dict[str, np.ndarray], prefix: str) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Features and categories of the points of each modality."""
    return {key: (features[f"{prefix}/{key}"], features[f"{prefix}/{key}_category"]) for key in MODALITIES}


if __name__ == "__main__":
    run_stage(main)
