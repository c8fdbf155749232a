"""A store of packed frames that was damaged after it was made."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from structalign.config.schema import FramesConfig
from structalign.data.clips import Clip
from structalign.data.frames import extract
from structalign.data.store import FrameStore
from structalign.training.resume import training_fingerprint
from structalign.util.files import fresh_dir
from tests.helpers import params
from tests.helpers.errors import refused
from tests.helpers.video_files import cut, moving, write_video

FRAMES = Path("data/frames")


@pytest.fixture
def folder(here: Path) -> Path:
    """The stage's output for one clip."""
    write_video(here / "a.mp4", moving(12))
    clip = Clip("clip", "a.mp4", None, None, "c", "train", ("x",))
    settings = FramesConfig(num_frames=4, short_side=32, quality=95, shard_mb=1, allow_missing=0)
    with fresh_dir(FRAMES) as fresh:
        extract([clip], here, fresh, settings, 1)
    return FRAMES


def flip_a_bit(shard: Path) -> None:
    content = bytearray(shard.read_bytes())
    content[400] ^= 1
    shard.write_bytes(content)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda shard: cut(shard, 0.5), r"shard-0000\.zip: damaged at clip clip"),
        (Path.unlink, r"shard-0000\.zip: damaged"),
        (flip_a_bit, r"shard-0000\.zip: damaged at clip clip .*CRC"),
    ],
    ids=["truncated", "gone", "a bit flipped"],
)
def test_a_damaged_shard_is_named(folder: Path, damage: Callable[[Path], object], said: str) -> None:
    damage(folder / "shard-0000.zip")
    with refused(said):
        FrameStore(folder).read("clip")


def test_training_looks_at_all_shards_first(folder: Path) -> None:
    shutil.copyfile(folder / "shard-0000.zip", folder / "shard-0001.zip")
    Path("data/split").mkdir()
    Path("data/split/task-01.json").write_text("{}")
    whole = training_fingerprint(params.config(), 1)
    assert whole == training_fingerprint(params.config(), 1)
    assert whole != training_fingerprint(params.config("loss.etf_weight=0.5"), 1)
    cut(folder / "shard-0001.zip", 0.5)
    with refused(r"shard-0001\.zip: damaged .*structalign repair"):
        training_fingerprint(params.config(), 1)


@pytest.mark.parametrize(
    "content", ["", "{}", "[]", '{"clips": 3', '{"clips": 3}', '{"clips": {"clip": {"shard": 1}}}']
)
def test_a_damaged_index_is_named(folder: Path, content: str) -> None:
    (folder / "index.json").write_text(content)
    with refused("damaged"):
        FrameStore(folder).read("clip")
