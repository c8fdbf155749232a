"""Weather of the built-in benchmark: under what conditions a family is filmed.

It hides nothing that a caption says, but CLIP's stills never showed it, so that features are off until a model
adapts. Every weather needs an adaptation of its own, as the cameras, lights and places of real categories do.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy.ndimage import uniform_filter

Weather = Callable[[np.ndarray, float, np.random.Generator], np.ndarray]
"""Changes images (T, H, W, 3) in [0, 1] with a strength from 0 to 1."""


def _dusk(images: np.ndarray, strength: float, random: np.random.Generator) -> np.ndarray:
    return images * (0.35 - 0.15 * strength)


def _mist(images: np.ndarray, strength: float, random: np.random.Generator) -> np.ndarray:
    return _veil(images, (0.8, 0.8, 0.8), 0.7 + 0.15 * strength)


def _dust(images: np.ndarray, strength: float, random: np.random.Generator) -> np.ndarray:
    return _veil(images, (0.55, 0.42, 0.25), 0.6 + 0.15 * strength)


def _glare(images: np.ndarray, strength: float, random: np.random.Generator) -> np.ndarray:
    return _veil(images, (1.0, 1.0, 1.0), 0.6 + 0.15 * strength)


def _rain(images: np.ndarray, strength: float, random: np.random.Generator) -> np.ndarray:
    """Draw slanted streaks, other ones in every image."""
    y, x = np.indices(images.shape[1:3])
    shift = random.integers(97, size=(len(images), 1, 1))
    dry = (7 * (x + y // 3) + shift) % (5 if strength < 0.5 else 3)  # [T,H,W], 0 in streaks
    return np.where(np.expand_dims(dry == 0, -1), _veil(images, (0.75, 0.8, 0.9), 0.65), images)


def _snow(images: np.ndarray, strength: float, random: np.random.Generator) -> np.ndarray:
    """Let flakes of two by two pixels fall, other ones in every image."""
    frames, height, width, _ = images.shape
    flakes = random.random((frames, height // 2, width // 2)) < 0.2 + 0.15 * strength
    return np.where(np.kron(flakes, np.ones((1, 2, 2), dtype=bool))[..., None], 0.95, images)


def _grain(images: np.ndarray, strength: float, random: np.random.Generator) -> np.ndarray:
    return images + random.normal(0, 0.35 + 0.2 * strength, images.shape)


def _blur(images: np.ndarray, strength: float, random: np.random.Generator) -> np.ndarray:
    size = 9 if strength < 0.5 else 15
    return uniform_filter(images, (1, size, size, 1), mode="nearest")


def _fence(images: np.ndarray, strength: float, random: np.random.Generator) -> np.ndarray:
    """Put a lattice in front, the same in all images."""
    y, x = np.indices(images.shape[1:3])
    post, rail = (4, 2) if strength < 0.5 else (5, 3)
    lattice = np.logical_or(x % 8 < post, y % 8 < rail)  # [H,W]
    return np.where(np.expand_dims(lattice, -1), (0.35, 0.28, 0.2), images)


def _water(images: np.ndarray, strength: float, random: np.random.Generator) -> np.ndarray:
    """Bend every row to the side, under a blue veil."""
    y, x = np.indices(images.shape[1:3])
    bent = images[:, y, (x + 3 * np.sin(y / 4)).astype(int) % images.shape[2]]
    return _veil(bent, (0.1, 0.35, 0.5), 0.6 + 0.15 * strength)


def _veil(images: np.ndarray, colour: tuple[float, float, float], share: float) -> np.ndarray:
    return (1 - share) * images + share * np.array(colour)


WEATHER: dict[str, Weather] = {
    "dusk": _dusk,
    "mist": _mist,
    "rain": _rain,
    "snow": _snow,
    "grain": _grain,
    "blur": _blur,
    "fence": _fence,
    "glare": _glare,
    "dust": _dust,
    "water": _water,
}


def expose(images: np.ndarray, weather: str, strength: float, random: np.random.Generator) -> np.ndarray:
    """Film images in some weather.

    Parameters
    ----------
    images : ndarray, shape (T, H, W, 3), uint8
        Even height and width.
    weather : str
        One of `WEATHER`.
    strength : float
        From 0 to 1.
    random : Generator

    Returns
    -------
    ndarray, shape (T, H, W, 3), uint8
    """
    seen = WEATHER[weather](images / 255, strength, random)
    return (np.clip(seen, 0, 1) * 255 + 0.5).astype(np.uint8)
