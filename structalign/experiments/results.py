"""Experiments that a project has, and what they measured."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from structalign.experiments.source import git
from structalign.util.errors import UserError

if TYPE_CHECKING:
    import pandas as pd

_REFERENCE = re.compile(r"refs/exps/[0-9a-f]{2}/[0-9a-f]{38}/(.+)")


def finished(project: Path) -> dict[str, str]:
    """Name the experiments of a project with their git references, under whatever commit."""
    listed = git("for-each-ref", "--format=%(refname)", "refs/exps", folder=project).decode().split()
    return {match[1]: match[0] for line in listed if (match := _REFERENCE.fullmatch(line))}


def dvc_cache(project: Path) -> Path:
    """Ask DVC where a project keeps its outputs."""
    from dvc.exceptions import NotDvcRepoError
    from dvc.repo import Repo

    try:
        with Repo(str(project)) as repo:
            return Path(repo.cache.local_cache_dir)
    except NotDvcRepoError as error:
        raise UserError(" ".join(str(error).split())) from None


def read_summary(project: Path, reference: str) -> dict[str, Any]:
    """Read an experiment's `metrics/summary.json`."""
    return json.loads(git("show", f"{reference}:metrics/summary.json", folder=project))


def read_curve(name: str) -> pd.DataFrame:
    """Read an experiment's recall by task, of which DVC's cache holds the file.

    Raises
    ------
    UserError
        If the cache no longer has it.
    """
    import dvc.api  # these take a second, and a run needs none of them
    import pandas as pd
    from dvc.exceptions import DvcException

    try:
        return pd.read_csv(io.StringIO(dvc.api.read("plots/recall_by_task.csv", rev=name)))
    except (DvcException, FileNotFoundError) as error:
        reason = " ".join(str(error).split())
        raise UserError(
            f"{name}: its files are no longer in DVC's cache ({reason}); "
            f"`dvc exp remove {name}`, and it will run again"
        ) from None
