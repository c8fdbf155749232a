"""Checkpoints: what a task leaves behind, as a folder of safetensors and one JSON file."""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass, field
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from structalign.util.errors import UserError
from structalign.util.files import REPAIR_ADVICE, atomic_write_json


@dataclass
class Checkpoint:
    """The state after a task; task 0 is the untouched start, with nothing in it.

    Attributes
    ----------
    task : int
        The task that was learnt last.
    method : str
        The method that wrote it.
    categories : list of str
        Names of the categories seen so far; a name's position is its global id.
    weights : dict of Tensor
        What the retriever trained: adapters, or all of CLIP for the methods that fine-tune it.
    memory : dict of Tensor
        What the method carries from task to task: class statistics, projections.
    """

    task: int = 0
    method: str = ""
    categories: list[str] = field(default_factory=list)
    weights: dict[str, Tensor] = field(default_factory=dict)
    memory: dict[str, Tensor] = field(default_factory=dict)

    def save(self, folder: Path) -> None:
        """Write the checkpoint into an existing folder."""
        save_tensors(self.weights, folder / "adapters.safetensors")
        save_tensors(self.memory, folder / "memory.safetensors")
        facts = {key: value for key, value in vars(self).items() if key not in ("weights", "memory")}
        atomic_write_json(folder / "state.json", facts)

    @classmethod
    def load(cls, folder: Path) -> Checkpoint:
        """Read a checkpoint.

        Raises
        ------
        UserError
            If a file is missing, truncated or not what its name says.
        """
        state = folder / "state.json"
        try:
            facts = json.loads(state.read_text(encoding="utf-8"))
            checkpoint = cls(**facts)
        except FileNotFoundError:
            raise UserError(f"{state}: no such checkpoint; `dvc repro` makes it") from None
        except (ValueError, TypeError) as error:
            raise UserError(f"{state}: not a checkpoint's state: {error}; {REPAIR_ADVICE}") from None
        checkpoint.weights = load_tensors(folder / "adapters.safetensors")
        checkpoint.memory = load_tensors(folder / "memory.safetensors")
        return checkpoint


def save_tensors(tensors: dict[str, Tensor], path: Path) -> None:
    """Write tensors (moved to the CPU, in sorted order: same tensors, same bytes) as safetensors.

    Raises
    ------
    OSError
        If the disk is full, for example.
    """
    # Cloned, because safetensors refuses names that share memory.
    copies = {name: tensors[name].detach().cpu().contiguous().clone() for name in sorted(tensors)}
    try:
        save_file(copies, path)
    except SafetensorError as error:
        if number := re.search(r"os error (\d+)", str(error)):
            raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from None
        raise
    path.chmod(0o644)  # safetensors makes files that only their owner can read


def load_tensors(path: Path) -> dict[str, Tensor]:
    """Read tensors, all on the CPU; a missing or damaged file is a `UserError`."""
    try:
        return load_file(path)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; `dvc repro` makes it") from None
    except (SafetensorError, ValueError) as error:
        raise UserError(f"{path}: damaged, not safetensors ({error}); {REPAIR_ADVICE}") from None
