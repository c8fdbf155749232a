"""Every output of the pipeline by its path, relative to the project; `dvc.yaml` names the same ones."""

from __future__ import annotations

from pathlib import Path

RAW = Path("data/raw")
FRAMES = Path("data/frames")
MISSING = FRAMES / "missing.json"
SPLIT = Path("data/split")
CLIP = Path("models/clip")
SUMMARY = Path("metrics/summary.json")
TRIAL = Path("metrics/trial.json")
PLOTS = Path("plots")
RECALL_BY_TASK = PLOTS / "recall_by_task.csv"


def split(task: int) -> Path:
    """Categories and clips of a task."""
    return SPLIT / f"task-{task:02d}.json"


def checkpoint(task: int) -> Path:
    """The model after a task; that of task 0 is untouched."""
    return Path(f"models/task-{task:02d}")


def loss_curve(task: int) -> Path:
    """The loss curve of a task's training."""
    return PLOTS / f"loss/task-{task:02d}.csv"


def cost(task: int) -> Path:
    """Time and memory of a task's training."""
    return Path(f"metrics/cost/task-{task:02d}.json")


def gallery(task: int) -> Path:
    """The galleries of all tasks up to this one."""
    return Path(f"data/gallery/after-{task:02d}")


def record(task: int) -> Path:
    """Everything measured up to a task."""
    return Path(f"metrics/task-{task:02d}")
