"""The built-in benchmark: what it generates, and that it means what its captions say."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from structalign.data.clips import Clip
from structalign.data.datasets.shapes import (
    COLOURS,
    LIGHTS,
    MOTIONS,
    NUM_IMAGES,
    PROMPTS,
    SIZE,
    Scene,
    _palette,
    _plan,
    draw,
    encode,
    film,
    generate,
    stills,
    worlds,
)
from structalign.data.decode import Request, decode


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Clip]]:
    folder = tmp_path_factory.mktemp("shapes")
    return folder, generate(folder, seed=0, categories=3, train_videos=4, test_videos=3, workers=2)


def test_every_category_has_its_videos_and_captions(made: tuple[Path, list[Clip]]) -> None:
    folder, clips = made
    assert Counter((clip.category, clip.split) for clip in clips) == {
        (world.name, split): count for world in worlds(3) for split, count in (("train", 4), ("test", 3))
    }
    for clip in clips:
        assert (folder / clip.video).stat().st_size > 500
        assert len(clip.captions) == (4 if clip.split == "train" else 1)
        assert all(clip.category in caption for caption in clip.captions)
    rows = (folder / "captions.csv").read_text().splitlines()
    assert len(rows) == 1 + sum(len(clip.captions) for clip in clips)


def test_captions_single_out_their_video(made: tuple[Path, list[Clip]]) -> None:
    _, clips = made
    captions = [caption for clip in clips for caption in clip.captions]
    assert len(set(captions)) == len(captions)


def test_same_seed_same_bytes_for_any_number_of_workers(made: tuple[Path, list[Clip]], tmp_path: Path) -> None:
    folder, clips = made
    again = generate(tmp_path, seed=0, categories=3, train_videos=4, test_videos=3, workers=1)
    assert again == clips
    assert all((folder / clip.video).read_bytes() == (tmp_path / clip.video).read_bytes() for clip in clips)


def test_another_seed_shows_other_things(made: tuple[Path, list[Clip]], tmp_path: Path) -> None:
    _, clips = made
    other = generate(tmp_path, seed=1, categories=3, train_videos=4, test_videos=3, workers=2)
    assert [clip.captions for clip in other] != [clip.captions for clip in clips]


def test_videos_decode_to_what_was_drawn(tmp_path: Path) -> None:
    images = film(Scene(worlds(1)[0], colour=0, core=4, shape=1, motion=MOTIONS.index("growing"), seed=3))
    assert images.shape == (NUM_IMAGES, SIZE, SIZE, 3)
    (tmp_path / "video.mp4").write_bytes(encode(images))
    frames = decode(Request(tmp_path / "video.mp4", None, None, num_frames=6, short_side=SIZE)).frames
    for frame, image in zip(frames, images[2::4], strict=True):
        assert np.abs(frame.astype(int) - image.astype(int)).mean() < 12  # H.264, at half the colour resolution


@pytest.mark.parametrize("light", range(1, 6))
def test_a_worlds_light_turns_cores_and_nothing_else(light: int) -> None:
    world = next(world for world in worlds(20) if world.light == light)
    shape, core = 1, 3 if light != 4 else 4  # so that the core does not look like the shape around it
    images = film(Scene(world, colour=shape, core=core, shape=1, motion=MOTIONS.index("shaking"), seed=0))
    shown = {hue: _pixels_near(images[0], _palette()[hue]) for hue in range(len(COLOURS))}
    assert {hue for hue, count in shown.items() if count > 20} == {shape, (core + light) % len(COLOURS)}


def _pixels_near(image: np.ndarray, colour: np.ndarray) -> int:
    distance = np.abs(image.astype(int) - colour * 255).sum(axis=-1)  # [H,W]
    return int((distance < 60).sum())


def test_cores_stand_out_from_the_shapes_around_them() -> None:
    for world in worlds(20):
        scenes = [scene for _, scene in _plan(world, np.random.default_rng(0), 100, 200)]
        assert all(scene.colour != scene.core for scene in scenes)
        assert all(scene.colour != (scene.core + world.light) % len(COLOURS) for scene in scenes)


def test_every_light_but_white_shines_on_as_many_worlds() -> None:
    assert Counter(LIGHTS) == dict.fromkeys(range(1, 6), 4)


def test_motions_move() -> None:
    world = worlds(1)[0]
    for motion in range(len(MOTIONS)):
        images = film(Scene(world, 0, 2, 0, motion, seed=1)).astype(int)
        assert np.abs(images - images[0]).max() > 60, MOTIONS[motion]


def test_stills_say_what_they_show_and_nothing_of_motion() -> None:
    images, attributes, captions = stills(50, 32, np.random.default_rng(0))
    assert images.shape == (50, 32, 32, 3)
    assert (attributes[0] != attributes[1]).all()  # a core never has the colour around it
    for values, caption in zip(attributes.T, captions, strict=True):
        assert caption.startswith(f"a {COLOURS[values[0]]} ")
        assert f"{COLOURS[values[1]]} core" in caption
        assert PROMPTS[4][values[4]] in caption
        assert not any(motion in caption for motion in MOTIONS)


def test_a_hidden_shape_leaves_the_background() -> None:
    one, none = np.array([0]), np.zeros(1)
    blank = draw(one, one, one, one + 2, one, np.zeros((1, 2)), none, np.zeros((1, 2)), 32)
    assert (blank[..., 0] == blank[..., 1]).all()
    assert (blank[..., 1] == blank[..., 2]).all()
