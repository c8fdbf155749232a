"""The built-in benchmark: what it generates, and that it means what its captions say."""

from __future__ import annotations

import re
from collections import Counter
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest

from structalign.data.clips import Clip
from structalign.data.datasets.creatures import (
    CREATURES,
    MOTIONS,
    NUM_IMAGES,
    SIZE,
    Scene,
    _plan,
    encode,
    families,
    film,
    generate,
    new_words,
)
from structalign.data.decode import Request, decode
from structalign.data.drawing import COLOURS, OUTLINES, PATTERNS, SHAPES, TONES, draw, palette
from structalign.data.weather import WEATHER, expose
from structalign.pretraining.stills import PROMPTS, SENTENCES, draw_stills, unread_words
from structalign.pretraining.tiny_clip import WEIGHTS, restore

NAMES = [name for family in families(20) for name in family.creatures]
WORDS = [word for family in families(20) for word in family.words]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Clip]]:
    folder = tmp_path_factory.mktemp("creatures")
    return folder, generate(
        folder, seed=0, categories=3, train_videos=4, test_videos=3, validation_videos=2, workers=2
    )


def test_every_category_has_its_videos_and_captions(made: tuple[Path, list[Clip]]) -> None:
    folder, clips = made
    assert Counter((clip.category, clip.split) for clip in clips) == {
        (family.name, split): count
        for family in families(3)
        for split, count in (("train", 4), ("test", 3), ("val", 2))
    }
    for clip in clips:
        assert (folder / clip.video).stat().st_size > 500
        assert len(clip.captions) == (4 if clip.split == "train" else 1)
    rows = (folder / "captions.csv").read_text().splitlines()
    assert len(rows) == 1 + sum(len(clip.captions) for clip in clips)


def test_captions_name_the_creatures_of_their_category_alone(made: tuple[Path, list[Clip]]) -> None:
    _, clips = made
    own = {family.name: set(family.creatures) for family in families(20)}
    for clip in clips:
        for caption in clip.captions:
            words = set(caption.replace(",", "").split())
            assert len(words & own[clip.category]) == 1
            assert not words & (set(NAMES) - own[clip.category])


def test_every_family_has_words_of_its_own_for_how_it_moves() -> None:
    assert len(set(WORDS)) == len(WORDS) == 80
    assert Counter(motion for family in families(20) for motion in family.motions) == dict.fromkeys(MOTIONS, 10)
    assert all(word in MOTIONS[motion] for f in families(20) for motion, word in zip(f.motions, f.words, strict=True))


def test_captions_single_out_their_video_in_the_whole_benchmark() -> None:
    sides = {"train": 16, "test": 50, "val": 20}
    plans = [_plan(family, np.random.default_rng([0, family.number]), sides) for family in families(20)]
    captions = [caption for plan in plans for clip, _ in plan for caption in clip.captions]
    assert len(set(captions)) == len(captions) == 20 * (16 * 4 + 50 + 20)
    seen = [(s.family.number, s.creature, s.colour, s.core, s.motion, s.pattern, s.tone) for p in plans for _, s in p]
    assert len(set(seen)) == len(seen)


def test_validation_videos_leave_the_others_as_they_are(made: tuple[Path, list[Clip]], tmp_path: Path) -> None:
    _, clips = made
    without = generate(tmp_path, seed=0, categories=3, train_videos=4, test_videos=3, validation_videos=0, workers=1)
    assert without == [clip for clip in clips if clip.split != "val"]


def test_same_seed_same_bytes_for_any_number_of_workers(made: tuple[Path, list[Clip]], tmp_path: Path) -> None:
    folder, clips = made
    again = generate(tmp_path, seed=0, categories=3, train_videos=4, test_videos=3, validation_videos=2, workers=1)
    assert again == clips
    assert all((folder / clip.video).read_bytes() == (tmp_path / clip.video).read_bytes() for clip in clips)


def test_another_seed_shows_other_things(made: tuple[Path, list[Clip]], tmp_path: Path) -> None:
    _, clips = made
    other = generate(tmp_path, seed=1, categories=3, train_videos=4, test_videos=3, validation_videos=2, workers=2)
    assert [clip.captions for clip in other] != [clip.captions for clip in clips]


def test_videos_decode_to_what_was_drawn(tmp_path: Path) -> None:
    images = film(scene("growing"))
    assert images.shape == (NUM_IMAGES, SIZE, SIZE, 3)
    (tmp_path / "video.mp4").write_bytes(encode(images))
    frames = decode(Request(tmp_path / "video.mp4", None, None, num_frames=6, short_side=SIZE)).frames
    for frame, image in zip(frames, images[1::2], strict=True):
        assert np.abs(frame.astype(int) - image.astype(int)).mean() < 12  # H.264, at half the colour resolution


def scene(motion: str = "sliding", **changes: int) -> Scene:
    family = next(family for family in families(20) if motion in family.motions)
    changes["motion"] = family.motions.index(motion)
    facts = {"creature": 0, "colour": 0, "core": 4, "motion": 0, "pattern": 9, "tone": 0, "seed": 3}
    return Scene(family=family, **{**facts, **changes})


@pytest.fixture
def clear_sky(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("structalign.data.datasets.creatures.expose", lambda images, *_: images)


def test_captions_have_the_article_that_their_words_want() -> None:
    plans = [_plan(family, np.random.default_rng(0), {"train": 40}) for family in families(20)]
    for caption in {caption for plan in plans for clip, _ in plan for caption in clip.captions}:
        assert not re.search(r"\ba [aeiou]", caption), caption


@pytest.mark.usefixtures("clear_sky")
def test_colours_are_what_captions_say() -> None:
    for colour, core in combinations(range(len(COLOURS)), 2):
        image = film(scene("shaking", colour=colour, core=core))[0]
        shown = {hue: _pixels_near(image, palette()[hue]) for hue in range(len(COLOURS))}
        assert {hue for hue, count in shown.items() if count > 20} == {colour, core}


def _pixels_near(image: np.ndarray, colour: np.ndarray) -> int:
    distance = np.abs(image.astype(int) - colour * 255).sum(axis=-1)  # [H,W]
    return int((distance < 60).sum())


def test_a_core_never_has_the_colour_around_it() -> None:
    for family in families(20):
        plan = _plan(family, np.random.default_rng(0), {"train": 100})
        assert all(scene.colour != scene.core for _, scene in plan)
        assert {scene.pattern for _, scene in plan} == set(family.patterns)
        assert Counter(scene.creature for _, scene in plan) == dict.fromkeys(range(CREATURES), 25)


def test_no_two_creatures_look_alike() -> None:
    axis = np.linspace(-1.6, 1.6, 48)
    u, v = np.meshgrid(axis, axis)
    bodies = [
        (family.outline(creature)(u[None], v[None])[0] < 0)
        for family in families(20)
        for creature in range(CREATURES)
    ]
    assert len(bodies) == len(set(NAMES)) == 80
    for one, other in combinations(bodies, 2):
        assert (one ^ other).sum() / (one | other).sum() > 0.03


def test_every_pattern_is_home_to_as_many_families() -> None:
    homes = Counter(pattern for family in families(20) for pattern in family.patterns)
    assert homes == dict.fromkeys(range(len(PATTERNS)), 6)


def test_names_and_motions_are_news_to_the_tiny_clip() -> None:
    from open_clip.tokenizer import SimpleTokenizer

    tokenizer = SimpleTokenizer()
    read = set(restore(WEIGHTS)[1].tolist())
    for word in (*NAMES, *WORDS):
        assert not read & set(tokenizer.encode(word)), word
    assert read >= {
        token for word in (*COLOURS, *SHAPES, *PATTERNS, "dark", "pale") for token in tokenizer.encode(word)
    }


@pytest.mark.usefixtures("clear_sky")
def test_motions_move() -> None:
    for motion in MOTIONS:
        images = film(scene(motion)).astype(int)
        assert np.abs(images - images[0]).max() > 60, motion


@pytest.mark.parametrize("kind", WEATHER)
def test_weather_changes_a_video_and_leaves_what_there_is_to_see(kind: str) -> None:
    """A red thing stays redder than a blue one, whatever the weather draws."""
    clear = film_in_clear_weather()
    red, blue = (expose(images, kind, np.random.default_rng(0)).astype(float) for images in clear)
    again = expose(clear[0], kind, np.random.default_rng(1)).astype(float)
    assert np.abs(red - clear[0]).mean() > 8
    hue = [images[..., 0] - images[..., 2] for images in (red, blue, again)]  # [T,H,W], red against blue
    assert hue[0].mean() > hue[1].mean()
    assert hue[2].mean() > hue[1].mean()


def film_in_clear_weather() -> tuple[np.ndarray, np.ndarray]:
    one, place = np.array([8]), np.zeros((1, 2))
    shown = (
        draw(
            one,
            one * 0,
            np.array([hue]),
            np.array([2]),
            OUTLINES,
            one * 0,
            place,
            np.array([0.8]),
            one * 0.0,
            place,
            SIZE,
        )
        for hue in (0, 4)
    )
    red, blue = (images.repeat(4, axis=0) for images in shown)
    return red, blue


def test_every_family_has_weather_of_its_own() -> None:
    assert {family.weather for family in families(20)} == set(WEATHER)


def test_stills_say_what_they_show_and_nothing_of_creatures_or_motion() -> None:
    from open_clip.tokenizer import SimpleTokenizer

    unread = unread_words(SimpleTokenizer(), [*new_words(), *SENTENCES, *COLOURS, *SHAPES, *TONES, *PATTERNS])
    known = {*" ".join(SENTENCES).split(), *COLOURS, *SHAPES, *TONES, *PATTERNS}
    assert not set(unread) & (known | set(new_words()))
    images, attributes, captions = draw_stills(50, 32, unread, np.random.default_rng(0))
    assert images.shape == (50, 32, 32, 3)
    assert (attributes[0] != attributes[1]).all()  # a core never has the colour around it
    named = 0
    for values, caption in zip(attributes.T, captions, strict=True):
        words = caption.replace(",", "").split()
        assert set(words) & set(COLOURS) == {COLOURS[values[0]], COLOURS[values[1]]}
        assert f"{TONES[values[3]]} {PROMPTS[4][values[4]]}" in caption
        assert set(words) & set(SHAPES) <= {SHAPES[values[2]]}
        assert len(set(words) - known) <= 2
        assert set(words) - known <= set(unread)
        named += SHAPES[values[2]] in words
    assert 20 < named < 40  # six of ten


def test_a_hidden_shape_leaves_the_background() -> None:
    one, none = np.array([0]), np.zeros(1)
    blank = draw(one, one, one, one + 2, OUTLINES, one, np.zeros((1, 2)), none, none, np.zeros((1, 2)), 32)
    assert (blank[..., 0] == blank[..., 1]).all()
    assert (blank[..., 1] == blank[..., 2]).all()
