"""Stage backbone: the starting point, CLIP with untouched adapters and an empty memory, gallery and record."""

from __future__ import annotations

from torch import nn

from stages.run import run
from structalign import paths
from structalign.config.schema import Config
from structalign.model.clip import ClipInfo, open_clip_backbone, save_clip
from structalign.pretraining.tiny_clip import tiny_clip
from structalign.retrieval.gallery import save_index
from structalign.util.checkpoint import Checkpoint
from structalign.util.files import atomic_write_json, fresh_dir
from structalign.util.log import log
from structalign.util.seeding import configure_numerics

NOTHING_MEASURED: dict[str, list[object]] = {"tasks": [], "rows": []}
"""What the record holds before the first task (`structalign.evaluation.record`)."""


def main(config: Config) -> None:
    """Get CLIP's weights, by name, from a file, or the tiny one of the program; write models/clip and task 0."""
    configure_numerics(config.threads)
    clip, info = _backbone(config)
    with fresh_dir(paths.CLIP) as folder:
        save_clip(clip, info, folder)
    with fresh_dir(paths.checkpoint(0)) as folder:
        Checkpoint().save(folder)
    with fresh_dir(paths.gallery(0)) as folder:
        save_index(folder, 0)
    with fresh_dir(paths.record(0)) as folder:
        atomic_write_json(folder / "recall.json", NOTHING_MEASURED)
    log.info(f"{config.backbone.architecture}: {sum(weight.numel() for weight in clip.parameters()):,} parameters")


def _backbone(config: Config) -> tuple[nn.Module, ClipInfo]:
    settings = config.backbone
    if settings.architecture == "tiny":
        return tiny_clip()
    return open_clip_backbone(settings.architecture, settings.pretrained, settings.weights)


if __name__ == "__main__":
    run(main)
