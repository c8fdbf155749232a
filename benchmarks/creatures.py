"""A look at the built-in videos: python -m benchmarks.creatures docs/figures/creatures.png"""

from __future__ import annotations

import sys
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

from structalign.data.datasets.creatures import _plan, families, film
from structalign.report.figures import save

ROWS, COLUMNS = 5, 2


def main(path: Path) -> None:
    """Draw a video of every other family: four of its images, and its caption."""
    figure, axes = plt.subplots(ROWS, COLUMNS, figsize=(11, 1.75 * ROWS), layout="constrained")
    for family, axis in zip(families(2 * ROWS * COLUMNS)[::2], axes.flat, strict=True):
        clip, scene = _plan(family, np.random.default_rng([0, family.number]), {"test": 1})[0]
        images = film(scene)[1::3]  # [4,H,W,3]
        axis.imshow(np.concatenate(list(images), axis=1))
        axis.set_title(f"{clip.captions[0]}  ({family.weather})", fontsize=8)
        axis.set_axis_off()
    save(figure, path)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
