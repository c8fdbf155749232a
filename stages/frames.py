"""Stage frames: N frames of every annotated clip, decoded once and packed."""

from __future__ import annotations

import shutil

from stages.run import run
from structalign import paths
from structalign.config.pipeline import code_digest
from structalign.config.schema import Config
from structalign.data.clips import MANIFEST, read_manifest
from structalign.data.datasets.common import video_root
from structalign.data.frames import extract, in_reading_order
from structalign.util.files import fresh_dir
from structalign.util.log import log


def main(config: Config) -> None:
    """Decode the clips of the manifest into data/frames."""
    clips = in_reading_order(read_manifest(paths.raw(config.data.name) / MANIFEST))
    keep = paths.DECODED / code_digest("frames")
    if kept := len(list(keep.glob("*.zip"))):
        log.info(
            f"an earlier run stopped after decoding {kept} clips; they are not decoded again, unless they changed"
        )
    with fresh_dir(paths.FRAMES) as folder:
        missing = extract(clips, video_root(config), folder, config.frames, config.machine.num_workers, keep)
    shutil.rmtree(paths.DECODED, ignore_errors=True)
    log.info(f"{len(clips) - len(missing)} clips packed, {len(missing)} left out")


if __name__ == "__main__":
    run(main)
