"""Read stored frames: the shards and the index that the stage `frames` packed."""

from __future__ import annotations

import io
import threading
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from structalign import paths
from structalign.util.errors import UserError
from structalign.util.files import REPAIR_ADVICE, read_json


@dataclass(frozen=True)
class FrameEntry:
    """Where a clip's frames are, how many, and how large."""

    shard: str
    frames: int
    height: int
    width: int


def entry_name(clip: str, number: int) -> str:
    """Name the archive entry of a clip's frame."""
    return f"{clip}/{number:03d}.jpg"


class FrameStore:
    """Reads what `extract` packed; safe to use from several threads.

    Parameters
    ----------
    folder : Path

    Attributes
    ----------
    missing : list of str
        Clips that could not be decoded.
    notes : dict of str to list of str
        What was changed or is doubtful about clips, with their ids.

    Raises
    ------
    UserError
        If the folder is not a store of frames.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)
        try:
            index = read_json(self.folder / paths.FRAME_INDEX.name)
            self._clips = {clip: FrameEntry(**entry) for clip, entry in index["clips"].items()}
            self.notes = {note: list(clips) for note, clips in index["notes"].items()}
            self.missing = [item["clip"] for item in read_json(self.folder / paths.MISSING.name)]
        except (KeyError, TypeError, AttributeError):
            raise UserError(f"{self.folder}: index.json or missing.json is damaged; {REPAIR_ADVICE}") from None
        self._archives: dict[str, zipfile.ZipFile] = {}
        self._lock = threading.Lock()

    @property
    def ids(self) -> list[str]:
        """Clips in the store."""
        return list(self._clips)

    def decoded_bytes(self, clips: Iterable[str]) -> int:
        """Memory that the decoded frames of clips take."""
        entries = (self._clips[clip] for clip in clips if clip in self._clips)
        return sum(3 * entry.frames * entry.height * entry.width for entry in entries)

    def read(self, clip: str) -> np.ndarray:
        """Decode a clip's frames: uint8 (N, H, W, 3).

        Raises
        ------
        UserError
            If the clip is not in the store, or its shard is damaged.
        """
        entry = self._clips.get(clip)
        if entry is None:
            left_out = " (it could not be decoded)" if clip in self.missing else ""
            raise UserError(
                f"{self.folder}: no frames of clip {clip}{left_out}; run `dvc repro` from stage frames on"
            )
        frames = np.empty((entry.frames, entry.height, entry.width, 3), np.uint8)
        try:
            archive = self._archive(entry.shard)
            for number in range(len(frames)):
                frames[number] = np.asarray(Image.open(io.BytesIO(archive.read(entry_name(clip, number)))))
        except (OSError, EOFError, KeyError, ValueError, zipfile.BadZipFile) as error:
            raise UserError(
                f"{self.folder / entry.shard}: damaged at clip {clip} ({error}); {REPAIR_ADVICE}"
            ) from None
        return frames

    def _archive(self, shard: str) -> zipfile.ZipFile:
        """Open a shard once; `ZipFile` locks its file, so that threads may share it."""
        with self._lock:
            if shard not in self._archives:
                self._archives[shard] = zipfile.ZipFile(self.folder / shard)
            return self._archives[shard]
