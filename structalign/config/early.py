"""Checks of parameters, before anything is fetched, and of annotations, before anything is decoded."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any

from structalign.config.backbone import adapted_blocks, backbone_config
from structalign.util.errors import UserError, first_ten

if TYPE_CHECKING:
    from structalign.config.schema import Config
    from structalign.data.clips import Clip


def check_parameters(config: Config) -> None:
    """Refuse parameters that contradict each other, or the files that they name.

    Raises
    ------
    UserError
        If the backbone, its weights or its adapters are impossible, or built-in data cannot be divided into K tasks.
    """
    model = backbone_config(config.backbone.architecture, config.backbone.pretrained, config.backbone.weights)
    if config.model.vision_adapter not in ("none", "prompts"):
        blocks = model["vision_cfg"].get("layers", 12)
        adapted_blocks(config.model.adapter_layers, blocks, config.backbone.architecture)
    sizes = config.data.model_dump()
    if "categories" in sizes:
        task_sizes(config.K, sizes["categories"], config.split.categories_per_task)
    if config.split.shots > sizes.get("train_videos", config.split.shots):
        raise UserError(f"split.shots = {config.split.shots}: data.train_videos = {sizes['train_videos']}; lower it")


def check_clips(config: Config, clips: Sequence[Clip]) -> None:
    """Refuse clips that a draw of few shots cannot divide into K tasks, whatever the seed.

    Raises
    ------
    UserError
        If there are more categories than the backbone's features have room for, or categories cannot be divided, lack
        videos, or share videos. The message names all of them.
    """
    _check_room(config, len({clip.category for clip in clips}))
    if config.data.protocol != "fewshot":
        return
    categories = list(dict.fromkeys(clip.category for clip in clips))
    sizes = task_sizes(config.K, len(categories), config.split.categories_per_task)
    counts = Counter((clip.category, clip.split) for clip in clips)
    shots = config.split.shots
    if few := [f"{name!r} ({counts[name, 'train']})" for name in categories if counts[name, "train"] < shots]:
        raise UserError(
            f"split.shots = {shots}: {len(few)} of {len(categories)} categories have fewer training videos: "
            f"{first_ten(few)}; lower split.shots or add videos"
        )
    if none := [repr(name) for name in categories if not counts[name, "test"]]:
        raise UserError(
            f"{len(none)} of {len(categories)} categories have no test video: {first_ten(none)}; add some"
        )
    _check_validation(config, categories, counts)
    if config.K > 1:
        _refuse_videos_of_two_categories(clips)
    captions = min(len(clip.captions) for clip in clips if clip.split == "train")
    if shots * min(sizes) * captions < 2:
        raise UserError(
            f"split.shots = {shots}: a task of one category can have a single pair of video and caption, but "
            "the contrastive loss needs at least two; raise split.shots, add captions, or lower K"
        )


def task_sizes(num_tasks: int, num_categories: int, per_task: Sequence[int] | None) -> list[int]:
    """Say how many categories each task has.

    Parameters
    ----------
    num_tasks : int
        K.
    num_categories : int
    per_task : sequence of int, optional
        `split.categories_per_task`; without it, tasks are of one size.

    Raises
    ------
    UserError
        If the numbers are inconsistent.
    """
    if num_tasks < 1 or num_tasks > num_categories:
        raise UserError(f"K = {num_tasks}: must be from 1 to {num_categories}, the number of categories")
    if per_task is not None:
        if len(per_task) != num_tasks or sum(per_task) != num_categories:
            raise UserError(
                f"split.categories_per_task = {list(per_task)}: must be {num_tasks} numbers (K) that add up to "
                f"the {num_categories} categories; these {len(per_task)} add up to {sum(per_task)}"
            )
        return list(per_task)
    if num_categories % num_tasks:
        divisors = [str(number) for number in range(1, num_categories + 1) if num_categories % number == 0]
        later = num_categories // num_tasks
        uneven = [num_categories - later * (num_tasks - 1)] + [later] * (num_tasks - 1)
        raise UserError(
            f"K = {num_tasks}: does not divide the {num_categories} categories evenly; choose one of "
            f"{', '.join(divisors)}, or set split.categories_per_task={str(uneven).replace(' ', '')}"
        )
    return [num_categories // num_tasks] * num_tasks


def _check_room(config: Config, categories: int) -> None:
    """Refuse an ETF with fewer prototypes than categories, or more than equiangular vectors can be."""
    architecture = config.backbone.architecture
    width = backbone_config(architecture, config.backbone.pretrained, config.backbone.weights)["embed_dim"]
    classes = config.etf.num_classes or categories
    if categories <= classes <= width + 1 or config.loss.etf_weight == 0 or not _aligns_with_etf(config):
        return
    if classes < categories:
        raise UserError(f"etf.num_classes = {classes}: must be at least {categories}, the number of categories")
    raise UserError(
        f"{classes} equiangular prototypes need features of at least {classes - 1} numbers, and {architecture} "
        f"has {width}: take a wider backbone, or no ETF alignment with loss.etf_weight=0"
    )


def _aligns_with_etf(config: Config) -> bool:
    """Whether the method builds an ETF; imported by name, because that takes seconds and no result depends on it."""
    base, discover = (import_module(f"structalign.methods.base{name}") for name in ("", ".discover"))
    return issubclass(discover.method_class(config.method.name), base.AlignedMethod)


def _check_validation(config: Config, categories: Sequence[str], counts: Counter[tuple[str, Any]]) -> None:
    """Refuse more validation videos than a category has of its own, or else training videos that are not drawn."""
    drawn = config.split.shots if config.split.imbalance == 1 else 1
    spare = {name: counts[name, "val"] or counts[name, "train"] - drawn for name in categories}
    wanted = config.split.validation
    if few := [f"{name!r} ({number})" for name, number in spare.items() if number < wanted]:
        raise UserError(
            f"split.validation = {wanted}: {len(few)} of {len(categories)} categories have fewer videos for it: "
            f"{first_ten(few)}; lower it, or add rows whose split is val"
        )


def _refuse_videos_of_two_categories(clips: Sequence[Clip]) -> None:
    categories: dict[str, set[str]] = defaultdict(set)
    for clip in clips:
        categories[clip.video].add(clip.category)
    if shared := [f"{video} ({', '.join(sorted(found))})" for video, found in categories.items() if len(found) > 1]:
        raise UserError(
            f"videos in two categories, which can come in two tasks: {first_ten(shared)}; choose one "
            "category for each, cut the video in two files, or set K=1"
        )
