"""The contact sheet of a search."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from structalign.report.figures.hits import contact_sheet
from structalign.report.figures.style import save
from structalign.search import Hit

MARK = (213, 94, 0)


def hit(rank: int, category: str = "c", caption: str = "a caption", frames: tuple[int, ...] = ()) -> Hit:
    return Hit(rank, f"clip{rank}", 1.0, category, 1, caption, [("word", frame) for frame in frames])


def drawn(path: Path, hits: list[Hit], frames: list[np.ndarray]) -> np.ndarray:
    save(contact_sheet(hits, frames), path)
    return np.asarray(Image.open(path).convert("RGB"))


def marked(image: np.ndarray) -> int:
    return int((np.abs(image.astype(int) - MARK).max(axis=2) < 30).sum())


def test_frames_that_a_word_matches_are_framed(tmp_path: Path) -> None:
    grey = np.full((3, 60, 80, 3), 128, np.uint8)
    none, one, two = (
        marked(drawn(tmp_path / "a.png", [hit(1, frames=frames)], [grey])) for frames in [(), (1,), (0, 2, 2)]
    )
    assert none == 0
    assert one > 500
    assert two == pytest.approx(2 * one, rel=0.05)


def test_videos_of_any_shape_stand_below_each_other(tmp_path: Path) -> None:
    frames = [np.full((2, 60, 80, 3), 255, np.uint8), np.full((5, 90, 30, 3), 255, np.uint8)]
    frames[0][:, :, :] = (255, 0, 0)
    frames[1][:, :, :] = (0, 0, 255)
    image = drawn(tmp_path / "a.png", [hit(1), hit(2)], frames).astype(int)
    red, blue = ((image[..., one] - image[..., other] > 200).nonzero()[0] for one, other in [(0, 2), (2, 0)])
    assert red.max() < blue.min()


def test_names_in_any_script_and_long_captions_fit(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    grey = np.full((4, 60, 80, 3), 128, np.uint8)
    hits = [hit(1, "طبخ", "صاروخ"), hit(2, "$a_b$", "many words " * 80), hit(3, "\U0001fb00", "\U000e0101")]
    caplog.set_level(logging.WARNING)
    image = drawn(tmp_path / "a.png", hits, [grey] * 3)
    assert caplog.text.count("no installed font") == 1
    dark = image.max(axis=2) < 100
    assert dark.any()
    assert not dark[:, -3:].any()  # the longest title ends before the edge
