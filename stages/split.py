"""Divide the categories into K tasks."""

from __future__ import annotations

from stages.run import run
from structalign import paths
from structalign.config.schema import Config
from structalign.data.clips import MANIFEST, Clip, read_manifest
from structalign.data.datasets.published_splits import read_published, require_published, split_file
from structalign.data.split import few_shot_split, published_split, read_missing
from structalign.data.tasks import TaskSplit, write_task
from structalign.util.files import fresh_dir
from structalign.util.log import log


def main(config: Config) -> None:
    """Write `data/split/task-NN.json` for every task."""
    clips = read_manifest(paths.raw(config.data.name) / MANIFEST)
    missing = read_missing(paths.MISSING, clips)
    splits = divide(config, clips, missing)
    with fresh_dir(paths.SPLIT) as folder:
        for split in splits:
            write_task(split, folder / paths.split(split.task).name)
    train, validation, test = (
        sum(len(getattr(split, side)) for split in splits) for side in ("train", "validation", "test")
    )
    numbers = sorted({len(split.categories) for split in splits})
    sizes = " to ".join(map(str, numbers[:: max(1, len(numbers) - 1)]))
    log.info(
        f"{len(splits)} tasks of {sizes} categories: {train} training, {validation} validation "
        f"and {test} test clips, {sum(len(split.missing) for split in splits)} missing"
    )


def divide(config: Config, clips: list[Clip], missing: list[str]) -> list[TaskSplit]:
    """Split as `data.protocol` says."""
    if config.data.protocol == "published":
        require_published(config.K, config.data.published_tasks)
        return published_split(read_published(split_file(paths.raw(config.data.name), config.K)), clips, missing)
    return few_shot_split(clips, config.K, config.split, config.seed, missing)


if __name__ == "__main__":
    run(main)
