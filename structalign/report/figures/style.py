"""What all figures share: style, saving, footnotes, colours, and small helpers for axes and legends.

Colours are seaborn's colour-blind-safe palette or perceptually even maps. No meaning rests on colour alone if a
marker or a label can carry it too.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import seaborn as sns
from matplotlib import font_manager
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from structalign.util.files import atomic_write_bytes
from structalign.util.log import log

PALETTE = sns.color_palette("colorblind")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "p", "*")
"""One more than there are colours, so that no two of a hundred lines share both."""

ORANGE = PALETTE[3]
GREY = "0.45"
HEAT = "viridis"
CELL_LIMIT = 20
"""Rows up to which a heat map can carry its numbers readably."""

_DOTS_PER_INCH = 150
_FONTS = (
    *("DejaVu Sans", "Noto Sans CJK SC", "Noto Sans CJK JP", "WenQuanYi Zen Hei", "WenQuanYi Micro Hei"),
    *("Droid Sans Fallback", "SimHei", "Microsoft YaHei", "PingFang SC", "Noto Sans Arabic", "Noto Naskh Arabic"),
    *("Noto Sans Devanagari", "Noto Sans Hebrew", "Noto Sans Thai", "Arial Unicode MS", "Unifont"),
)
"""The first ships with matplotlib, so every machine draws the same letters; the others, if the system has them, draw
what it lacks, such as Chinese."""


def _installed(names: Iterable[str]) -> list[str]:
    known = {font.name for font in font_manager.fontManager.ttflist}
    return [name for name in names if name in known]


_STYLE = {
    **sns.axes_style("whitegrid"),
    "axes.titlesize": 11,
    "axes.labelsize": 10,
    "axes.edgecolor": "0.3",
    "figure.titlesize": 13,
    "figure.titleweight": "bold",
    "font.family": _installed(_FONTS),
    "grid.color": "0.9",
    "legend.fontsize": 9,
    "legend.frameon": False,
    "lines.linewidth": 1.8,
    "lines.markersize": 6,
}

styled = mpl.rc_context(_STYLE)
"""Decorator of functions that draw: some defaults are read when a figure is made, others when something is drawn."""


def drawable(names: Sequence[str]) -> list[str]:
    """Replace names that no installed font can draw by numbers, with one line of warning.

    Parameters
    ----------
    names : sequence of str
        Such as names of categories.

    Returns
    -------
    list of str
        The names; ``#3`` for the fourth one if the fonts lack one of its letters.
    """
    letters: set[int] = set()
    for family in _installed(_FONTS):
        letters |= set(font_manager.get_font(font_manager.findfont(family)).get_charmap())
    missing = [index for index, name in enumerate(names) if not {ord(letter) for letter in name} <= letters]
    if missing:
        log.warning(
            f"figures: no installed font has all letters of {len(missing)} names, such as {names[missing[0]]!r}; "
            "figures show their numbers instead (the Noto fonts cover most scripts)"
        )
    return [f"#{index}" if index in missing else name for index, name in enumerate(names)]


def save(figure: Figure, path: str | Path) -> None:
    """Write `figure` as a PNG, whole or not at all; equal figures give equal bytes."""
    image = io.BytesIO()
    # The default metadata name the version of matplotlib.
    figure.savefig(image, format="png", dpi=_DOTS_PER_INCH, metadata={"Software": None})
    atomic_write_bytes(path, image.getvalue())


@styled
def footnote(figure: Figure, run: str, warning: str = "") -> None:
    """Say below a figure which run it shows, and what speaks against its numbers.

    Parameters
    ----------
    figure : Figure
    run : str
        Such as `structalign.report.run.Run.label`.
    warning : str
        Such as "epoch picked on the test set"; makes the whole line bold and orange.
    """
    text = f"{run}\n{warning}" if warning else run
    style = {"color": ORANGE, "fontweight": "bold"} if warning else {"color": GREY}
    figure.supxlabel(text, fontsize=9, **style)


def new_figure(rows: int, columns: int, width: float, height: float, **axes: Any) -> tuple[Figure, np.ndarray]:
    """Make a figure whose layout keeps titles, legends and footnotes off the data; return it and its panels."""
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False, **axes).ravel()


def line_style(index: int) -> dict[str, Any]:
    """Distinguish many lines: by colour and marker, and by dashes once the colours repeat."""
    return {
        "marker": MARKERS[index % len(MARKERS)],
        "color": PALETTE[index % len(PALETTE)],
        "linestyle": "-" if index < len(PALETTE) else "--",
    }


def task_axis(axes: Axes, after: Iterable[int]) -> None:
    """Put a tick on every task, or on every second of many."""
    ticks = sorted(set(after))
    axes.set_xticks(ticks[:: 1 if len(ticks) <= 10 else 2])
    axes.set_xlabel("after learning task")


def legend_beside(axes: Axes, title: str = "") -> None:
    """Put the legend to the right of the panel."""
    many = len(axes.get_legend_handles_labels()[0]) > 16
    axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), title=title or None, ncols=2 if many else 1)


def task_colours(tasks: Sequence[int]) -> dict[int, str]:
    """Give tasks colours from dark to bright, in their order; the palest end of the map is left out."""
    shades = mpl.colormaps[HEAT](np.linspace(0, 0.88, max(len(tasks), 2)))
    return {task: to_hex(shade) for task, shade in zip(tasks, shades, strict=False)}


def unit(vectors: np.ndarray) -> np.ndarray:
    """Scale vectors (M, D) to length 1."""
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True).clip(1e-12)
