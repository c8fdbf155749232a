"""From stored frames to batches: augmentation, order, and what both depend on."""

from __future__ import annotations

import time
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor

from structalign.config.schema import FramesConfig
from structalign.data.clips import Clip
from structalign.data.frames import extract
from structalign.data.store import FrameStore
from structalign.data.tasks import Sample
from structalign.training import loader, views
from structalign.training.loader import TrainingSet, load_clips
from structalign.util import distributed
from structalign.util.errors import UserError
from tests.helpers.params import config
from tests.helpers.video_files import moving, write_video

NAMES = ["a", "b", "c", "d", "e"]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> FrameStore:
    folder = tmp_path_factory.mktemp("store")
    clips = []
    for number, name in enumerate(NAMES):
        write_video(folder / f"{name}.mp4", moving(8 + number, 48, 64 if number % 2 else 48))
        clips.append(Clip(name, f"{name}.mp4", None, None, "cat", "train", ("a caption",)))
    frames = FramesConfig(num_frames=3, short_side=40, quality=95, shard_mb=1, allow_missing=0)
    (folder / "frames").mkdir()
    extract(clips, folder, folder / "frames", frames, 1)
    return FrameStore(folder / "frames")


class Tokenizer:
    """Stands in for a model: says how large frames are, and numbers captions."""

    image_size = 32

    def tokenize(self, captions: list[str]) -> Tensor:
        return torch.arange(len(captions))[:, None]


def training_set(store: FrameStore, captions: dict[str, int], categories: dict[str, int]) -> TrainingSet:
    samples = [
        Sample(name, categories[name], tuple(f"{name} {number}" for number in range(count)))
        for name, count in captions.items()
    ]
    return TrainingSet(samples, store, Tokenizer(), 2)  # type: ignore[arg-type]


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def train_settings(**changes: object) -> object:
    return config().train.model_copy(update={"batch_size": 4, "flip": True} | changes)


def epoch(data: TrainingSet, seed: int, **changes: object) -> list:
    return list(data.batches(train_settings(**changes), seeded(seed), torch.device("cpu")))  # type: ignore[arg-type]


# Loading


@pytest.mark.parametrize("workers", [1, 3])
def test_clips_come_in_order(store: FrameStore, workers: int) -> None:
    names = NAMES * 7
    loaded = list(load_clips(store, names, workers))
    assert len(loaded) == len(names)
    for name, frames in zip(names, loaded, strict=True):
        assert torch.equal(frames, torch.from_numpy(store.read(name)).permute(0, 3, 1, 2))


def test_loading_does_not_run_far_ahead(store: FrameStore) -> None:
    reads = []

    class Counting:
        def read(self, clip: str) -> np.ndarray:
            reads.append(clip)
            return store.read(clip)

    clips = load_clips(Counting(), NAMES * 20, 1)  # type: ignore[arg-type]
    next(clips)
    time.sleep(0.5)  # threads read on while this one looks elsewhere: at once, few would have been read anyway
    assert len(reads) <= loader.AHEAD
    clips.close()


# Batches


def test_frames_beyond_memory_are_refused_before_any_is_decoded(
    store: FrameStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = {name: store.read(name).nbytes for name in ("a", "b")}
    assert store.decoded_bytes(["a", "b"]) == sum(sizes.values())
    monkeypatch.setattr(store, "read", None)
    monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(available=sum(sizes.values()) - 1))
    with pytest.raises(UserError, match=r"take 0\.0 GB of memory in each of 1 processes, and 0\.0 GB are free"):
        training_set(store, {"a": 1, "b": 1}, {"a": 0, "b": 0})


def test_every_caption_once_per_epoch(store: FrameStore) -> None:
    data = training_set(store, {"a": 3, "b": 1, "c": 5, "d": 2, "e": 4}, dict.fromkeys(NAMES, 0))
    batches = epoch(data, 0)
    assert [len(batch.video) for batch in batches] == [4, 4, 4, 3]
    assert len(batches) == data.steps_per_epoch(4)
    videos = torch.cat([batch.video for batch in batches]).tolist()
    tokens = torch.cat([batch.tokens for batch in batches]).flatten().tolist()
    assert sorted(tokens) == list(range(15))
    assert all(NAMES[v] == data.captions[t].split()[0] for v, t in zip(videos, tokens, strict=True))
    assert batches[0].pixels.shape == (4, 3, 3, 32, 32)


def test_shared_videos_come_once_and_every_pair_finds_its_own(store: FrameStore) -> None:
    data = training_set(store, {"a": 3, "b": 2, "c": 3}, {"a": 0, "b": 1, "c": 0})
    for batch in epoch(data, 0, share_videos=True):
        assert len(batch.pixels) == len(batch.video.unique()) < len(batch.video)
        seen = batch.pixels[batch.row]  # [B,N,3,H,W]
        for one, other in zip(*torch.triu_indices(len(seen), len(seen), 1), strict=True):
            assert torch.equal(seen[one], seen[other]) == bool(batch.video[one] == batch.video[other])
    assert all(batch.row is None and len(batch.pixels) == len(batch.video) for batch in epoch(data, 0))


@pytest.mark.parametrize("share_videos", [False, True])
def test_devices_augment_their_shares_as_one_device_augments_all(
    store: FrameStore, share_videos: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = training_set(store, {"a": 3, "b": 2, "c": 2}, {"a": 0, "b": 1, "c": 0})
    whole = epoch(data, 0, share_videos=share_videos)
    monkeypatch.setattr(distributed, "world_size", lambda: 3)
    shares = []
    for rank in range(3):
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        shares.append(epoch(data, 0, share_videos=share_videos))
    for joint, *parts in zip(whole, *shares, strict=True):
        assert len({len(part.pixels) for part in parts}) == 1
        gathered = torch.cat([part.pixels for part in parts])
        assert torch.equal(gathered[: len(joint.pixels)], joint.pixels)
        assert all(torch.equal(part.tokens, joint.tokens) for part in parts)


def test_a_last_pair_alone_is_left_out(store: FrameStore) -> None:
    data = training_set(store, {"a": 3, "b": 2}, dict.fromkeys(NAMES, 0))
    assert [len(batch.video) for batch in epoch(data, 0)] == [4]
    assert data.steps_per_epoch(4) == 1


def test_the_seed_decides_everything(store: FrameStore) -> None:
    data = training_set(store, dict.fromkeys(NAMES, 3), dict.fromkeys(NAMES, 0))
    once, again, other = epoch(data, 5), epoch(data, 5), epoch(data, 6)
    for batch, same in zip(once, again, strict=True):
        assert torch.equal(batch.pixels, same.pixels)
        assert torch.equal(batch.tokens, same.tokens)
    assert not all(torch.equal(batch.tokens, different.tokens) for batch, different in zip(once, other, strict=True))


def test_balanced_epochs_draw_categories_alike(store: FrameStore) -> None:
    categories = {"a": 7, "b": 7, "c": 7, "d": 2, "e": 4}
    data = training_set(store, {"a": 9, "b": 9, "c": 9, "d": 1, "e": 3}, categories)
    batches = epoch(data, 0, balanced=True)
    drawn = Counter(int(category) for batch in batches for category in batch.category)
    assert sum(drawn.values()) == 31
    assert set(drawn) == {2, 4, 7}
    assert max(drawn.values()) - min(drawn.values()) <= 1
    captions = Counter(int(token) for batch in batches for token in batch.tokens.flatten())
    of_seven = [captions[token] for token in range(27)]
    assert max(of_seven) == 1  # none of the large category comes twice while others have not come at all
    assert not torch.equal(batches[0].category, batches[0].category.sort().values)


def test_frames_for_features_are_not_augmented(store: FrameStore) -> None:
    data = training_set(store, dict.fromkeys(NAMES, 1), dict.fromkeys(NAMES, 0))
    epoch(data, 0)
    pixels = torch.cat(list(data.eval_batches(2)))
    for name, shown in zip(NAMES, pixels, strict=True):
        assert torch.equal(shown, views.center_crop(next(load_clips(store, [name], 1)), 32))
    batches = list(loader.eval_batches(store, NAMES, 32, 2, 2))
    assert [len(batch) for batch in batches] == [2, 2, 1]
    assert torch.equal(torch.cat(batches), pixels)
