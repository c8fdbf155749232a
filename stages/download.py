"""Bring the data set here: videos, annotations, and the manifest of its clips."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

from stages.run import run
from structalign import paths
from structalign.config.early import check_clips, check_parameters
from structalign.config.schema import Config
from structalign.data.clips import MANIFEST, Clip, write_manifest
from structalign.data.datasets.published_splits import require_published
from structalign.util.files import fresh_dir
from structalign.util.log import log


def main(config: Config) -> None:
    """Write `data/raw/<name>/`: the manifest, and what the data set itself consists of."""
    if config.data.protocol == "published":
        require_published(config.K, config.data.published_tasks)
    check_parameters(config)
    with fresh_dir(paths.raw(config.data.name)) as folder:
        clips = prepare(config, folder)
        write_manifest(clips, folder / MANIFEST)
        check_clips(config, clips)
    sides = [clip.split for clip in clips]
    if "val" in sides and not config.split.validation:
        log.warning(f"{sides.count('val')} validation clips are not used: split.validation = 0")
    categories = len({clip.category for clip in clips})
    log.info(
        f"{config.data.name}: {sides.count('train')} training, {sides.count('val')} validation and "
        f"{sides.count('test')} test clips, "
        f"{categories} categories"
    )


def prepare(config: Config, folder: Path) -> list[Clip]:
    """Fill the raw folder of a data set and list its clips."""
    # Each data set is a module of its own name, of which only the chosen one is a dependency of this stage.
    return import_module(f"structalign.data.datasets.{config.data.name}").prepare(config, folder)


if __name__ == "__main__":
    run(main)
