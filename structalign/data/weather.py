"""Weather of the built-in benchmark: under what conditions a family is filmed.

It changes the look of what a caption names, and CLIP's stills never showed it, so that features are off until a
model adapts. Some of it covers a part of the picture. Every weather needs an adaptation of its own, as the cameras,
lights and places of real categories do. All of it is about as strong: how many videos of a family CLIP finds without
training must not depend on the family's weather, or recall would be about the few families in mild weather.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy.ndimage import uniform_filter

Weather = Callable[[np.ndarray, np.random.Generator], np.ndarray]
"""Changes images (T, H, W, 3) in [0, 1]."""


def _dusk(images: np.ndarray, random: np.random.Generator) -> np.ndarray:
    return images * 0.2


def _mist(images: np.ndarray, random: np.random.Generator) -> np.ndarray:
    return _veil(images, (0.8, 0.8, 0.8), 0.85)


def _rain(images: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Draw slanted streaks, other ones in every image, under a dark sky."""
    y, x = np.indices(images.shape[1:3])
    shift = random.integers(97, size=(len(images), 1, 1))
    wet = (7 * (x + y // 3) + shift) % 3 == 0  # [T,H,W]
    return _where(wet, (0.75, 0.8, 0.9), images * 0.5)


def _snow(images: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Let white flakes of two by two pixels fall, other ones in every image."""
    return _where(_spots(images, random, size=2, share=0.55), 0.95, images)


def _grain(images: np.ndarray, random: np.random.Generator) -> np.ndarray:
    return images + random.normal(0, 0.9, images.shape)


def _blur(images: np.ndarray, random: np.random.Generator) -> np.ndarray:
    return uniform_filter(images, (1, 25, 25, 1), mode="nearest")


def _fence(images: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Put a lattice in front, the same in all images."""
    y, x = np.indices(images.shape[1:3])
    return _where(np.logical_or(x % 8 < 5, y % 8 < 3), (0.35, 0.28, 0.2), images)


def _glare(images: np.ndarray, random: np.random.Generator) -> np.ndarray:
    return _veil(images, (1.0, 1.0, 1.0), 0.75)


def _dust(images: np.ndarray, random: np.random.Generator) -> np.ndarray:
    return _veil(images, (0.55, 0.42, 0.25), 0.75)


def _water(images: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Bend every row to the side, under a blue veil."""
    y, x = np.indices(images.shape[1:3])
    bent = images[:, y, (x + 4 * np.sin(y / 3)).astype(int) % images.shape[2]]
    return _veil(bent, (0.1, 0.35, 0.5), 0.7)


def _jungle(images: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Hang leaves in front, other ones in every image, in a green light."""
    return _where(_spots(images, random, size=4, share=0.35), (0.1, 0.4, 0.1), _veil(images, (0.2, 0.6, 0.2), 0.4))


def _sunset(images: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Light from the right, the stronger the farther right."""
    share = np.linspace(0.2, 0.95, images.shape[2])[:, None]  # [W,1]
    return (1 - share) * images + share * np.array((1.0, 0.6, 0.3))


def _frost(images: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Cut the image into blocks of one colour, as through patterned glass, under a pale veil."""
    blocks = images.reshape(len(images), images.shape[1] // 8, 8, images.shape[2] // 8, 8, 3).mean((2, 4))
    return _veil(np.kron(blocks, np.ones((1, 8, 8, 1))), (0.9, 0.95, 1.0), 0.4)


def _torch(images: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Light the middle alone."""
    y, x = np.indices(images.shape[1:3])
    away = np.hypot(x / images.shape[2] - 0.5, y / images.shape[1] - 0.5)  # [H,W]
    return images * np.clip(1.3 - 4 * away, 0.05, 1)[..., None]


def _mirage(images: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Show everything four times, a quarter through, under a yellow veil."""
    height, width = images.shape[1:3]
    moves = ((0, 0), (height // 4, width // 3), (-height // 3, width // 4), (height // 2, width // 2))
    seen = np.mean([np.roll(images, move, axis=(1, 2)) for move in moves], axis=0)
    return _veil(seen, (0.9, 0.8, 0.6), 0.4)


def _storm(images: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Lose three of four rows to noise."""
    lost = np.arange(images.shape[1])[:, None] % 4 < 3  # [H,1]
    return _where(lost, random.random((*images.shape[:3], 1)), images)


def _embers(images: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Let sparks fly before dark smoke, other ones in every image."""
    return _where(_spots(images, random, size=2, share=0.2), (1.0, 0.5, 0.1), images * 0.4)


def _moonlight(images: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Leave little but brightness."""
    grey = images.mean(axis=-1, keepdims=True)
    return (0.2 * images + 0.8 * grey) * np.array((0.6, 0.7, 0.9))


def _smoke(images: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Let clouds of soot pass."""
    rough = random.random((len(images), images.shape[1] // 8, images.shape[2] // 8, 1))
    cloud = uniform_filter(np.kron(rough, np.ones((1, 8, 8, 1))), (1, 7, 7, 1), mode="nearest")
    return images * np.clip(1.2 - 2 * cloud, 0.05, 1)


def _ice(images: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Bend every column up and down, under a pale veil."""
    y, x = np.indices(images.shape[1:3])
    bent = images[:, (y + 5 * np.sin(x / 3)).astype(int) % images.shape[1], x]
    return _veil(bent, (0.75, 0.95, 1.0), 0.55)


def _veil(images: np.ndarray, colour: tuple[float, float, float], share: float) -> np.ndarray:
    return (1 - share) * images + share * np.array(colour)


def _spots(images: np.ndarray, random: np.random.Generator, size: int, share: float) -> np.ndarray:
    """Draw squares of `size` pixels that cover a share of each image: bool (T, H, W)."""
    frames, height, width, _ = images.shape
    chosen = random.random((frames, height // size, width // size)) < share
    return np.kron(chosen, np.ones((1, size, size), dtype=bool))


def _where(mask: np.ndarray, one: np.ndarray | tuple[float, ...] | float, other: np.ndarray) -> np.ndarray:
    """Choose by a mask (..., H, W) between colours or images."""
    return np.where(np.expand_dims(mask, -1), one, other)


WEATHER: dict[str, tuple[Weather, float]] = {
    "dusk": (_dusk, 0.69),
    "mist": (_mist, 0.66),
    "rain": (_rain, 0.93),
    "snow": (_snow, 0.93),
    "grain": (_grain, 0.74),
    "blur": (_blur, 0.7),
    "fence": (_fence, 0.69),
    "glare": (_glare, 0.64),
    "dust": (_dust, 0.61),
    "water": (_water, 0.52),
    "jungle": (_jungle, 0.54),
    "sunset": (_sunset, 0.58),
    "frost": (_frost, 1.0),
    "torch": (_torch, 0.8),
    "mirage": (_mirage, 0.84),
    "storm": (_storm, 0.81),
    "embers": (_embers, 0.57),
    "moonlight": (_moonlight, 0.75),
    "smoke": (_smoke, 0.78),
    "ice": (_ice, 0.61),
}
"""What there is, and how far images go towards it, from 0 to 1.

The strengths are those at which the tiny CLIP finds about as many videos of every family without any training:
`python -m benchmarks.weather` shows how many, and finds them.
"""


def expose(images: np.ndarray, weather: str, random: np.random.Generator) -> np.ndarray:
    """Film images in some weather.

    Parameters
    ----------
    images : ndarray, shape (T, H, W, 3), uint8
        Height and width are multiples of 8.
    weather : str
        One of `WEATHER`.
    random : Generator

    Returns
    -------
    ndarray, shape (T, H, W, 3), uint8
    """
    change, strength = WEATHER[weather]
    clear = images / 255
    seen = (1 - strength) * clear + strength * np.clip(change(clear, random), 0, 1)
    return (seen * 255 + 0.5).astype(np.uint8)
