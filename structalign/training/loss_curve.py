"""The loss curve as CSV in long form: a row for each step and term, so that a new term needs no column."""

from __future__ import annotations

import csv
import math
from pathlib import Path

from torch import Tensor

from structalign.methods.base import Terms, total
from structalign.util.errors import UserError

COLUMNS = ("task", "step", "epoch", "lr", "term", "value", "weighted")
"""`value` is the term itself, `weighted` what it adds to the total. The term `total` is what training minimises."""

FLUSH_STEPS = 10
"""Steps between two writes: reading a loss makes a GPU wait, so several are read at once."""


class LossCurve:
    """Writes the loss curve of one task, within a `with` block.

    Parameters
    ----------
    path : Path
        The CSV file; what was there is replaced.
    task : int
        The task, from 1.
    advice : str
        What to do about a loss that is not finite.
    """

    def __init__(self, path: Path, task: int, advice: str = "") -> None:
        self.path, self.task, self.advice = path, task, advice
        self.step = 0
        self.pending: list[tuple[int, int, float, dict[str, tuple[Tensor, Tensor]]]] = []

    def __enter__(self) -> LossCurve:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.unlink(missing_ok=True)  # it may be a link into DVC's cache, which must stay as it is
        self.stream = self.path.open("w", newline="", encoding="utf-8")
        self.writer = csv.writer(self.stream, lineterminator="\n")
        self.writer.writerow(COLUMNS)
        return self

    def __exit__(self, *_: object) -> None:
        self.stream.close()

    def text(self) -> str:
        """Return what has been written so far."""
        self.stream.flush()
        return self.path.read_text(encoding="utf-8")

    def restore(self, text: str) -> None:
        """Continue the curve of an interrupted training."""
        self.stream.seek(0)
        self.stream.truncate()
        self.stream.write(text)
        rows = list(csv.DictReader(text.splitlines()))
        self.step = int(rows[-1]["step"]) if rows else 0

    def add(self, epoch: int, terms: Terms, rate: float) -> None:
        """Note the terms of one step, which stay on their device until `flush`."""
        self.step += 1
        values = {name: (term.value.detach(), term.weighted.detach()) for name, term in terms.items()}
        loss = total(terms).detach()
        self.pending.append((self.step, epoch, rate, {"total": (loss, loss), **values}))

    def flush(self, epoch: int) -> float:
        """Write the noted steps and return the last total.

        Raises
        ------
        UserError
            If a total is not a finite number, with the task, the step and the last good epoch.
        """
        loss = math.nan
        for step, at, rate, values in self.pending:
            loss = float(values["total"][0])
            if not math.isfinite(loss):
                raise UserError(
                    f"task {self.task}, step {step} (epoch {at}): the loss is {loss}; last good epoch: {epoch - 1}. "
                    f"{self.advice}"
                )
            for name, (value, weighted) in values.items():
                row = (self.task, step, at, f"{rate:.3e}", name, f"{value:.6f}", f"{weighted:.6f}")
                self.writer.writerow(row)
        self.stream.flush()
        self.pending.clear()
        return loss
