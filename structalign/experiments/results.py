"""Runs that a project has, and what they measured: experiments of DVC's, and quick runs."""

from __future__ import annotations

import io
import json
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from structalign import paths
from structalign.experiments.source import git
from structalign.util.errors import UserError
from structalign.util.files import fresh_dir, read_json

if TYPE_CHECKING:
    import pandas as pd
    from dvc.repo import Repo

_REFERENCE = re.compile(r"refs/exps/[0-9a-f]{2}/[0-9a-f]{38}/(.+)")


def finished(project: Path) -> dict[str, str]:
    """Name the experiments of a project with their git references, under whatever commit."""
    listed = git("for-each-ref", "--format=%(refname)", "refs/exps", folder=project).decode().split()
    return {match[1]: match[0] for line in listed if (match := _REFERENCE.fullmatch(line))}


@contextmanager
def dvc_repo(project: Path) -> Iterator[Repo]:
    """Yield DVC's view of a project, which may be any folder within it.

    Raises
    ------
    UserError
        If it is not a DVC project.
    """
    from dvc.exceptions import NotDvcRepoError
    from dvc.repo import Repo  # takes a second

    try:
        repo = Repo(str(project))
    except NotDvcRepoError as error:
        raise UserError(" ".join(str(error).split())) from None
    with repo:
        yield repo


def dvc_cache(project: Path) -> Path:
    """Return the folder in which DVC keeps a project's outputs; a `UserError` if it is not a DVC project."""
    with dvc_repo(project) as repo:
        return Path(repo.cache.local_cache_dir)


class Results(Protocol):
    """Where finished runs are found by their names."""

    def names(self) -> set[str]:
        """All finished runs."""

    def summary(self, name: str) -> dict[str, Any]:
        """What a run wrote to `metrics/summary.json`."""

    def curve(self, name: str) -> pd.DataFrame:
        """What a run wrote to `plots/recall_by_task.csv`."""


@dataclass(frozen=True)
class Experiments:
    """The experiments of a project that DVC keeps.

    Attributes
    ----------
    project : Path
    """

    project: Path

    def names(self) -> set[str]:
        """All experiments, under whatever commit."""
        return set(finished(self.project))

    def summary(self, name: str) -> dict[str, Any]:
        """Read a run's summary from its commit."""
        reference = finished(self.project)[name]
        return json.loads(git("show", f"{reference}:{paths.SUMMARY}", folder=self.project))

    def curve(self, name: str) -> pd.DataFrame:
        """Read a run's recall by task, which DVC's cache holds.

        Raises
        ------
        UserError
            If the cache no longer has it.
        """
        import dvc.api  # these take a second, and a run needs none of them
        import pandas as pd
        from dvc.exceptions import DvcException

        try:
            return pd.read_csv(io.StringIO(dvc.api.read(str(paths.RECALL_BY_TASK), repo=str(self.project), rev=name)))
        except (DvcException, FileNotFoundError) as error:
            reason = " ".join(str(error).split())
            raise UserError(
                f"{name}: its files are no longer in DVC's cache ({reason}); "
                f"`dvc exp remove {name}`, and it will run again"
            ) from None


@dataclass(frozen=True)
class QuickResults:
    """What quick runs left in the project.

    Attributes
    ----------
    project : Path
    """

    project: Path

    def names(self) -> set[str]:
        """All quick runs that have ended."""
        return {path.parent.name for path in (self.project / paths.QUICK).glob(f"[!.]*/{paths.SUMMARY.name}")}

    def summary(self, name: str) -> dict[str, Any]:
        """Read a run's summary."""
        return read_json(self.project / paths.QUICK / name / paths.SUMMARY.name)

    def curve(self, name: str) -> pd.DataFrame:
        """Read a run's recall by task."""
        import pandas as pd

        return pd.read_csv(self.project / paths.QUICK / name / paths.RECALL_BY_TASK.name)

    def keep(self, name: str, folder: Path) -> None:
        """Take over what a run in `folder` has measured."""
        with fresh_dir(self.project / paths.QUICK / name) as kept:
            for path in (paths.SUMMARY, paths.RECALL_BY_TASK):
                shutil.copyfile(folder / path, kept / path.name)
