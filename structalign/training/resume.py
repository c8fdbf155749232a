"""Resume a task that was interrupted, from its last finished epoch.

The resume file lies outside DVC's outputs (DVC deletes those of a stage that it runs again) and is named by a
fingerprint of everything that the training depends on, so that any change starts afresh. It is written
atomically and removed when the task is done.
"""

from __future__ import annotations

import hashlib
import json
import time
import zipfile
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch

from structalign import paths
from structalign.config.pipeline import ROOT, dependencies, is_code, stage_entry
from structalign.config.schema import Config
from structalign.methods.base.discover import method_class
from structalign.util.errors import UserError
from structalign.util.files import REPAIR_ADVICE, atomic_write, project_folder
from structalign.util.log import log

KEPT_DAYS = 14
"""Days that the state of an interrupted training is kept."""


def training_fingerprint(config: Config, task: int) -> str:
    """Hash the parameters, code, data and weights that training a task reads, as `dvc.yaml` declares them.

    Parameters
    ----------
    config : Config
    task : int
        The task, from 1.

    Raises
    ------
    UserError
        If a shard of frames is damaged.
    """
    sections = set(stage_entry("train")["params"])
    digest = hashlib.sha256(json.dumps(config.model_dump(mode="json", include=sections), sort_keys=True).encode())
    for root, path in sorted(_inputs(config, task)):
        digest.update(str(path.relative_to(root)).encode())
        with path.open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    for line in _shard_checksums(sorted(paths.FRAMES.glob("*.zip"))):
        digest.update(line.encode())
    return digest.hexdigest()[:20]


def _inputs(config: Config, task: int) -> Iterator[tuple[Path, Path]]:
    """Files that training a task reads, each behind the folder it belongs to; frames only by their index."""
    values = {"key": f"{task:02d}", "item.previous": f"{task - 1:02d}", "method.name": config.method.name}
    for name in dependencies("train", values):
        root = ROOT if is_code(name) else Path()
        if Path(name).is_relative_to(paths.GALLERY) and not _reads_galleries(config):
            continue
        if name == str(paths.FRAMES):
            name = str(paths.FRAME_INDEX)
        elif name == str(paths.SPLIT) and not method_class(config.method.name).needs_all_tasks:
            name = str(paths.split(task))
        for path in [root / name] if (root / name).is_file() else (root / name).rglob("*"):
            if path.is_file() and "__pycache__" not in path.parts:
                yield root, path


def _reads_galleries(config: Config) -> bool:
    return method_class(config.method.name).needs_galleries or config.train.select != "last"


def _shard_checksums(shards: Iterable[Path]) -> Iterable[str]:
    """Checksums that the shards' own directories hold: all frames count, and none need be read."""
    for shard in shards:
        try:
            with zipfile.ZipFile(shard) as archive:
                for entry in archive.infolist():
                    yield f"{shard.name}/{entry.filename}:{entry.CRC:08x}"
        except zipfile.BadZipFile as error:
            raise UserError(f"{shard}: damaged ({error}); {REPAIR_ADVICE}") from None


def resume_folder() -> Path:
    """`.cache/resume` of the project; a run in one of DVC's temporary copies uses that of the project itself."""
    return project_folder() / paths.RESUME


def _forget_old(folder: Path) -> None:
    """Delete the resume files of trainings that were killed and never resumed; they can be gigabytes."""
    for path in folder.glob("*") if folder.exists() else ():
        with suppress(FileNotFoundError):  # another run tidies up as well
            if time.time() - path.stat().st_mtime > KEPT_DAYS * 86400:
                path.unlink()


class ResumeFile:
    """The state of training after its last finished epoch.

    Parameters
    ----------
    name : str
        `training_fingerprint` of the training.
    """

    def __init__(self, name: str) -> None:
        self.path = resume_folder() / f"{name}.pt"

    def save(self, state: dict[str, Any]) -> None:
        """Replace what was saved before by `state`: tensors, numbers, strings, lists and dicts."""
        try:
            with atomic_write(self.path) as stream:
                torch.save(state, stream)
        except RuntimeError as error:  # in which torch wraps what the stream raised, such as a full disk
            if isinstance(error.__context__, OSError):
                raise OSError(error.__context__.errno, error.__context__.strerror, str(self.path)) from None
            raise

    def load(self) -> dict[str, Any] | None:
        """Return what was saved, or None; a damaged file is moved aside with a warning."""
        _forget_old(self.path.parent)
        try:
            return torch.load(self.path, weights_only=True, map_location="cpu")
        except FileNotFoundError:
            return None
        except (RuntimeError, ValueError, EOFError, OSError, UnpicklingError, zipfile.BadZipFile) as error:
            if getattr(error, "errno", None) is not None or "allocate memory" in str(error):
                raise  # the machine's fault: the file may well be sound
            log.warning(f"{self.path}: cannot resume from it ({' '.join(str(error).split())}); starting afresh")
            self.path.replace(self.path.with_suffix(".damaged"))
            return None

    def remove(self) -> None:
        """Forget what was saved: the task is done."""
        self.path.unlink(missing_ok=True)
