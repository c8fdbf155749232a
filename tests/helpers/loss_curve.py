"""A small training on built-in data whose loss curve is committed, so that refactoring can be checked against it.

    python -m tests.helpers.loss_curve

writes `tests/golden/loss_curve.csv` anew: do so only if results are meant to change, and say why in the commit.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

from stages import backbone, download, frames, split, train
from structalign.config.compose import compose
from structalign.config.schema import Config

ROOT = Path(__file__).resolve().parents[2]
COMMITTED = ROOT / "tests/golden/loss_curve.csv"

# Two tasks, so that teacher and pseudo pairs take part. No dropout: two devices have to agree as well. Small rates:
# other processors round differently, and large steps magnify that.
OVERRIDES = [
    "K=2",
    "seed=0",
    "threads=1",
    "data.categories=4",
    "data.train_videos=4",
    "data.test_videos=1",
    "split.shots=4",
    "split.validation=0",
    "frames.num_frames=2",
    "model.experts=3",
    "model.rank=4",
    "model.dropout=0",
    "train.epochs=2",
    "train.batch_size=8",
    "train.lr_first=3e-4",
    "train.lr_later=3e-4",
    "train.lr_scalars=3e-4",
    "machine.device=cpu",
    "machine.workers=2",
]


def configure(folder: Path, *overrides: str) -> Config:
    """Compose the parameters into a folder, and work there from now on."""
    os.chdir(ROOT)
    compose([*OVERRIDES, *overrides], folder / "params.yaml")
    os.chdir(folder)
    return Config.load()


def prepare(folder: Path) -> None:
    """Make videos, frames, split and CLIP."""
    config = configure(folder)
    for stage in (download, frames, split, backbone):
        stage.main(config)


def train_tasks(folder: Path) -> str:
    """Train both tasks; give their loss curves as one CSV."""
    config = configure(folder)
    train.main(config, 1)
    shutil.copytree("data/gallery/after-00", "data/gallery/after-01")  # training looks at no gallery of earlier tasks
    train.main(config, 2)
    first, second = (Path(f"plots/loss/task-{task:02d}.csv").read_text().splitlines() for task in (1, 2))
    return "\n".join([*first, *second[1:]]) + "\n"


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as name:
        prepare(Path(name))
        curve = train_tasks(Path(name))
        os.chdir(ROOT)
    COMMITTED.parent.mkdir(exist_ok=True)
    COMMITTED.write_text(curve)
