"""Splits: published files are read without being run, draws are even, disjoint and seeded."""

from __future__ import annotations

import io
import json
import os
import pickle
import pickletools
import random
from collections import Counter, defaultdict
from collections.abc import Callable, Collection
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from structalign.config.schema import SplitConfig
from structalign.data.clips import Clip
from structalign.data.datasets.published_splits import entries, read_benchmark, read_published, require_published
from structalign.data.split import few_shot_split, published_split, read_missing
from structalign.data.tasks import TaskSplit, read_task, write_task
from structalign.util.errors import UserError
from tests.helpers.errors import refused
from tests.helpers.split_files import Runs, clips_of, dump, published

SIZES = {"MSRVTT": (320, 2990, 20), "ACTNET": (3200, 4910, 200)}


def dealt(
    clips: list[Clip],
    num_tasks: int,
    shots: int,
    seed: int,
    order: str = "shuffled",
    missing: Collection[str] = (),
    **rules: Any,
) -> list[TaskSplit]:
    plain = {"imbalance": 1.0, "validation": 0, "categories_per_task": None}
    return few_shot_split(clips, num_tasks, SplitConfig(shots=shots, order=order, **(plain | rules)), seed, missing)


def ids(split: TaskSplit) -> tuple[set[str], set[str]]:
    return {sample.clip for sample in split.train}, {sample.clip for sample in split.test}


# The few-shot draw


@settings(max_examples=40, deadline=None)
@given(
    num_tasks=st.integers(1, 6),
    per_task=st.integers(1, 4),
    shots=st.integers(1, 5),
    seed=st.integers(0, 2**70),
    order=st.sampled_from(["shuffled", "given"]),
)
def test_draw_is_even_disjoint_and_seeded(num_tasks: int, per_task: int, shots: int, seed: int, order: str) -> None:
    clips = clips_of(num_tasks * per_task)
    splits = dealt(clips, num_tasks, shots, seed, order)
    assert [split.task for split in splits] == list(range(1, num_tasks + 1))
    assert all(split.num_tasks == num_tasks for split in splits)
    assert all(split.num_categories == num_tasks * per_task for split in splits)
    assert all(len(split.categories) == per_task for split in splits)
    numbered = [category.id for split in splits for category in split.categories]
    assert numbered == list(range(num_tasks * per_task))
    names = {category.id: category.name for split in splits for category in split.categories}
    assert len(set(names.values())) == len(names)
    by_id = {clip.id: clip for clip in clips}
    used = Counter(sample.clip for split in splits for sample in split.train + split.test)
    assert set(used.values()) == {1}
    for split in splits:
        own = {category.id for category in split.categories}
        assert Counter(sample.category for sample in split.train) == dict.fromkeys(own, shots)
        assert Counter(sample.category for sample in split.test) == dict.fromkeys(own, 3)
        for sample in split.train + split.test:
            assert by_id[sample.clip].category == names[sample.category]
            assert by_id[sample.clip].captions == sample.captions
    shuffled = clips.copy()
    random.Random(0).shuffle(shuffled)
    again = dealt(clips if order == "given" else shuffled, num_tasks, shots, seed, order)
    assert [ids(split) for split in again] == [ids(split) for split in splits]


def test_seeds_differ_and_given_order_is_kept() -> None:
    clips = clips_of(10, train=20)
    draws = {str([ids(split)[0] for split in dealt(clips, 5, 4, seed)]) for seed in range(5)}
    orders = {
        tuple(category.name for split in dealt(clips, 5, 4, seed) for category in split.categories)
        for seed in range(5)
    }
    assert len(draws) == len(orders) == 5
    given_order = dealt(clips, 5, 4, 0, order="given")
    assert [category.name for split in given_order for category in split.categories] == [
        f"cat {number}" for number in range(10)
    ]


def test_number_of_tasks_does_not_change_what_is_drawn() -> None:
    clips = clips_of(12, train=20)
    five, six = (dealt(clips, num_tasks, 4, seed=3) for num_tasks in (4, 6))
    assert set.union(*(ids(split)[0] for split in five)) == set.union(*(ids(split)[0] for split in six))


def test_missing_clips_are_replaced_in_training_and_listed() -> None:
    clips = clips_of(4)
    gone = ["train-0-0", "train-0-1", "test-3-2"]
    splits = dealt(clips, 2, 3, 0, order="given", missing=gone)
    assert [split.missing for split in splits] == [["train-0-0", "train-0-1"], ["test-3-2"]]
    assert all(not set(gone) & (ids(split)[0] | ids(split)[1]) for split in splits)
    assert [(len(split.train), len(split.test)) for split in splits] == [(6, 6), (6, 5)]
    with pytest.raises(UserError, match="'cat 0' has 3 training videos"):
        dealt(clips, 2, 4, 0, missing=gone)
    with pytest.raises(UserError, match="'cat 1' has no test video"):
        dealt(clips, 2, 3, 0, missing=[f"test-1-{index}" for index in range(3)])
    without = [clip for clip in clips if clip.id != "test-1-0"]
    untouched = dealt(without, 2, 3, 0, order="given")
    whole = dealt(clips, 2, 3, 0, order="given")
    assert [ids(split)[0] for split in untouched] == [ids(split)[0] for split in whole]


@pytest.mark.parametrize("side", ["train", "test"])
def test_a_video_in_two_tasks_is_refused(side: str) -> None:
    clips = clips_of(4)
    shared = [replace(clip, video="one.mp4") if clip.id in (f"{side}-0-0", f"{side}-3-0") else clip for clip in clips]
    with pytest.raises(UserError, match=r"one\.mp4 is in task 1 and in task 2"):
        dealt(shared, 2, 5, 0, order="given")
    dealt(shared, 1, 5, 0, order="given")


def test_tasks_of_other_sizes() -> None:
    splits = dealt(clips_of(7), 3, 2, 0, categories_per_task=[3, 2, 2])
    assert [len(split.categories) for split in splits] == [3, 2, 2]
    assert [category.id for split in splits for category in split.categories] == list(range(7))


# Files of tasks


def test_validation_clips_are_their_own_or_what_the_draw_of_training_clips_left() -> None:
    clips = clips_of(4)
    for own in (False, True):
        extra = [replace(clip, id=f"own-{clip.id}", video=f"own-{clip.video}", split="val") for clip in clips]
        mine = [*clips, *(extra if own else [])]
        with_them = dealt(mine, 2, 3, 0, validation=2)
        without = dealt(mine, 2, 3, 0)
        assert [replace(split, validation=[]) for split in with_them] == without
        for split in with_them:
            drawn = Counter(sample.category for sample in split.validation)
            assert drawn == {category.id: 2 for category in split.categories}
            others = {sample.clip for sample in (*split.train, *split.test)}
            assert not {sample.clip for sample in split.validation} & others
            assert all(sample.clip.startswith("own-") == own for sample in split.validation)
    with pytest.raises(UserError, match=r"has 2 videos with frames for validation, but split\.validation = 3"):
        dealt(clips, 2, 3, 0, validation=3)


def test_a_training_clip_of_a_test_video_does_not_validate() -> None:
    tested = next(clip.video for clip in clips_of(4) if clip.id == "test-0-0")
    clips = [replace(clip, video=tested) if clip.id == "train-0-4" else clip for clip in clips_of(4)]
    seen = set()
    for seed in range(10):
        train = [sample.clip for split in dealt(clips, 2, 3, seed) for sample in split.train]
        seen.add("train-0-4" in train)
        if "train-0-4" in train:
            dealt(clips, 2, 3, seed, validation=2)
        else:
            with pytest.raises(UserError, match="'cat 0' has 1 videos with frames for validation"):
                dealt(clips, 2, 3, seed, validation=2)
    assert seen == {False, True}


def test_task_files_round_trip(tmp_path: Path) -> None:
    split = dealt(clips_of(4), 2, 2, 0, missing=["test-0-0"])[0]
    write_task(split, tmp_path / "task-01.json")
    assert read_task(tmp_path / "task-01.json") == split


# Published split files


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_plain_splits_are_read_from_every_protocol(tmp_path: Path, protocol: int) -> None:
    split = published()
    assert read_published(dump(split, tmp_path / "split.pkl", protocol)) == split
    nested = {key: {task: defaultdict(list, group) for task, group in split[key].items()} for key in split}
    found = read_published(dump(nested, tmp_path / "split.pkl", protocol))
    assert found == split
    assert type(found["train"][1]) is dict


@pytest.mark.parametrize("num_tasks", [10, 20])
@pytest.mark.parametrize("name", SIZES)
def test_published_files(shared: Path, name: str, num_tasks: int) -> None:
    path = shared / "ctvr" / f"{name}_{num_tasks}_dataset.pkl"
    split = read_published(path)
    assert split == pickle.loads(path.read_bytes())
    sides = Counter(side for side, *_ in entries(split))
    assert (sides["train"], sides["test"]) == SIZES[name][:2]
    assert list(split["train"]) == list(range(1, num_tasks + 1))
    placed = read_benchmark({num_tasks: path}, name.lower())
    clips = [
        Clip(video, f"{video}.mp4", None, None, category, side, ("x",)) for video, (side, category) in placed.items()
    ]
    splits = published_split(split, clips, missing=clips[-1:][0].id.split("\n"))
    assert sum(len(task.train) for task in splits) == SIZES[name][0]
    assert sum(len(task.test) for task in splits) == SIZES[name][1] - 1
    assert [len(task.categories) for task in splits] == [SIZES[name][2] // num_tasks] * num_tasks
    assert {task.num_categories for task in splits} == {SIZES[name][2]}
    assert [task.missing for task in splits if task.missing] == [[clips[-1].id]]


def test_both_published_files_hold_the_same_videos(shared: Path) -> None:
    for name, (train, test, categories) in SIZES.items():
        paths = {number: shared / "ctvr" / f"{name}_{number}_dataset.pkl" for number in (10, 20)}
        placed = read_benchmark(paths, name.lower())
        assert len(placed) == train + test
        assert len({category for _, category in placed.values()}) == categories


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("function", [os.system, eval, exec, os.makedirs])
def test_malicious_pickles_are_refused_without_running(tmp_path: Path, function: object, protocol: int) -> None:
    ran = tmp_path / "ran"
    commands = {os.system: f"mkdir {ran}", os.makedirs: str(ran)}
    argument = commands.get(function, f"__import__('os').mkdir({str(ran)!r})")
    split = published()
    split["val"][2]["c3"].append(Runs(function, argument))
    path = dump(split, tmp_path / "split.pkl", protocol)
    with pytest.raises(UserError, match=r"split\.pkl: .*only dict, list, str and int, and not"):
        read_published(path)
    assert not ran.exists()
    pickle.loads(path.read_bytes())
    assert ran.exists(), "the pickle was harmless: the test proves nothing"


@pytest.mark.parametrize(
    "extra",
    [1.5, None, b"x", (1, "a"), {1}, Path("x"), True, 3, ["v"], {"a": 1}],
    ids=lambda value: type(value).__name__,
)
@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_other_types_are_refused(tmp_path: Path, extra: object, protocol: int) -> None:
    split = published()
    split["train"][1]["c0"].append(extra)
    with pytest.raises(UserError, match=r"split\.pkl: "):
        read_published(dump(split, tmp_path / "split.pkl", protocol))


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_a_flipped_byte_never_gets_past(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    content = bytearray(pickle.dumps(published(), data.draw(st.sampled_from([2, 4]))))
    position = data.draw(st.integers(0, len(content) - 1))
    content[position] ^= data.draw(st.integers(1, 255))
    path = tmp_path_factory.getbasetemp() / "flipped.pkl"
    path.write_bytes(content)
    try:
        split = read_published(path)
    except UserError:
        return
    plain = io.StringIO()
    pickletools.dis(pickle.dumps(split, 2), out=plain)
    assert "GLOBAL" not in plain.getvalue()


def test_a_file_too_large_for_a_split_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "split.pkl"
    with path.open("wb") as stream:
        stream.truncate(1 << 30)
    with pytest.raises(UserError, match="more than a split file may have"):
        read_published(path)
    with pytest.raises(UserError, match="cannot be read"):
        read_published(tmp_path / "none.pkl")


def test_published_split_needs_a_manifest_that_agrees() -> None:
    split, clips = published(), clips_of(4)
    tasks = published_split(split, clips)
    assert [[category.name for category in task.categories] for task in tasks] == [
        ["cat 0", "cat 1"],
        ["cat 2", "cat 3"],
    ]
    assert [len(task.train) for task in tasks] == [10, 10]
    with pytest.raises(UserError, match=r"train-0-0.*not in the manifest"):
        published_split(split, clips[1:])
    with pytest.raises(UserError, match=r"train-0-0.*for test in the manifest"):
        published_split(split, [replace(clips[0], split="test"), *clips[1:]])
    with pytest.raises(UserError, match=r"'other', but 'cat 0'|'cat 0', but 'other'"):
        published_split(split, [replace(clips[0], category="other"), *clips[1:]])
    with pytest.raises(UserError, match="'cat 0' has no test video left"):
        published_split(split, clips, missing=[f"test-0-{index}" for index in range(3)])
    with pytest.raises(UserError, match="is in two tasks"):
        published_split(split, [replace(clip, category="one") for clip in clips])


def test_benchmark_files_must_be_what_was_published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("structalign.data.datasets.published_splits.PUBLISHED_SIZES", {"msrvtt": (20, 12)})
    two, four = dump(published(2, 2), tmp_path / "2.pkl"), dump(published(4, 1), tmp_path / "4.pkl")
    assert len(read_benchmark({2: two, 4: four}, "msrvtt")) == 32
    with pytest.raises(UserError, match=r"2\.pkl: has 2 tasks, but is given as data\.splits\.10"):
        read_benchmark({10: two}, "msrvtt")
    other = published(4, 1)
    other["train"][1]["c0"][0] = "another"
    with pytest.raises(UserError, match="does not agree with the split for K = 2"):
        read_benchmark({2: two, 4: dump(other, tmp_path / "4.pkl")}, "msrvtt")
    other["train"][1]["c0"].pop()
    with pytest.raises(UserError, match="19 training and 12 test videos; the published split has 20 and 12"):
        read_benchmark({4: dump(other, tmp_path / "4.pkl")}, "msrvtt")
    with pytest.raises(UserError, match=r"data\.splits"):
        read_benchmark({}, "msrvtt")
    with pytest.raises(UserError, match=r"K = 5.*K = 10 or 20"):
        require_published(5, {10: two, 20: four})


@pytest.mark.parametrize(
    "content",
    [
        b"Pevil\n.",
        b"\x80\x02\x82\x01.",
        b"(cos\nsystem\n(S'true'\nio.",
        b"(S'true'\nios\nsystem\n.",
        b"\x80\x02}}b.",
        b"\x80\x02cos\nsystem\n)\x81.",
        b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c\x04true\x85R.",
        b"\x80\x04\x8c\x08builtins\x8c\x04list\x93\x8c\x04true\x85R.",
        b"\x80\x02}r\xff\xff\xff\x7f.",
        b"",
        b"PK\x03\x04 and more",
        pickle.dumps(published())[:-20],
        b"\x80\x02s.",
        pickle.dumps(7),
    ],
    ids=[
        *("persistent id", "extension code", "instance", "short instance", "build", "newobj", "defaultdict?"),
        *("list called", "far memo slot", "empty", "another format", "truncated", "stack underflow", "a number"),
    ],
)
def test_pickles_of_other_instructions_are_refused(here: Path, content: bytes) -> None:
    (here / "split.pkl").write_bytes(content)
    with refused(r"split\.pkl: "):
        read_published(here / "split.pkl")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda split: split["train"][1]["c0"].append("train-0-0"), "is already in"),
        (lambda split: split["train"][2]["c2"].append("train-0-0"), "is already in"),
        (lambda split: split["val"][2]["c2"].append("train-0-0"), "is already in"),
        (lambda split: split.update(train={key - 1: task for key, task in split["train"].items()}), "tasks 1, 2"),
        (lambda split: split.update(train=list(split["train"].values())), "tasks 1, 2"),
        (lambda split: split["val"].pop(2), "same categories"),
        (lambda split: split["val"][2].pop("c2"), "same categories"),
        (lambda split: split["train"][1]["c0"].clear(), "to a list of video ids"),
        (lambda split: split["train"][1].clear(), "must be a dict of categories"),
        (lambda split: split.pop("val"), "keys train and val"),
    ],
)
def test_contradictions_in_a_published_split(here: Path, change: Callable[[dict], object], said: str) -> None:
    split = published()
    change(split)
    dump(split, here / "split.pkl")
    with refused(said):
        read_published(here / "split.pkl")


# Bad input of the draw, and damaged files


@pytest.mark.parametrize(
    ("num_tasks", "shots", "said"),
    [
        (3, 2, r"K = 3: does not divide the 10 categories evenly; choose .*1, 2, 5"),
        (0, 2, "K = 0: must be from 1 to 10"),
        (-1, 2, "K = -1: must be from 1 to 10"),
        (11, 2, "K = 11: must be from 1 to 10"),
        (5, 6, r"'cat \d' has 5 training videos with frames, but split.shots = 6"),
    ],
)
def test_impossible_draws_are_refused(num_tasks: int, shots: int, said: str) -> None:
    with pytest.raises(UserError, match=said):
        dealt(clips_of(10), num_tasks, shots, seed=0, order="given")


@pytest.mark.parametrize("content", [None, "", "{", "[]", '{"task": 1}', '{"task": "one"}'])
def test_a_damaged_task_file_is_refused(here: Path, content: str | None) -> None:
    if content is not None:
        (here / "task-01.json").write_text(content)
    with refused("no such file" if content is None else r"task-01\.json: not a task"):
        read_task("task-01.json")


@pytest.mark.parametrize("content", ["", "{}x", '["a"]', '[{"video": "a"}]', "3"])
def test_a_damaged_list_of_missing_clips_is_refused(here: Path, content: str) -> None:
    (here / "missing.json").write_text(content)
    with refused(r"missing\.json"):
        read_missing("missing.json", clips_of(1))


def test_a_missing_clip_that_the_manifest_does_not_know(here: Path) -> None:
    (here / "missing.json").write_text(json.dumps([{"clip": "other", "video": "a.mp4", "reason": "truncated"}]))
    with refused("other is not in the manifest"):
        read_missing("missing.json", clips_of(1))


def test_a_long_tail_falls_by_a_constant_factor_and_keeps_what_is_drawn() -> None:
    clips = clips_of(5, train=16, test=2)
    even, uneven, other = (dealt(clips, 5, 16, seed, imbalance=ratio) for seed, ratio in ((0, 1), (0, 8), (1, 8)))
    counts = {split.categories[0].name: len(split.train) for split in uneven}
    assert sorted(counts.values(), reverse=True) == [16, 10, 6, 3, 2]  # 16 * 8 ** (-n / 4)
    assert counts != {split.categories[0].name: len(split.train) for split in other}
    for full, less in zip(even, uneven, strict=True):
        assert {sample.clip for sample in less.train} <= {sample.clip for sample in full.train}
        assert less.test == full.test
