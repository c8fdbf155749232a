"""Every path that the program writes to, relative to the project; `dvc.yaml` names those of the pipeline's outputs.

Neither DVC nor git tracks `.cache` and `data/downloads`. DVC deletes the outputs of a stage before it runs again,
so what has to survive that lies there.
"""

from __future__ import annotations

from pathlib import Path

RAW = Path("data/raw")
FRAMES = Path("data/frames")
FRAME_INDEX = FRAMES / "index.json"
MISSING = FRAMES / "missing.json"
SPLIT = Path("data/split")
GALLERY = Path("data/gallery")
MODELS = Path("models")
CLIP = MODELS / "clip"
METRICS = Path("metrics")
SUMMARY = METRICS / "summary.json"
TRIAL = METRICS / "trial.json"
PLOTS = Path("plots")
RECALL_BY_TASK = PLOTS / "recall_by_task.csv"
FIGURES = PLOTS / "figures"
REPORT = PLOTS / "report.html"

DOWNLOADS = Path("data/downloads")
"""Fetched files: a download of gigabytes survives a run that fails after it, and serves queued runs as well."""
MISSING_VIDEOS = Path("data/missing-videos.txt")
"""Ids of the annotated videos that are not there."""

SEARCHES = PLOTS / "search"
COMPARISONS = PLOTS / "compare"
TUNINGS = PLOTS / "tune"

CACHE = Path(".cache")
LOCKS = CACHE / "locks"
"""One lock for each stage that runs in this folder."""
RESUME = CACHE / "resume"
"""States of trainings that were interrupted."""
COST = CACHE / "cost"
"""Seconds and memory of trainings."""
DECODED = CACHE / "frames"
"""Clips that an unfinished stage `frames` has decoded, in a folder for each state of its code."""
QUICK = CACHE / "quick"
"""A folder for each quick run that has ended, beside what DVC keeps."""
RUNS = CACHE / "runs"
"""Clones, logs and locks of runs."""
JOURNALS = CACHE / "tune"
"""Optuna's journals."""


def raw(data: str) -> Path:
    """What the stage `download` writes for a data set: manifest, split files, and generated videos."""
    return RAW / data


def split(task: int) -> Path:
    """Categories and clips of a task."""
    return SPLIT / f"task-{task:02d}.json"


def checkpoint(task: int) -> Path:
    """The model after a task; that of task 0 is untouched."""
    return MODELS / f"task-{task:02d}"


def loss_curve(task: int) -> Path:
    """The loss curve of a task's training."""
    return PLOTS / f"loss/task-{task:02d}.csv"


def cost(task: int) -> Path:
    """Steps and trained parameters of a task's training, and what identifies it."""
    return METRICS / f"cost/task-{task:02d}.json"


def gallery(task: int) -> Path:
    """The galleries of all tasks up to this one."""
    return GALLERY / f"after-{task:02d}"


def record(task: int) -> Path:
    """Everything measured up to a task."""
    return METRICS / f"task-{task:02d}"


def record_of(model: Path) -> Path:
    """The record that goes with a checkpoint, in the project where the checkpoint lies."""
    model = model.resolve()
    return model.parents[1] / METRICS / model.name
