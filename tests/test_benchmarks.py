"""The benchmarks run, on sizes that measure nothing: what they call may change."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from benchmarks import ranking, step, weather
from structalign.util.checkpoint import load_tensors
from tests.helpers.params import config


def test_every_way_of_ranking_is_measured(tmp_path: Path) -> None:
    path = tmp_path / "gallery.safetensors"
    ranking.write_gallery(path, videos=400, frames=2, queries=5)
    assert ranking.build_index(path)["bytes"] > 400 * ranking.WIDTH
    for rerank, index in ranking.MOST:
        row = ranking.measure_growth(path, rerank, index)
        assert row["r10"] >= 60
        assert row["seconds"] > 0


def test_a_gallery_that_is_written_part_by_part_is_read_as_features(tmp_path: Path) -> None:
    features = torch.randn(5, 3, 4)
    with ranking.frames_file(tmp_path / "a.safetensors", (5, 3, 4), "F32") as stream:
        for part in features.split(2):
            stream.write(part.numpy().tobytes())
    assert torch.equal(load_tensors(tmp_path / "a.safetensors")["frames"], features)


def test_a_step_is_taken_with_every_regulariser_and_without_each_saving() -> None:
    small = config("train.batch_size=2", "frames.num_frames=1")
    steps, parts = step.build(small, step.architecture("tiny"), torch.device("cpu"))
    assert set(steps) == set(step.VARIANTS)
    for take in [*steps.values(), *step.undoing(steps["all"], parts).values()]:
        take()


@pytest.mark.slow
@torch.inference_mode()
def test_weather_is_about_as_strong_for_every_family() -> None:
    found, _ = weather.Zoo(config().model, videos=20).recall()
    assert found.std() < 15  # 31 when the weather of each was as strong as it happened to be
    assert found.min() > 0


@pytest.mark.slow
@torch.inference_mode()
def test_weather_hides_some_videos_from_clip_and_can_be_made_milder(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, present in weather.WEATHER.items():
        monkeypatch.setitem(weather.WEATHER, name, present)  # puts it back at the end
    zoo = weather.Zoo(config().model, videos=4)
    found, within = zoo.recall()
    assert len(found) == len(within) == 20
    assert found.mean() <= within.mean()
    weather.even(zoo, target=100, rounds=2)
    assert zoo.recall()[0].mean() > found.mean()
