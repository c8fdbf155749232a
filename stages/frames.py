"""Stage frames: N frames of every annotated clip, decoded once and packed."""

from __future__ import annotations

from stages.run import run
from structalign import paths
from structalign.config.schema import Config
from structalign.data.clips import MANIFEST, read_manifest
from structalign.data.datasets.common import video_root
from structalign.data.frames import extract, in_reading_order
from structalign.util.files import fresh_dir
from structalign.util.log import log


def main(config: Config) -> None:
    """Decode the clips of the manifest into data/frames."""
    clips = in_reading_order(read_manifest(paths.raw(config.data.name) / MANIFEST))
    with fresh_dir(paths.FRAMES) as folder:
        missing = extract(clips, video_root(config), folder, config.frames, config.machine.num_workers)
    log.info(f"{len(clips) - len(missing)} clips packed, {len(missing)} left out")


if __name__ == "__main__":
    run(main)
