"""What Hydra cannot compute by itself: the list of tasks, and the last of them, from their number K.

DVC loads this module when it composes `params.yaml` (`hydra.plugins_path` in `.dvc/config`), because a
`foreach` in `dvc.yaml` needs a ready-made list and cannot name 'the previous item'.
"""

from omegaconf import DictConfig, OmegaConf


def schedule(num_tasks: int) -> DictConfig:
    """Name the K tasks: `{'01': {'id': 1, 'previous': '00'}, '02': {'id': 2, 'previous': '01'}, ...}`."""
    numbers = range(1, _count(num_tasks) + 1)
    return OmegaConf.create({f"{task:02d}": {"id": task, "previous": f"{task - 1:02d}"} for task in numbers})


def last(num_tasks: int) -> str:
    """Name the last task: `'05'` for K = 5."""
    return f"{_count(num_tasks):02d}"


def _count(num_tasks: object) -> int:
    """Refuse what cannot be a number of tasks before DVC makes stages of it."""
    if not isinstance(num_tasks, int) or isinstance(num_tasks, bool) or not 1 <= num_tasks <= 99:
        raise ValueError(f"K = {num_tasks!r}: the number of tasks must be a whole number from 1 to 99")
    return num_tasks


OmegaConf.register_new_resolver("ctvr.schedule", schedule, replace=True)
OmegaConf.register_new_resolver("ctvr.last", last, replace=True)
