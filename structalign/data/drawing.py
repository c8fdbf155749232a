"""Drawing of the built-in benchmark: coloured bodies with a core on patterned backgrounds.

Everything is a function of coordinates in [-1, 1], for a batch of B images at once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

COLOURS = ("red", "yellow", "green", "cyan", "blue", "pink")
SHAPES = ("circle", "square", "triangle", "cross")
"""Outlines that CLIP's stills show; no video does."""

PATTERNS = ("bars", "pillars", "slopes", "checks", "dots", "grid", "rings", "waves", "speckles", "fog")
TONES = ("dark", "pale")

Outline = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""Signed distance (b, H, W) to a unit-sized outline at coordinates (b, H, W): negative inside."""


def draw(
    pattern: np.ndarray,
    tone: np.ndarray,
    hue: np.ndarray,
    core: np.ndarray,
    outlines: Sequence[Outline],
    outline: np.ndarray,
    centre: np.ndarray,
    radius: np.ndarray,
    tilt: np.ndarray,
    phase: np.ndarray,
    size: int,
    eyes: bool = False,
) -> np.ndarray:
    """Draw B images.

    Parameters
    ----------
    pattern, tone, hue, core : ndarray, shape (B,), int
        Positions in `PATTERNS`, `TONES` and `COLOURS` (of the body and of its core). `pattern` and `phase` may have
        one row for all images.
    outlines : sequence of Outline
    outline : ndarray, shape (B,), int
        Position in `outlines`.
    centre : ndarray, shape (B, 2)
        x and y of the body, from -1 (left, top) to 1.
    radius, tilt : ndarray, shape (B,)
        Of the body; a radius of 0 hides it, a tilt of 0 is upright (radians).
    phase : ndarray, shape (B, 2)
        Shifts the background's pattern, in [0, 1).
    size : int
        Height and width in pixels.
    eyes : bool
        Two of them, on the core.

    Returns
    -------
    ndarray, shape (B, size, size, 3), uint8
    """
    axis = (np.arange(size) + 0.5) / size * 2 - 1
    x, y = np.meshgrid(axis, axis)  # [H,W]
    light = _background(pattern, phase, x, y)  # [B,H,W]
    low, high = np.where(tone == 0, 0.0, 0.5)[:, None, None], np.where(tone == 0, 0.5, 1.0)[:, None, None]
    canvas = (low + (high - low) * light)[..., None].repeat(3, -1)  # [B,H,W,3]
    pixels = radius[:, None, None] * size / 2  # in a unit of u or v
    dx = (x - centre[:, 0, None, None]) / np.maximum(radius, 1e-3)[:, None, None]
    dy = (y - centre[:, 1, None, None]) / np.maximum(radius, 1e-3)[:, None, None]
    cos, sin = np.cos(tilt)[:, None, None], np.sin(tilt)[:, None, None]
    u, v = cos * dx + sin * dy, cos * dy - sin * dx  # [B,H,W]
    body = np.empty_like(u)
    for number in np.unique(outline):
        chosen = outline == number
        body[chosen] = outlines[number](u[chosen], v[chosen])
    shade = 1 - 0.18 * np.clip(v, -1, 1)[..., None]  # lit from above
    layers = [(body, palette()[hue]), (np.hypot(u, v) - 0.5, palette()[core])]
    if eyes:
        for part, colour in ((0.15, 1.0), (0.08, 0.0)):
            layers.append((np.hypot(np.abs(u) - 0.22, v + 0.14) - part, np.full((len(u), 3), colour)))
    for distance, colour in layers:
        cover = (np.clip(0.5 - distance * pixels, 0, 1) * (radius > 0)[:, None, None])[..., None]
        paint = np.clip(colour[:, None, None, :] * shade, 0, 1)  # [B,H,W,3]
        canvas = canvas * (1 - cover) + paint * cover
    return (canvas * 255 + 0.5).astype(np.uint8)


def palette() -> np.ndarray:
    """RGB of `COLOURS`, of roughly equal lightness."""
    return np.array(
        [
            [0.93, 0.16, 0.14],
            [0.95, 0.82, 0.10],
            [0.16, 0.75, 0.22],
            [0.10, 0.78, 0.85],
            [0.18, 0.28, 0.95],
            [0.95, 0.30, 0.80],
        ]
    )


def _background(pattern: np.ndarray, phase: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Brightness in [0, 1] of each image's background: (B, H, W)."""
    result = np.empty((len(pattern), *x.shape))
    for number in np.unique(pattern):
        chosen = pattern == number
        shift_x, shift_y = phase[chosen, 0, None, None], phase[chosen, 1, None, None]
        result[chosen] = _pattern(PATTERNS[number], x[None] + shift_x * 0.5, y[None] + shift_y * 0.5)
    return result


def _pattern(name: str, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """One pattern's brightness at coordinates (b, H, W)."""
    turn = 2 * np.pi * 2
    if name == "bars":
        return (np.sin(turn * y) > 0) + 0.0 * x
    if name == "pillars":
        return (np.sin(turn * x) > 0) + 0.0 * y
    if name == "slopes":
        return (np.sin(turn * (x + y) / 1.4) > 0) + 0.0
    if name == "checks":
        return ((np.sin(turn * x) > 0) ^ (np.sin(turn * y) > 0)) + 0.0
    if name == "dots":
        return (np.cos(turn * x) + np.cos(turn * y) > 0.9) + 0.0
    if name == "grid":
        return ((np.cos(turn * x) > 0.8) | (np.cos(turn * y) > 0.8)) + 0.0
    if name == "rings":
        return (np.sin(turn * 1.2 * np.hypot(x - 0.25, y - 0.25)) > 0) + 0.0
    if name == "waves":
        return 0.5 + 0.5 * np.sin(turn * (y + 0.15 * np.sin(turn * x)))
    if name == "speckles":
        # A hash of coarse cells: noise that is the same in every image of a video.
        cell = np.floor(x * 9) * 12.9898 + np.floor(y * 9) * 78.233
        return np.abs(np.sin(cell) * 43758.5453) % 1.0
    return np.clip(0.5 + 0.45 * y + 0.0 * x, 0, 1)


def _circle(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    return np.hypot(u, v) - 0.95


def _square(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    return np.maximum(np.abs(u), np.abs(v)) - 0.85


def _triangle(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    return np.maximum(np.abs(u) * 0.866 - v * 0.5, v) - 0.55


def _cross(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    upright = np.maximum(np.abs(u) - 0.3, np.abs(v) - 1.1)
    return np.minimum(upright, np.maximum(np.abs(u) - 1.1, np.abs(v) - 0.3))


def _polar(radius: Callable[[np.ndarray], np.ndarray]) -> Outline:
    """Make the outline whose distance from the centre is a function of the angle, from the top."""

    def distance(u: np.ndarray, v: np.ndarray) -> np.ndarray:
        angle, step = np.arctan2(u, -v), 0.01
        slope = (radius(angle + step) - radius(angle - step)) / (2 * step)
        away = np.hypot(u, v)
        return (away - radius(angle)) / np.hypot(1, slope / np.maximum(away, 0.2))

    return distance


OUTLINES: tuple[Outline, ...] = (_circle, _square, _triangle, _cross)
"""Of `SHAPES`."""


def _tooth(turn: np.ndarray) -> np.ndarray:
    """Rise slowly and fall fast, once in a turn from 0 to 1."""
    return np.minimum(turn / 0.85, (1 - turn) / 0.15)


def creature_outline(lobes: int, edge: str, depth: float, stretch: float) -> Outline:
    """Make a creature's outline: `lobes` of the form `edge` around a body that is `stretch` times as high as wide."""
    waves = {
        "petals": lambda angle: (1 + np.cos(lobes * angle)) / 2,
        "spikes": lambda angle: ((1 + np.cos(lobes * angle)) / 2) ** 3,
        "scallops": lambda angle: np.abs(np.cos(lobes * angle / 2)),
        "teeth": lambda angle: _tooth(np.mod(lobes * angle / (2 * np.pi), 1)),
    }
    lobed = _polar(lambda angle: 0.8 * (1 - depth + 2 * depth * waves[edge](angle)))
    widen, flatten = math.sqrt(stretch), 1 / math.sqrt(stretch)
    return lambda u, v: lobed(u * widen, v * flatten) * flatten
