"""A contact sheet: the frames of the videos that a search found."""

from __future__ import annotations

from collections.abc import Sequence
from textwrap import shorten

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from structalign.report.figures.style import ORANGE, drawable, new_figure, styled
from structalign.search import Hit

HEIGHT = 112
"""Pixels of a frame."""

_BORDER = 4
_MARK, _PLAIN = tuple(round(255 * part) for part in ORANGE), (255, 255, 255)
_LETTERS_AN_INCH = 14


@styled
def contact_sheet(hits: Sequence[Hit], frames: Sequence[np.ndarray]) -> Figure:
    """Draw the frames of each video in a row; frames that a word matches best have a mark around them.

    Parameters
    ----------
    hits : sequence of Hit
    frames : sequence of array, each uint8 (N, H, W, 3)
        Of each hit's video.
    """
    rows = [_row(video, {frame for _, frame in hit.matches}) for hit, video in zip(hits, frames, strict=True)]
    inches = max(7.0, max(row.shape[1] for row in rows) / 100)
    figure, panels = new_figure(len(rows), 1, inches, 1.45 * len(rows))
    texts = drawable([" ".join(f"{hit.category}: {hit.caption}".split()) for hit in hits])
    for panel, row, hit, text in zip(panels, rows, hits, texts, strict=True):
        panel.imshow(row)
        panel.set_anchor("W")
        panel.axis("off")
        title = shorten(f"{hit.rank}. {hit.clip}, {text}", int(inches * _LETTERS_AN_INCH), placeholder=" ...")
        panel.set_title(title, loc="left", fontsize=9, parse_math=False)
    return figure


def _row(video: np.ndarray, matched: set[int]) -> np.ndarray:
    """Frames side by side, each with a border: (H, W, 3)."""
    width = round(HEIGHT * video.shape[2] / video.shape[1])
    row = []
    for number, frame in enumerate(video):
        framed = Image.new("RGB", (width + 2 * _BORDER, HEIGHT + 2 * _BORDER), _MARK if number in matched else _PLAIN)
        framed.paste(Image.fromarray(frame).resize((width, HEIGHT), Image.Resampling.BICUBIC), (_BORDER, _BORDER))
        row.append(np.asarray(framed))
    return np.concatenate(row, axis=1)
