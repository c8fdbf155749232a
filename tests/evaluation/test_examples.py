"""Followed queries: what is noted of them, which are chosen, and that their pictures stay small."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from structalign.data.store import FrameStore
from structalign.data.tasks import Sample
from structalign.evaluation import examples
from structalign.evaluation.examples import Followed, Moment, choose, follow, illustrate, kind_of
from structalign.evaluation.metrics import ranks
from structalign.evaluation.record import Record
from structalign.retrieval.gallery import TaskGallery
from structalign.util.errors import UserError

VIDEOS = 30
"""Test videos of each task, one caption each."""


class Noise(FrameStore):
    """A store of frames that do not compress: the worst case for the size of a record."""

    def __init__(self) -> None:
        pass

    def read(self, clip: str) -> np.ndarray:
        return np.random.default_rng(list(clip.encode())).integers(0, 255, (3, 128, 160, 3), dtype=np.uint8)


def gallery(task: int) -> TaskGallery:
    samples = [
        Sample(f"t{task}v{index}", 2 * (task - 1) + index % 2, (f"caption {task}.{index}",))
        for index in range(VIDEOS)
    ]
    return TaskGallery.from_samples(task, samples, torch.zeros(VIDEOS, 1, 1))


def scores_of(query: str, num_videos: int, after: int) -> Tensor:
    """Scores that differ from query to query and from task to task, but not with the company a query is asked in."""
    return torch.rand(num_videos, generator=torch.Generator().manual_seed(after * 1000 + len(query) + hash_of(query)))


def hash_of(text: str) -> int:
    return int.from_bytes(text.encode(), "little") % 10_007


def chain(num_tasks: int, seed: int = 0) -> tuple[list[Followed], list[TaskGallery]]:
    """Follow queries over tasks."""
    followed: list[Followed] = []
    galleries: list[TaskGallery] = []
    for task in range(1, num_tasks + 1):
        galleries.append(gallery(task))
        queries = [query for one in galleries for query in one.queries]
        scores = torch.stack([scores_of(query, task * VIDEOS, task) for query in queries])
        followed = follow(followed, list(galleries), scores, num_tasks, seed)
    return followed, galleries


def history(*found: bool, task: int = 1) -> Followed:
    moments = [Moment(task + index, 1 if hit else 99, 100, []) for index, hit in enumerate(found)]
    return Followed(task, f"query {task} {found}", 0, 0, moments)


def test_ranks_and_results_are_those_of_the_whole_gallery() -> None:
    followed, galleries = chain(3)
    captions = [caption for one in galleries for caption in one.queries]
    assert len(followed) == 3 * VIDEOS  # as many as there are
    for one in followed:
        assert captions[one.row] == captions[one.video] == one.query
        assert [moment.after for moment in one.history] == list(range(one.task, 4))
        for moment in one.history:
            scores = scores_of(one.query, moment.after * VIDEOS, moment.after)
            assert moment.of == len(scores)
            assert moment.rank == int(ranks(scores[None], torch.tensor([one.video])))
            assert moment.top == scores.topk(examples.TOP).indices.tolist()
            assert moment.found == (one.video in moment.top)


def test_the_draw_follows_the_seed() -> None:
    four = chain(4)[0]
    assert chain(4)[0] == four
    assert sorted(one.query for one in chain(4, seed=1)[0]) == sorted(one.query for one in four)
    drawn, other = ([one.query for one in chain(8, seed=seed)[0]] for seed in (0, 1))
    assert len(drawn) == examples.FOLLOWED
    assert set(drawn) != set(other)


def test_following_on_leaves_histories_as_they_were() -> None:
    followed, galleries = chain(2)
    before = [list(one.history) for one in followed]
    total = 3 * VIDEOS
    after = follow(followed, [*galleries, gallery(3)], torch.zeros(total, total), 2, 0)
    assert [one.history for one in followed] == before
    assert [one.history[:-1] for one in after[: len(followed)]] == before
    assert {one.history[-1].rank for one in after} == {total}  # ties count against the query


@pytest.mark.parametrize(
    ("found", "kind"),
    [
        ((True, True), "kept"),
        ((True,), "kept"),
        ((False, False), "never"),
        ((True, True, False), "lost"),
        ((False, True), "varied"),
        ((True, False, True), "varied"),
        ((False, True, False), "varied"),
    ],
)
def test_kinds(found: tuple[bool, ...], kind: str) -> None:
    assert kind_of(history(*found)) == kind


def test_every_kind_gets_its_share_spread_over_tasks() -> None:
    kinds = {"lost": (True, False), "kept": (True, True), "varied": (False, True), "never": (False, False)}
    followed = [history(*found, task=task) for task in (1, 2, 3) for found in kinds.values() for _ in range(5)]
    chosen = choose(followed)
    assert {kind: sum(kind_of(one) == kind for one in chosen) for kind in kinds} == examples.SHARES
    assert sorted(one.task for one in chosen if kind_of(one) == "lost") == [1, 2, 3]


def test_what_a_kind_lacks_goes_to_the_others() -> None:
    chosen = choose([history(False, task=task) for task in range(1, 21)])
    assert len(chosen) == examples.SHOWN
    assert len({one.task for one in chosen}) == examples.SHOWN
    assert choose([history(True)]) == [history(True)]


@pytest.mark.parametrize("num_tasks", [1, 20])
def test_a_record_holds_what_it_names_and_stays_small(num_tasks: int) -> None:
    followed, galleries = chain(num_tasks)
    categories = [f"category {index}" for index in range(2 * num_tasks)]
    shown = illustrate(followed, galleries, categories, Noise())
    named = {str(number) for query in shown["queries"] for moment in query["history"] for number in moment["top"]}
    assert named | {str(query["video"]) for query in shown["queries"]} == set(shown["videos"])
    for position, video in shown["videos"].items():
        task, index = divmod(int(position), VIDEOS)
        assert video["clip"] == f"t{task + 1}v{index}"
        assert video["caption"] == f"caption {task + 1}.{index}"
        assert video["category"] == f"category {2 * task + index % 2}"
    for query in shown["queries"]:
        after = [moment["after"] for moment in query["history"]]
        assert (after[0], after[-1]) == (query["task"], num_tasks)
        assert len(after) <= examples.MOMENTS
        first, middle, last = shown["videos"][str(query["video"])]["pictures"]
        assert len({first, middle, last}) == 3
        picture = Image.open(io.BytesIO(base64.b64decode(middle)))
        assert picture.format == "JPEG"
    whole = {"followed": [vars(one) for one in followed], "shown": shown}
    assert len(json.dumps(whole, default=vars)) < 300_000


def test_the_record_travels_along_the_chain(tmp_path: Path) -> None:
    followed, _ = chain(2)
    record = Record({"tasks": [], "rows": [{"after": 1}]}, features={}, loss="", cost=[])
    record.followed, record.shown = followed, {"queries": []}
    record.save(tmp_path)
    assert Record.load(tmp_path).followed == followed


@pytest.mark.parametrize("name", ["loss.csv", "cost.json", "features.safetensors", "recall.json"])
def test_a_record_without_one_of_its_files_is_one_clear_line(tmp_path: Path, name: str) -> None:
    Record({"tasks": [], "rows": [{"after": 1}]}, features={}, loss="", cost=[]).save(tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(UserError, match=rf"^{tmp_path}.*`(structalign repair|dvc repro)`"):
        Record.load(tmp_path)
    (tmp_path / "recall.json").write_text("{}")
    with pytest.raises(UserError, match=rf"^{tmp_path}: damaged \('rows'\); .*structalign repair"):
        Record.load(tmp_path)


def test_shown_frames_do_not_keep_their_clips_in_memory() -> None:
    clip = np.zeros((12, 8, 8, 3), np.uint8)
    assert all(frame.base is None for strip in (True, False) for frame in examples._frames(clip, strip))


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"followed": [{"task": "one"}]}'])
def test_a_damaged_record_is_one_clear_line(tmp_path: Path, content: str) -> None:
    record = Record({"tasks": [], "rows": [{"after": 1}]}, features={}, loss="", cost=[])
    record.save(tmp_path)
    (tmp_path / "examples.json").write_text(content)
    with pytest.raises(UserError, match=r"examples\.json: .*damaged"):
        Record.load(tmp_path)
