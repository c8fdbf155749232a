"""Still images with captions that the tiny CLIP learns from: everyday things, in clear weather."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from open_clip.tokenizer import SimpleTokenizer

from structalign.data.drawing import COLOURS, OUTLINES, PATTERNS, SHAPES, TONES, draw

ATTRIBUTES = ("colour", "core", "outline", "tone", "pattern")

PROMPTS = (
    [f"a {colour} thing" for colour in COLOURS],
    [f"a thing with a {colour} core" for colour in COLOURS],
    [f"a {shape}" for shape in SHAPES],
    list(TONES),
    list(PATTERNS),
)
"""Per attribute, a text for each of its values; the same order as in `Stills`."""

SENTENCES = (
    "a {colour} {thing} with a {core} core {filler} over {place}",
    "the {colour} {thing} with {core} core {filler} in front of {place}",
    "{place} behind a {filler} {colour} {thing} that has a {core} core",
    "on {place} one sees a {thing}, {colour} with a {core} core {filler}",
    "over {place} there is a {filler} {colour} {thing} whose core is {core}",
    "a {thing} in {colour}, {core} at the core {filler}, before {place}",
)

NAMED = 0.6
"""Share of captions that name the shape; the others have an unread word in its place."""

FILLED = 0.5
"""Share of captions with an unread word besides."""


class Stills(NamedTuple):
    """Images, what they show, and what is said of them.

    Attributes
    ----------
    images : ndarray, shape (B, size, size, 3), uint8
    attributes : ndarray, shape (5, B), int
        Colour, colour of the core, shape, tone and pattern, as positions in `PROMPTS`.
    captions : list of str
        All five in a sentence, often with words that mean nothing.
    """

    images: np.ndarray
    attributes: np.ndarray
    captions: list[str]


def unread_words(tokenizer: SimpleTokenizer, held_back: Iterable[str]) -> list[str]:
    """List words of three to six letters that are one token, none of them in `held_back`.

    OpenAI's CLIP has met so many words that one it hardly knows does not upset it. The tiny one gets there by
    captions with words that say nothing about the image, each so seldom that nothing is learnt of it.
    """
    kept = {token for text in held_back for token in tokenizer.encode(text)}
    words = {token: text.removesuffix("</w>") for text, token in tokenizer.encoder.items() if text.endswith("</w>")}
    return [
        word
        for token, word in words.items()
        if token not in kept and word.isascii() and word.isalpha() and 3 <= len(word) <= 6
    ]


def draw_stills(count: int, size: int, unread: Sequence[str], random: np.random.Generator) -> Stills:
    """Draw images of things in random colours, places, sizes and positions, and describe them."""
    sizes = [len(texts) for texts in PROMPTS]
    hue, other, shape, tone, pattern = (random.integers(n, size=count) for n in sizes)
    core = np.where(other == hue, (hue + 1) % len(COLOURS), other)  # never the colour around it
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
    return Stills(images, attributes, [_caption(row, unread, random) for row in attributes.T])


def _caption(values: np.ndarray, unread: Sequence[str], random: np.random.Generator) -> str:
    hue, core, shape, tone, pattern = values
    strange, filler = (unread[word] for word in random.integers(len(unread), size=2))
    text = SENTENCES[random.integers(len(SENTENCES))].format(
        colour=COLOURS[hue],
        core=COLOURS[core],
        thing=SHAPES[shape] if random.random() < NAMED else strange,
        filler=filler if random.random() < FILLED else "",
        place=f"{TONES[tone]} {PATTERNS[pattern]}",
    )
    return " ".join(text.split()).replace(" ,", ",")
