"""What is refused before anything is generated, fetched or decoded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from structalign.config.backbone import backbone_config
from structalign.config.early import check_clips, check_parameters, task_sizes
from structalign.config.schema import Config
from structalign.data.clips import Clip
from structalign.util.errors import UserError
from tests.helpers.params import params
from tests.helpers.raw_data import config_for
from tests.helpers.split_files import clips_of

LOCAL = {"name": "local", "protocol": "fewshot", "videos": "videos", "csv": "clips.csv"}


BARE = {"vision_adapter": "none", "text_adapter": "none"}


def config(**changes: Any) -> Config:
    values = params()
    for section, settings in changes.items():
        values[section] = {**values[section], **settings}
    return Config.parse(values)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model": {"adapter_layers": 9}}, r"model\.adapter_layers = 9: tiny has \d vision blocks; set it to \d or"),
        (
            {"backbone": {"pretrained": "openai"}},
            r"backbone\.pretrained = 'openai' would be ignored: set backbone\.pr",
        ),
        ({"backbone": {"weights": "x.pt"}}, r"backbone\.weights = 'x\.pt' would be ignored"),
        ({"backbone": {"architecture": "ViT-Z"}}, r"backbone\.architecture = 'ViT-Z': open_clip has no such model"),
        (
            {"data": {"categories": 12}},
            r"K = 5: does not divide the 12 categories .*categories_per_task=\[4,2,2,2,2\]",
        ),
        (
            {"split": {"categories_per_task": [4, 4]}},
            r"must be 5 numbers \(K\) that add up to the 20 .* 2 add up to 8",
        ),
        ({"split": {"shots": 99}}, r"split\.shots = 99: data\.train_videos = 16; lower it"),
    ],
)
def test_parameters_that_contradict_each_other(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        check_parameters(config(**changes))


def test_the_default_parameters_are_fine() -> None:
    check_parameters(config())
    check_parameters(config(split={"categories_per_task": [12, 2, 2, 2, 2]}, model={"adapter_layers": "all"}))


def one_video(clips: list[Clip], *ids: str) -> list[Clip]:
    return [Clip(**{**vars(clip), "video": "one.mp4"}) if clip.id in ids else clip for clip in clips]


@pytest.mark.parametrize(
    ("clips", "num_tasks", "said"),
    [
        (clips_of(4), 3, r"K = 3: does not divide the 4 categories evenly; choose one of 1, 2, 4, or set"),
        (
            clips_of(4, train=1),
            2,
            r"split\.shots = 2: 4 of 4 categories have fewer training videos: 'cat 0' \(1\), 'cat 1'",
        ),
        (clips_of(4)[:-3], 2, r"1 of 4 categories have no test video: 'cat 3'"),
        (
            one_video(clips_of(4), "train-0-0", "train-3-1"),
            2,
            r"videos in two categories.*one\.mp4 \(cat 0, cat 3\)",
        ),
    ],
)
def test_clips_that_make_no_tasks_whatever_the_seed(clips: list[Clip], num_tasks: int, said: str) -> None:
    with pytest.raises(UserError, match=said):
        check_clips(config_for(LOCAL, num_tasks, split={"shots": 2}), clips)


def test_clips_that_make_tasks() -> None:
    check_clips(config_for(LOCAL, 2, split={"shots": 2}), clips_of(4))
    check_clips(config_for(LOCAL, 1, split={"shots": 2}), one_video(clips_of(4), "train-0-0", "train-3-1"))
    check_clips(config_for(LOCAL, 2, split={"shots": 2, "categories_per_task": [3, 1]}), clips_of(4))


def test_a_single_pair_is_no_task() -> None:
    with pytest.raises(UserError, match="single pair of video and caption"):
        check_clips(config_for(LOCAL, 4, split={"shots": 1}), clips_of(4))


def test_more_categories_than_equiangular_prototypes_have_room_for() -> None:
    many = clips_of(130)
    with pytest.raises(UserError, match=r"130 equiangular prototypes .* at least 129 numbers, and tiny has 128"):
        check_clips(config_for(LOCAL, 10, split={"shots": 2}), many)
    check_clips(config_for(LOCAL, 3, split={"shots": 2}), clips_of(129))
    check_clips(config_for(LOCAL, 10, split={"shots": 2}, loss={"etf_weight": 0}), many)
    check_clips(config_for(LOCAL, 10, split={"shots": 2}, method={"name": "finetune"}, model=BARE), many)


def test_fewer_prototypes_than_categories() -> None:
    with pytest.raises(UserError, match=r"etf\.num_classes = 3: must be at least 4, the number of categories"):
        check_clips(config_for(LOCAL, 2, split={"shots": 2}, etf={"num_classes": 3}), clips_of(4))
    check_clips(config_for(LOCAL, 2, split={"shots": 2}, etf={"num_classes": 4}), clips_of(4))


def test_more_validation_videos_than_are_left() -> None:
    clips = clips_of(4, train=5)
    check_clips(config_for(LOCAL, 2, split={"shots": 2, "validation": 3}), clips)
    with pytest.raises(UserError, match=r"split\.validation = 4: 4 of 4 categories have fewer .*'cat 0' \(3\)"):
        check_clips(config_for(LOCAL, 2, split={"shots": 2, "validation": 4}), clips)
    own = [Clip(**{**vars(clip), "id": f"v{clip.id}", "video": f"v{clip.video}", "split": "val"}) for clip in clips]
    check_clips(config_for(LOCAL, 2, split={"shots": 2, "validation": 4}), [*clips, *own])


def test_sizes_of_tasks() -> None:
    assert task_sizes(5, 20, None) == [4] * 5
    assert task_sizes(3, 7, [3, 2, 2]) == [3, 2, 2]


def test_a_torchscript_archive_is_named(tmp_path: Path) -> None:
    path = tmp_path / "ViT-B-32.pt"
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), str(path))
    with pytest.raises(UserError, match=r"TorchScript archive, as OpenAI .*backbone\.pretrained=openai"):
        backbone_config("ViT-B-32-quickgelu", None, str(path))
    torch.save({"weight": torch.zeros(2)}, path)
    assert backbone_config("ViT-B-32-quickgelu", None, str(path))["embed_dim"] == 512
