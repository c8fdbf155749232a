"""The built-in benchmark: small generated videos of invented creatures, a family a category.

A category brings new concepts, as the categories of real benchmarks do: four creatures that belong to one family,
each with an outline and an invented name of its own, and the family's own words for how they move. A family is filmed
in weather of its own, which no still of CLIP's has shown. What surrounds the creatures is known to CLIP and means the
same everywhere: colours, cores and patterned backgrounds. So CLIP finds many videos without any training, what is
learnt of one category does not contradict the next, and fine-tuning has something to lose.
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
from structalign.data.drawing import COLOURS, PATTERNS, TONES, Outline, creature_outline, draw
from structalign.data.weather import WEATHER, expose
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
    "{place} behind the {motion} {colour} {name} that has a {core} core",
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
    """A category: the form of its creatures' edge, the patterns and weather it lives in, how it moves, its words."""

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
    def weather(self) -> str:
        """What no other family has."""
        return list(WEATHER)[self.number]

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
    images = draw(
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
    return expose(images, scene.family.weather, random)


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
            raise UserError(f"a process that writes videos died ({result}, possibly out of memory): run again")
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


def new_words() -> list[str]:
    """What captions say that the tiny CLIP must not have read: names of creatures and words of motion."""
    everyone = families(len(NAMES))
    return [word for family in everyone for word in (*family.creatures, *family.words)]


def _captions_csv(clips: list[Clip]) -> str:
    """Write captions as the data set `local` reads them."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["video", "start", "end", "category", "caption", "split"])
    for clip in clips:
        for caption in clip.captions:
            writer.writerow([clip.video, "", "", clip.category, caption, clip.split])
    return buffer.getvalue()
