"""The built-in benchmark: small generated videos of moving shapes in twenty worlds.

A category is a world: a background of its own (a pattern, dark or pale) and a light of its own, in which the cores
of shapes glow in other colours than their names say, all turned by the same angle. So a `red core` looks green in one
world and blue in the next: what is learnt of the words in one task misleads in another, and fine-tuning forgets. The
shapes around the cores look the same everywhere, which is what an unadapted CLIP finds videos by. Motions have words
that the still-image CLIP has never read.
"""

from __future__ import annotations

import csv
import io
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import av
import numpy as np
from pydantic import Field

from structalign.config.schema import Config
from structalign.config.section import DataSection, Positive
from structalign.data.clips import Clip
from structalign.util.errors import UserError
from structalign.util.files import atomic_write_text
from structalign.util.log import progress
from structalign.util.workers import JobFailed, parallel_map

SIZE = 64
"""Height and width of the videos in pixels."""

NUM_IMAGES = 24
"""Images per video, at 8 per second."""

COLOURS = ("red", "yellow", "green", "cyan", "blue", "pink")
"""In steps of 60 degrees of hue, so that a world's light maps them onto each other."""

SHAPES = ("circle", "square", "triangle", "cross")
MOTIONS = ("sliding", "falling", "rising", "orbiting", "growing", "shrinking", "blinking", "shaking")
PATTERNS = ("bars", "pillars", "slopes", "checks", "dots", "grid", "rings", "waves", "speckles", "fog")
TONES = ("dark", "pale")

LIGHTS = (1, 3, 5, 2, 4, 2, 5, 1, 4, 3, 4, 1, 3, 5, 2, 3, 2, 4, 1, 5)
"""Per world, how many steps of 60 degrees its light turns a core; never 0, which would leave less to learn."""

CAPTIONS = (
    "a {colour} {shape} with a {core} core {motion} over {world}",
    "the {colour} {shape} with {core} core is {motion} in front of {world}",
    "{world} behind a {motion} {colour} {shape} that has a {core} core",
    "on {world} one sees a {shape}, {colour} with a {core} core, {motion}",
)


class DataConfig(DataSection):
    """The built-in benchmark: generated videos, nothing to fetch."""

    name: Literal["shapes"]
    protocol: Literal["fewshot"]
    """Always a seeded draw."""
    categories: Annotated[int, Field(ge=1, le=20)]
    """Worlds, each a category."""
    train_videos: Positive
    """Training videos per category."""
    test_videos: Positive
    """Test videos per category."""


@dataclass(frozen=True)
class World:
    """A category: its background and its light."""

    pattern: int
    tone: int
    light: int

    @property
    def name(self) -> str:
        """What captions call it."""
        return f"{TONES[self.tone]} {PATTERNS[self.pattern]}"


def worlds(count: int) -> list[World]:
    """Return the first `count` of the twenty worlds."""
    combos = [(index % len(PATTERNS), (index // len(PATTERNS) + index) % 2) for index in range(20)]
    return [World(pattern, tone, light) for (pattern, tone), light in zip(combos, LIGHTS, strict=True)][:count]


# Drawing: everything is a function of coordinates in [-1, 1], for a batch of B images at once.


def draw(
    pattern: np.ndarray,
    tone: np.ndarray,
    hue: np.ndarray,
    core: np.ndarray,
    shape: np.ndarray,
    centre: np.ndarray,
    radius: np.ndarray,
    phase: np.ndarray,
    size: int,
) -> np.ndarray:
    """Draw B images.

    Parameters
    ----------
    pattern, tone, hue, core, shape : ndarray, shape (B,), int
        Positions in `PATTERNS`, `TONES`, `COLOURS` (of the shape, and of its core as it looks) and `SHAPES`.
    centre : ndarray, shape (B, 2)
        x and y of the shape, from -1 (left, top) to 1.
    radius : ndarray, shape (B,)
        Of the shape; 0 hides it.
    phase : ndarray, shape (B, 2)
        Shifts the background's pattern, in [0, 1).
    size : int
        Height and width in pixels.

    Returns
    -------
    ndarray, shape (B, size, size, 3), uint8
    """
    axis = (np.arange(size) + 0.5) / size * 2 - 1
    x, y = np.meshgrid(axis, axis)  # [H,W]
    light = _background(pattern, phase, x, y)  # [B,H,W]
    low, high = np.where(tone == 0, 0.0, 0.5)[:, None, None], np.where(tone == 0, 0.5, 1.0)[:, None, None]
    canvas = (low + (high - low) * light)[..., None].repeat(3, -1)  # [B,H,W,3]
    u = (x - centre[:, 0, None, None]) / np.maximum(radius, 1e-3)[:, None, None]
    v = (y - centre[:, 1, None, None]) / np.maximum(radius, 1e-3)[:, None, None]
    edge = _distance(shape, u, v) * radius[:, None, None] * size / 2  # pixels from the outline, negative inside
    inner = (np.hypot(u, v) - 0.5) * radius[:, None, None] * size / 2
    shade = 1 - 0.18 * np.clip(v, -1, 1)[..., None]  # lit from above
    for distance, colour in ((edge, hue), (inner, core)):
        cover = (np.clip(0.5 - distance, 0, 1) * (radius > 0)[:, None, None])[..., None]
        paint = np.clip(_palette()[colour][:, None, None, :] * shade, 0, 1)  # [B,H,W,3]
        canvas = canvas * (1 - cover) + paint * cover
    return (canvas * 255 + 0.5).astype(np.uint8)


def _palette() -> np.ndarray:
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


def _distance(shape: np.ndarray, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Signed distance to each image's unit-sized outline, negative inside: (B, H, W)."""
    r = np.hypot(u, v)
    forms = {
        "circle": lambda i: r[i] - 0.95,
        "square": lambda i: np.maximum(np.abs(u[i]), np.abs(v[i])) - 0.85,
        "triangle": lambda i: np.maximum(np.abs(u[i]) * 0.866 - v[i] * 0.5, v[i]) - 0.55,
        "cross": lambda i: np.minimum(
            np.maximum(np.abs(u[i]) - 0.3, np.abs(v[i]) - 1.1), np.maximum(np.abs(u[i]) - 1.1, np.abs(v[i]) - 0.3)
        ),
    }
    result = np.empty_like(u)
    for number in np.unique(shape):
        chosen = shape == number
        result[chosen] = forms[SHAPES[number]](chosen)
    return result


# Videos


@dataclass(frozen=True)
class Scene:
    """What one video shows."""

    world: World
    colour: int
    core: int
    shape: int
    motion: int
    seed: int

    def caption(self, template: str) -> str:
        """Describe the video; the core is named as it is in white light."""
        return template.format(
            colour=COLOURS[self.colour],
            core=COLOURS[self.core],
            shape=SHAPES[self.shape],
            motion=MOTIONS[self.motion],
            world=self.world.name,
        )


def film(scene: Scene) -> np.ndarray:
    """Draw all images of a video: (NUM_IMAGES, SIZE, SIZE, 3), uint8."""
    random = np.random.default_rng(scene.seed)
    time = np.linspace(0, 1, NUM_IMAGES)  # [T]
    centre, radius = _move(MOTIONS[scene.motion], time, random)
    repeat = np.full(NUM_IMAGES, 0)
    return draw(
        pattern=repeat + scene.world.pattern,
        tone=repeat + scene.world.tone,
        hue=repeat + scene.colour,
        core=repeat + (scene.core + scene.world.light) % len(COLOURS),
        shape=repeat + scene.shape,
        centre=centre,
        radius=radius,
        phase=random.random(2)[None].repeat(NUM_IMAGES, 0),
        size=SIZE,
    )


def _move(motion: str, time: np.ndarray, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Path (T, 2) and radius (T,) of the shape."""
    at = random.uniform(-0.35, 0.35, 2)
    radius = np.full_like(time, random.uniform(0.42, 0.55))
    path = at + np.zeros((len(time), 2))
    if motion == "sliding":
        path[:, 0] = np.linspace(-0.65, 0.65, len(time)) * random.choice([-1, 1])
    elif motion == "falling":
        path[:, 1] = np.linspace(-0.7, 0.7, len(time))
    elif motion == "rising":
        path[:, 1] = np.linspace(0.7, -0.7, len(time))
    elif motion == "orbiting":
        angle = 2 * np.pi * (time + random.random())
        path = 0.5 * np.stack([np.cos(angle), np.sin(angle)], axis=1)
    elif motion == "growing":
        radius = np.linspace(0.2, 0.9, len(time))
    elif motion == "shrinking":
        radius = np.linspace(0.9, 0.2, len(time))
    elif motion == "blinking":
        radius = radius * (np.sin(2 * np.pi * (3 * time + 0.1)) > 0)
    else:
        path = path + 0.12 * np.stack([np.sin(40 * time), np.cos(53 * time)], axis=1)
    return path, radius


def encode(images: np.ndarray) -> bytes:
    """Encode images (T, H, W, 3) as H.264 in MP4; the same images give the same bytes."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4", options={"fflags": "+bitexact"}) as container:
        # A constant quantiser: x264's rate control was seen to give other bytes from one run to the next.
        options = {"qp": "20", "preset": "veryfast", "threads": "1"}
        stream = container.add_stream("libx264", rate=8, options=options)
        stream.height, stream.width, stream.pix_fmt = *images.shape[1:3], "yuv420p"
        for image in images:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())
    return buffer.getvalue()


def prepare(config: Config, folder: Path) -> list[Clip]:
    """Write the videos into the raw folder and list their clips."""
    sizes = config.data.model_dump(exclude={"name", "protocol"})
    return generate(folder, seed=config.seed, workers=config.machine.num_workers, **sizes)


def generate(root: Path, seed: int, categories: int, train_videos: int, test_videos: int, workers: int) -> list[Clip]:
    """Write the videos and captions.csv of the benchmark under `root`.

    Parameters
    ----------
    root : Path
        An existing folder.
    seed : int
        Draws which combinations of colour, shape and motion each world shows, and their details.
    categories : int
        At most 20.
    train_videos, test_videos : int
        Per category. No two videos of a category show the same combination, so that captions single them out.
    workers : int
        Encoding processes; the result does not depend on how many.

    Returns
    -------
    list of Clip
    """
    plans = []
    for number, world in enumerate(worlds(categories)):
        plans += _plan(world, np.random.default_rng([seed, number]), train_videos, test_videos)
    (root / "videos").mkdir()
    jobs = [(scene, root / clip.video) for clip, scene in plans]
    for result in progress(parallel_map(_write_video, jobs, workers), len(jobs), "videos", "video"):
        if isinstance(result, JobFailed):
            raise UserError(f"a process that writes videos died ({result}, perhaps for want of memory): run again")
    clips = [clip for clip, _ in plans]
    atomic_write_text(root / "captions.csv", _captions_csv(clips))
    return clips


def _plan(world: World, random: np.random.Generator, train: int, test: int) -> list[tuple[Clip, Scene]]:
    """Choose what a world's videos show, and what their captions say."""
    # A core neither is called by the colour around it nor looks like it in this world's light.
    steps = [step for step in range(1, len(COLOURS)) if (step + world.light) % len(COLOURS)]
    sizes = (len(COLOURS), len(steps), len(SHAPES), len(MOTIONS))
    combos = random.permutation(math.prod(sizes))[: train + test]
    plans = []
    for number, combo in enumerate(combos):
        colour, other, shape, motion = (int(part) for part in np.unravel_index(combo, sizes))
        core = (colour + steps[other]) % len(COLOURS)
        scene = Scene(world, colour, core, shape, motion, int(random.integers(2**31)))
        split: Literal["train", "test"] = "train" if number < train else "test"
        templates = CAPTIONS if split == "train" else [CAPTIONS[int(random.integers(len(CAPTIONS)))]]
        name = f"{world.name.replace(' ', '-')}-{number:03d}"
        captions = tuple(scene.caption(template) for template in templates)
        clip = Clip(name, f"videos/{name}.mp4", None, None, world.name, split, captions)
        plans.append((clip, scene))
    return plans


def _write_video(job: tuple[Scene, Path]) -> None:
    scene, path = job
    path.write_bytes(encode(film(scene)))


def _captions_csv(clips: list[Clip]) -> str:
    """Write captions as the data set `local` reads them."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["video", "start", "end", "category", "caption", "split"])
    for clip in clips:
        for caption in clip.captions:
            writer.writerow([clip.video, "", "", clip.category, caption, clip.split])
    return buffer.getvalue()


# Stills, for the CLIP stand-in

PROMPTS = (
    [f"a {colour} thing" for colour in COLOURS],
    [f"a thing with a {colour} core" for colour in COLOURS],
    [f"a {shape}" for shape in SHAPES],
    list(TONES),
    list(PATTERNS),
)
"""Per attribute, a text for each of its values; the same order as in `stills`."""


def stills(count: int, size: int, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Draw still images in white light.

    Returns
    -------
    images : ndarray, shape (count, size, size, 3), uint8
    attributes : ndarray, shape (5, count), int
        Colour, colour of the core, shape, tone and pattern.
    captions : list of str
        All five in a sentence, without a word of motion.
    """
    sizes = [len(texts) for texts in PROMPTS]
    hue, other, shape, tone, pattern = (random.integers(n, size=count) for n in sizes)
    core = np.where(other == hue, (hue + 1) % len(COLOURS), other)
    images = draw(
        pattern,
        tone,
        hue,
        core,
        shape,
        centre=random.uniform(-0.5, 0.5, (count, 2)),
        radius=random.uniform(0.35, 0.85, count),
        phase=random.random((count, 2)),
        size=size,
    )
    attributes = np.stack([hue, core, shape, tone, pattern])
    captions = [
        f"a {COLOURS[h]} {SHAPES[s]} with a {COLOURS[c]} core over {TONES[t]} {PATTERNS[p]}"
        for h, c, s, t, p in attributes.T
    ]
    return images, attributes, captions
