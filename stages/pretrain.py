"""Stage pretrain: the tiny CLIP of the built-in benchmark, whose weights are committed.

No other stage waits for it (`pretrain/dvc.yaml`, frozen): it takes 17 minutes on one core.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import pandas as pd

from structalign.pretraining.pretrain import STEPS, Pretraining
from structalign.pretraining.tiny_clip import WEIGHTS, store
from structalign.report.figures import save
from structalign.report.figures.pretraining import pretraining
from structalign.util.command import errors_in_one_line, parse
from structalign.util.files import atomic_write_text
from structalign.util.log import progress
from structalign.util.seeding import configure_numerics

EVERY = 50
"""Steps between two points of the curve."""

CURVE = Path("docs/tiny_clip.csv")
FIGURE = Path("docs/figures/tiny_clip.png")


def main() -> None:
    """Train the tiny CLIP; write its weights, its learning curve and a figure of it."""
    parser = argparse.ArgumentParser(description=__doc__)
    args = parse(parser)
    with errors_in_one_line(args.debug):
        configure_numerics(1)  # sums, and so the weights, depend on the number of threads
        training = Pretraining(STEPS)
        points = list(progress(training.run(EVERY), STEPS // EVERY, "tiny CLIP", f"{EVERY} steps"))
        store(training.clip.state_dict(), training.read, WEIGHTS)
        table = pd.DataFrame(points).to_csv(index=False, lineterminator="\n", float_format="%.2f")
        atomic_write_text(CURVE, table)
        save(pretraining(points), FIGURE)


if __name__ == "__main__":
    main()
