"""What Hydra cannot compute by itself: the list of tasks, the last of them, and the file that lists the clips.

DVC loads this module when it composes `params.yaml` (`hydra.plugins_path` in `.dvc/config`), because a
`foreach` in `dvc.yaml` needs a ready-made list and cannot name 'the previous item'.
"""

import os
from pathlib import Path

from omegaconf import DictConfig, OmegaConf


def schedule(num_tasks: int) -> DictConfig:
    """Name the K tasks: `{'01': {'id': 1, 'previous': '00'}, '02': {'id': 2, 'previous': '01'}, ...}`."""
    numbers = range(1, _count(num_tasks) + 1)
    return OmegaConf.create({f"{task:02d}": {"id": task, "previous": f"{task - 1:02d}"} for task in numbers})


def last(num_tasks: int) -> str:
    """Name the last task: `'05'` for K = 5."""
    return f"{_count(num_tasks):02d}"


def annotations(data: DictConfig) -> str:
    """Path of the user's CSV, from the root so that copies of the project find it; else of the data set's parameters.

    `dvc.yaml` makes it a dependency: an edited CSV makes `download` run again.
    """
    if not data.get("csv"):
        return f"conf/data/{data.name}.yaml"
    project = os.environ.get("STRUCTALIGN_PROJECT", "")
    return os.path.abspath(Path(project, Path(data.csv).expanduser()))


def _count(num_tasks: object) -> int:
    """Refuse what cannot be a number of tasks before DVC makes stages of it."""
    if not isinstance(num_tasks, int) or isinstance(num_tasks, bool) or not 1 <= num_tasks <= 99:
        raise ValueError(f"K = {num_tasks!r}: the number of tasks must be a whole number from 1 to 99")
    return num_tasks


OmegaConf.register_new_resolver("ctvr.schedule", schedule, replace=True)
OmegaConf.register_new_resolver("ctvr.last", last, replace=True)
OmegaConf.register_new_resolver("ctvr.annotations", annotations, replace=True)
