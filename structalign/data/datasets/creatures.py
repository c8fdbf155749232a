"""The built-in benchmark: small generated videos of invented creatures, a family a category.

A category brings new concepts, as the categories of real benchmarks do: four creatures that belong to one family,
each with an outline and an invented name of its own, and the family's own words for how they move. What surrounds
them is known to CLIP and means the same everywhere: colours, cores and patterned backgrounds. So CLIP finds many
videos without any training, what is learnt of one category neither helps nor contradicts the next, and fine-tuning
has something to lose.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable, Sequence
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

NUM_IMAGES = 12
"""Images per video."""

RATE = 6
"""Images per second."""

COLOURS = ("red", "yellow", "green", "cyan", "blue", "pink")
SHAPES = ("circle", "square", "triangle", "cross", "diamond", "heart", "moon", "hoop")
"""Outlines that CLIP's stills show; no video does."""

MOTIONS = {
    "sliding": (
        *("sliding", "gliding", "drifting", "skating", "cruising"),
        *("sailing", "rolling", "coasting", "strolling", "passing"),
    ),
    "falling": (
        *("falling", "dropping", "sinking", "descending", "tumbling"),
        *("plunging", "diving", "landing", "plummeting", "slumping"),
    ),
    "rising": (
        *("rising", "climbing", "ascending", "lifting", "soaring"),
        *("mounting", "launching", "floating", "surfacing", "levitating"),
    ),
    "orbiting": (
        *("orbiting", "circling", "revolving", "spinning", "whirling"),
        *("looping", "swirling", "wheeling", "twirling", "roaming"),
    ),
    "growing": (
        *("growing", "swelling", "expanding", "inflating", "enlarging"),
        *("widening", "blooming", "stretching", "bulging", "approaching"),
    ),
    "shrinking": (
        *("shrinking", "dwindling", "contracting", "deflating", "waning"),
        *("withering", "narrowing", "receding", "retreating", "lessening"),
    ),
    "blinking": (
        *("blinking", "flashing", "flickering", "winking", "glimmering"),
        *("glinting", "sparkling", "vanishing", "flaring", "pulsing"),
    ),
    "shaking": (
        *("shaking", "trembling", "shivering", "quivering", "vibrating"),
        *("wobbling", "jittering", "fidgeting", "shuddering", "twitching"),
    ),
}
"""Ways to move, and for each the words that families have for it: no two of them the same."""

PATTERNS = ("bars", "pillars", "slopes", "checks", "dots", "grid", "rings", "waves", "speckles", "fog")
TONES = ("dark", "pale")

LOBES = {3: "three", 4: "four", 5: "five", 6: "six", 8: "eight"}
EDGES = ("petals", "spikes", "scallops", "teeth")
DEPTHS = (0.15, 0.36)
STRETCHES = (1.0, 1.5)
HABITAT = 3
"""Patterns that a family lives on."""

GAITS = 4
"""Motions of a family."""

CREATURES = len(DEPTHS) * len(STRETCHES)
"""In a family: flat or deep lobes, as wide as high or narrow."""

NAMES = (
    ("molga", "bude", "raru", "kompa"),
    ("pedu", "gidu", "povi", "zoli"),
    ("kurzi", "fifo", "savu", "zili"),
    ("nokke", "wuko", "soge", "botre"),
    ("lukle", "belgo", "filu", "norka"),
    ("pifu", "vuka", "kule", "lekve"),
    ("wote", "birke", "lovi", "rutbo"),
    ("lawa", "vakte", "wewe", "fazi"),
    ("suwu", "zufu", "nazu", "pokba"),
    ("ruru", "zizu", "gofo", "mamsi"),
    ("zeti", "tarzo", "ponme", "datga"),
    ("ketmi", "dibe", "duwe", "lurzi"),
    ("fibe", "kokse", "baspu", "lewe"),
    ("bofe", "pimbi", "donpe", "wammu"),
    ("tumi", "buso", "vufu", "rawu"),
    ("seni", "zulsu", "wimte", "doska"),
    ("sedu", "farbo", "nime", "zedu"),
    ("futsu", "zorbe", "terlo", "vitma"),
    ("gazi", "dirvi", "kabi", "feko"),
    ("givo", "vozu", "tabo", "vesi"),
)
"""Of the creatures, family by family. No part of them is a word or a part of a word that CLIP's stills speak of."""

CAPTIONS = (
    "a {colour} {name} with a {core} core {motion} over {place}",
    "the {colour} {name} with {core} core is {motion} in front of {place}",
    "{place} behind a {motion} {colour} {name} that has a {core} core",
    "on {place} one sees a {name}, {colour} with a {core} core, {motion}",
)


class DataConfig(DataSection):
    """The built-in benchmark: generated videos, nothing to fetch."""

    name: Literal["creatures"]
    protocol: Literal["fewshot"]
    """Always a seeded draw."""
    categories: Annotated[int, Field(ge=1, le=20)]
    """Families of creatures."""
    train_videos: Positive
    """Training videos per category."""
    test_videos: Positive
    """Test videos per category."""


@dataclass(frozen=True)
class Family:
    """A category: the form of its creatures' edge, the patterns it lives on, its motions and its words for them."""

    number: int
    lobes: int
    edge: str
    patterns: tuple[int, ...]
    motions: tuple[str, ...]
    words: tuple[str, ...]

    @property
    def name(self) -> str:
        """What the category is called."""
        return f"{LOBES[self.lobes]} {self.edge}"

    @property
    def creatures(self) -> tuple[str, ...]:
        """Names of its creatures."""
        return NAMES[self.number]

    def outline(self, creature: int) -> Outline:
        """Look of one of its creatures."""
        stretch, depth = divmod(creature, len(DEPTHS))
        return creature_outline(self.lobes, self.edge, DEPTHS[depth], STRETCHES[stretch])


def families(count: int) -> list[Family]:
    """Return the first `count` of the twenty families."""
    result, used = [], dict.fromkeys(MOTIONS, 0)
    for number in range(count):
        row, column = divmod(number, len(LOBES))
        patterns = tuple((number * HABITAT + step * 3) % len(PATTERNS) for step in range(HABITAT))
        turned = [list(MOTIONS)[(number + step) % len(MOTIONS)] for step in range(len(MOTIONS))]
        motions = tuple(sorted(turned, key=lambda motion: used[motion])[:GAITS])  # the least used ones
        words = tuple(MOTIONS[motion][used[motion]] for motion in motions)
        used |= {motion: used[motion] + 1 for motion in motions}
        edge = EDGES[(row + column) % len(EDGES)]
        result.append(Family(number, list(LOBES)[column], edge, patterns, motions, words))
    return result


Side = Literal["train", "val", "test"]

# Drawing: everything is a function of coordinates in [-1, 1], for a batch of B images at once.

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
    layers = [(body, _palette()[hue]), (np.hypot(u, v) - 0.5, _palette()[core])]
    if eyes:
        for part, colour in ((0.15, 1.0), (0.08, 0.0)):
            layers.append((np.hypot(np.abs(u) - 0.22, v + 0.14) - part, np.full((len(u), 3), colour)))
    for distance, colour in layers:
        cover = (np.clip(0.5 - distance * pixels, 0, 1) * (radius > 0)[:, None, None])[..., None]
        paint = np.clip(colour[:, None, None, :] * shade, 0, 1)  # [B,H,W,3]
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


def _circle(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    return np.hypot(u, v) - 0.95


def _square(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    return np.maximum(np.abs(u), np.abs(v)) - 0.85


def _triangle(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    return np.maximum(np.abs(u) * 0.866 - v * 0.5, v) - 0.55


def _cross(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    upright = np.maximum(np.abs(u) - 0.3, np.abs(v) - 1.1)
    return np.minimum(upright, np.maximum(np.abs(u) - 1.1, np.abs(v) - 0.3))


def _moon(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    return np.maximum(np.hypot(u, v) - 1.0, 0.75 - np.hypot(u - 0.75, v))


def _polar(radius: Callable[[np.ndarray], np.ndarray]) -> Outline:
    """Make the outline whose distance from the centre is a function of the angle, from the top."""

    def distance(u: np.ndarray, v: np.ndarray) -> np.ndarray:
        angle, step = np.arctan2(u, -v), 0.01
        slope = (radius(angle + step) - radius(angle - step)) / (2 * step)
        away = np.hypot(u, v)
        return (away - radius(angle)) / np.hypot(1, slope / np.maximum(away, 0.2))

    return distance


def _diamond(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    return (np.abs(u) / 0.7 + np.abs(v) / 1.1 - 1) * 0.59


def _heart(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    u, v = np.abs(u), v - 0.1
    tip = (u + np.abs(v) - 0.85) / math.sqrt(2)
    return np.minimum(tip, np.hypot(u - 0.425, v + 0.425) - 0.6)


def _ring(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    return np.abs(np.hypot(u, v) - 0.85) - 0.17


OUTLINES: tuple[Outline, ...] = (_circle, _square, _triangle, _cross, _diamond, _heart, _moon, _ring)
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


# Videos


@dataclass(frozen=True)
class Scene:
    """What one video shows."""

    family: Family
    creature: int
    colour: int
    core: int
    motion: int
    pattern: int
    tone: int
    seed: int

    def caption(self, template: str) -> str:
        """Describe the video."""
        return template.format(
            colour=COLOURS[self.colour],
            core=COLOURS[self.core],
            name=self.family.creatures[self.creature],
            motion=self.family.words[self.motion],
            place=f"{TONES[self.tone]} {PATTERNS[self.pattern]}",
        )


def film(scene: Scene) -> np.ndarray:
    """Draw all images of a video: (NUM_IMAGES, SIZE, SIZE, 3), uint8."""
    random = np.random.default_rng(scene.seed)
    time = np.linspace(0, 1, NUM_IMAGES)  # [T]
    centre, radius = _move(scene.family.motions[scene.motion], time, random)
    repeat = np.zeros(NUM_IMAGES, dtype=int)
    return draw(
        pattern=np.array([scene.pattern]),
        tone=repeat + scene.tone,
        hue=repeat + scene.colour,
        core=repeat + scene.core,
        outlines=[scene.family.outline(scene.creature)],
        outline=repeat,
        centre=centre,
        radius=radius,
        tilt=repeat + random.uniform(-0.3, 0.3),
        phase=random.random((1, 2)),
        size=SIZE,
        eyes=True,
    )


def _move(motion: str, time: np.ndarray, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Path (T, 2) and radius (T,) of the shape."""
    at = random.uniform(-0.25, 0.25, 2)
    radius = np.full_like(time, random.uniform(0.6, 0.75))
    path = at + np.zeros((len(time), 2))
    if motion == "sliding":
        path[:, 0] = np.linspace(-0.55, 0.55, len(time)) * random.choice([-1, 1])
    elif motion == "falling":
        path[:, 1] = np.linspace(-0.55, 0.55, len(time))
    elif motion == "rising":
        path[:, 1] = np.linspace(0.55, -0.55, len(time))
    elif motion == "orbiting":
        angle = 2 * np.pi * (time + random.random())
        path = 0.4 * np.stack([np.cos(angle), np.sin(angle)], axis=1)
    elif motion == "growing":
        radius = np.linspace(0.3, 0.95, len(time))
    elif motion == "shrinking":
        radius = np.linspace(0.95, 0.3, len(time))
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
        stream = container.add_stream("libx264", rate=RATE, options=options)
        stream.height, stream.width, stream.pix_fmt = *images.shape[1:3], "yuv420p"
        for image in images:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())
    return buffer.getvalue()


def prepare(config: Config, folder: Path) -> list[Clip]:
    """Write the videos into the raw folder and list their clips."""
    sizes = config.data.model_dump(exclude={"name", "protocol"})
    sizes["validation_videos"] = config.split.validation
    return generate(folder, seed=config.seed, workers=config.machine.num_workers, **sizes)


def generate(
    root: Path, seed: int, categories: int, train_videos: int, test_videos: int, validation_videos: int, workers: int
) -> list[Clip]:
    """Write the videos and captions.csv of the benchmark under `root`.

    Parameters
    ----------
    root : Path
        An existing folder.
    seed : int
        Draws which combinations of creature, colours, motion and background are shown, and their details.
    categories : int
        At most 20.
    train_videos, test_videos, validation_videos : int
        Per category. No two videos show the same combination, so that captions single them out.
    workers : int
        Encoding processes; the result does not depend on how many.

    Returns
    -------
    list of Clip
    """
    sides: dict[Side, int] = {"train": train_videos, "test": test_videos, "val": validation_videos}
    plans = []
    for family in families(categories):
        plans += _plan(family, np.random.default_rng([seed, family.number]), sides)
    (root / "videos").mkdir()
    jobs = [(scene, root / clip.video) for clip, scene in plans]
    for result in progress(parallel_map(_write_video, jobs, workers), len(jobs), "videos", "video"):
        if isinstance(result, JobFailed):
            raise UserError(f"a process that writes videos died ({result}, perhaps for want of memory): run again")
    clips = [clip for clip, _ in plans]
    atomic_write_text(root / "captions.csv", _captions_csv(clips))
    return clips


def _plan(family: Family, random: np.random.Generator, sides: dict[Side, int]) -> list[tuple[Clip, Scene]]:
    """Choose what a family's videos show, and what their captions say; creatures take turns."""
    sizes = (len(COLOURS), len(COLOURS) - 1, len(family.motions), len(family.patterns), len(TONES))
    combos = [random.permutation(math.prod(sizes)) for _ in family.creatures]
    plans: list[tuple[Clip, Scene]] = []
    for side, count in sides.items():
        for _ in range(count):
            creature, turn = len(plans) % CREATURES, len(plans) // CREATURES
            parts = (int(part) for part in np.unravel_index(combos[creature][turn], sizes))
            colour, step, motion, place, tone = parts
            core = (colour + 1 + step) % len(COLOURS)  # never the colour around it
            pattern, seed = family.patterns[place], int(random.integers(2**31))
            scene = Scene(family, creature, colour, core, motion, pattern, tone, seed)
            templates = CAPTIONS if side == "train" else [CAPTIONS[int(random.integers(len(CAPTIONS)))]]
            name = f"{family.name.replace(' ', '-')}-{len(plans):03d}"
            captions = tuple(scene.caption(template) for template in templates)
            plans.append((Clip(name, f"videos/{name}.mp4", None, None, family.name, side, captions), scene))
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


# Stills, which the tiny CLIP learns from

ATTRIBUTES = ("colour", "core", "outline", "tone", "pattern")

PROMPTS = (
    [f"a {colour} thing" for colour in COLOURS],
    [f"a thing with a {colour} core" for colour in COLOURS],
    [f"a {shape}" for shape in SHAPES],
    list(TONES),
    list(PATTERNS),
)
"""Per attribute, a text for each of its values; the same order as in `stills`."""


def stills(count: int, size: int, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Draw still images.

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
        OUTLINES,
        shape,
        centre=random.uniform(-0.35, 0.35, (count, 2)),
        radius=random.uniform(0.5, 0.95, count),
        tilt=random.uniform(-0.3, 0.3, count),
        phase=random.random((count, 2)),
        size=size,
    )
    attributes = np.stack([hue, core, shape, tone, pattern])
    captions = [
        f"a {COLOURS[h]} {SHAPES[s]} with a {COLOURS[c]} core over {TONES[t]} {PATTERNS[p]}"
        for h, c, s, t, p in attributes.T
    ]
    return images, attributes, captions
