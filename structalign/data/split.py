"""Categories into tasks: by a published split file, or by a seeded draw of few shots (METHOD.md section 1)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import replace
from functools import partial
from itertools import accumulate
from pathlib import Path

import numpy as np

from structalign.config.early import task_sizes
from structalign.config.schema import SplitConfig
from structalign.data.clips import Clip
from structalign.data.datasets.published_splits import PublishedSplit, entries
from structalign.data.tasks import Category, Sample, TaskSplit
from structalign.util.errors import UserError
from structalign.util.files import read_json


def published_split(published: PublishedSplit, clips: list[Clip], missing: Collection[str] = ()) -> list[TaskSplit]:
    """Lay clips out as a published split file says.

    Parameters
    ----------
    published : dict
        From `read_published`.
    clips : list of Clip
        The manifest; it must hold every video of the split, on the same side. Its validation clips join the tasks of
        their categories.
    missing : collection of str
        Clips without frames.

    Returns
    -------
    list of TaskSplit
        In the order of tasks.

    Raises
    ------
    UserError
        If the manifest lacks a video, or puts it on another side or in another category than its neighbours,
        or a video is in two tasks.
    """
    known = {clip.id: clip for clip in clips}
    names: dict[tuple[int, str], str] = {}
    chosen: list[list[Clip]] = [[] for _ in published["train"]]
    for side, task, category, video in entries(published):
        clip = known.get(video)
        if clip is None or clip.split != side:
            found = "not in the manifest" if clip is None else f"for {clip.split} in the manifest"
            raise UserError(f"video {video}: is for {side} in the published split, but {found}")
        if names.setdefault((task, category), clip.category) != clip.category:
            raise UserError(
                f"video {video}: the manifest says {clip.category!r}, but {names[task, category]!r} for others of "
                f"category {category} of the published split"
            )
        chosen[task - 1].append(clip)
    order = [[names[task, str(category)] for category in group] for task, group in published["train"].items()]
    place = {name: task for task, group in enumerate(order) for name in group}
    for clip in clips:
        if clip.split == "val" and clip.category in place:
            chosen[place[clip.category]].append(clip)
    return _assemble(order, chosen, missing)


def few_shot_split(
    clips: list[Clip], num_tasks: int, rules: SplitConfig, seed: int, missing: Collection[str] = ()
) -> list[TaskSplit]:
    """Divide the categories over tasks and draw few training clips of each; test clips are all kept.

    Parameters
    ----------
    clips : list of Clip
        The manifest.
    num_tasks : int
        K.
    rules : SplitConfig
        Clips are drawn without replacement from those that have frames. The order `given` is that in which categories
        first appear in the manifest.
    seed : int
        The draw depends on it and on the ids of a category's clips, not on the order of the manifest.
    missing : collection of str
        Clips without frames.

    Returns
    -------
    list of TaskSplit
        In the order of tasks.

    Raises
    ------
    UserError
        If the numbers are inconsistent, or a video ends up in two tasks.
    """
    from sklearn.utils import resample, shuffle  # takes a second to import

    categories = list(dict.fromkeys(clip.category for clip in clips))
    sizes = task_sizes(num_tasks, len(categories), rules.categories_per_task)
    # One seed each, so that another clip in one category leaves the draws of all others as they are.
    order_seed, *seeds = np.random.SeedSequence(seed).generate_state(1 + len(categories))
    draw_seed = dict(zip(sorted(categories), seeds, strict=True))
    if rules.order == "shuffled":
        categories = shuffle(sorted(categories), random_state=int(order_seed))
    drawn = long_tail(sorted(categories), rules.shots, rules.imbalance, seed)
    pools = _pools(clips, missing)
    ends = list(accumulate(sizes))
    groups = [categories[end - size : end] for size, end in zip(sizes, ends, strict=True)]
    chosen: list[list[Clip]] = []
    for group in groups:
        chosen.append([])
        for category in group:
            train, test = pools[category, "train"], pools[category, "test"]
            _check_enough(category, len(train), len(test), drawn[category])
            draw = partial(resample, replace=False, random_state=int(draw_seed[category]))
            shown = draw(sorted(train, key=lambda clip: clip.id), n_samples=drawn[category])
            chosen[-1] += [*shown, *test]
            if rules.validation:
                spare = pools[category, "val"] or _left_over(train, [*shown, *test])
                _check_spare(category, len(spare), rules.validation)
                chosen[-1] += draw(sorted(spare, key=lambda clip: clip.id), n_samples=rules.validation)
    gone = [[clip for clip in clips if clip.id in set(missing) and clip.category in group] for group in groups]
    splits = _assemble(groups, chosen, ())
    return [
        replace(split, missing=[clip.id for clip in left_out]) for split, left_out in zip(splits, gone, strict=True)
    ]


def long_tail(categories: Sequence[str], shots: int, imbalance: float, seed: int) -> dict[str, int]:
    """Number of training clips of each category: from `shots` down to `shots / imbalance`, by a constant factor."""
    order = np.random.default_rng([seed, len(categories)]).permutation(len(categories))
    last = max(1, len(categories) - 1)
    counts = (max(1, round(shots * imbalance ** (-int(place) / last))) for place in order)
    return dict(zip(categories, counts, strict=True))


def read_missing(path: str | Path, clips: list[Clip]) -> list[str]:
    """Read which clips of the manifest have no frames, from the list that the stage `frames` writes.

    Raises
    ------
    UserError
        If the file is missing or is no list of clips, or names a clip that the manifest lacks.
    """
    entries = read_json(path)
    try:
        missing = [str(entry["clip"]) for entry in entries]
    except (TypeError, KeyError):
        raise UserError(f"{path}: must be a list of objects with a clip; run `dvc repro -f frames`") from None
    if unknown := sorted(set(missing) - {clip.id for clip in clips}):
        raise UserError(f"{path}: clip {unknown[0]} is not in the manifest; run `dvc repro frames`")
    return missing


def _left_over(train: list[Clip], taken: list[Clip]) -> list[Clip]:
    """Training clips of videos that no clip drawn for training or for the test shows, for validation."""
    used = {clip.video for clip in taken}
    return [replace(clip, split="val") for clip in train if clip.video not in used]


def _check_spare(category: str, spare: int, validation: int) -> None:
    if spare < validation:
        raise UserError(
            f"category {category!r} has {spare} videos with frames for validation, but "
            f"split.validation = {validation}; lower it, or add videos"
        )


def _check_enough(category: str, train: int, test: int, shots: int) -> None:
    if train < shots:
        raise UserError(
            f"category {category!r} has {train} training videos with frames, but split.shots = {shots}; "
            "lower split.shots or add videos"
        )
    if test < 1:
        raise UserError(f"category {category!r} has no test video with frames; add one")


def _pools(clips: list[Clip], missing: Collection[str]) -> dict[tuple[str, str], list[Clip]]:
    """Group the clips that have frames by category and side."""
    left_out = set(missing)
    pools: dict[tuple[str, str], list[Clip]] = defaultdict(list)
    for clip in clips:
        if clip.id not in left_out:
            pools[clip.category, clip.split].append(clip)
    return pools


def _assemble(order: list[list[str]], chosen: list[list[Clip]], missing: Collection[str]) -> list[TaskSplit]:
    """Number the categories, check that tasks do not share a video, drop what is missing."""
    names = [name for group in order for name in group]
    if len(set(names)) != len(names):
        raise UserError(f"category {next(name for name in names if names.count(name) > 1)!r} is in two tasks")
    ids = {name: index for index, name in enumerate(names)}
    _refuse_shared_videos(chosen)
    left_out = set(missing)
    splits = []
    for task, (group, clips) in enumerate(zip(order, chosen, strict=True), 1):
        kept = [clip for clip in clips if clip.id not in left_out]
        split = TaskSplit(
            task=task,
            num_tasks=len(order),
            num_categories=len(names),
            categories=[Category(ids[name], name) for name in group],
            train=[_sample(clip, ids) for clip in kept if clip.split == "train"],
            test=[_sample(clip, ids) for clip in kept if clip.split == "test"],
            validation=[_sample(clip, ids) for clip in kept if clip.split == "val"],
            missing=[clip.id for clip in clips if clip.id in left_out],
        )
        _refuse_empty_categories(split)
        splits.append(split)
    return splits


def _sample(clip: Clip, ids: dict[str, int]) -> Sample:
    return Sample(clip.id, ids[clip.category], clip.captions)


def _refuse_shared_videos(chosen: list[list[Clip]]) -> None:
    """One video in two tasks would leak the later task into the earlier one."""
    places: dict[str, int] = {}
    for task, clips in enumerate(chosen, 1):
        for clip in clips:
            earlier = places.setdefault(clip.video, task)
            if earlier != task:
                raise UserError(f"video {clip.video} is in task {earlier} and in task {task} (clip {clip.id})")


def _refuse_empty_categories(split: TaskSplit) -> None:
    sides = [("training", split.train), ("test", split.test)]
    if split.validation:
        sides.append(("validation", split.validation))
    for side, samples in sides:
        present = {sample.category for sample in samples}
        for category in split.categories:
            if category.id not in present:
                raise UserError(
                    f"task {split.task}: category {category.name!r} has no {side} video left "
                    f"({len(split.missing)} of the task are missing)"
                )
