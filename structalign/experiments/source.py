"""The code that experiments run: a commit, and what has changed in the work tree since."""

from __future__ import annotations

import configparser
import hashlib
import os
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from structalign.util.errors import UserError

CODE = ("structalign", "stages", "conf", "dvc.yaml", ".dvc/config")
"""What decides a run's result besides its overrides."""

NOT_CODE = (":!conf/study", ":!conf/tune")
"""What only says which runs there are: their overrides count by themselves."""

TUNED = "conf/tuned"
"""Values that runs read by the override `tuned`; they count for those runs alone."""

IDENTITY = {"user.name": "structalign", "user.email": "structalign@localhost"}
"""Who commits an experiment on a machine on which git knows no name."""


def git(*arguments: str, folder: Path, stdin: bytes | None = None, index: Path | None = None) -> bytes:
    """Run git in `folder` and return what it printed.

    Parameters
    ----------
    *arguments : str
    folder : Path
    stdin : bytes, optional
    index : Path, optional
        An index file in place of the repository's own.

    Raises
    ------
    UserError
        If git fails, with the last line of what it said.
    """
    environment = {**os.environ, **({"GIT_INDEX_FILE": str(index)} if index else {})}
    done = subprocess.run(
        ["git", *arguments], cwd=folder, env=environment, input=stdin, capture_output=True, check=False
    )
    if done.returncode:
        said = "".join(done.stderr.decode(errors="replace").splitlines()[-1:])  # a full disk fills a line a file
        raise UserError(f"git {' '.join(arguments[:2])} in {folder}: {said or f'exit status {done.returncode}'}")
    return done.stdout


@dataclass(frozen=True)
class CodeSnapshot:
    """The code of a project at one moment.

    Attributes
    ----------
    project : Path
        The project's folder.
    commit : str
        Full hash of the commit that is checked out.
    patch : bytes
        Uncommitted changes to `CODE`, new files included, as `git apply` takes them; empty if there are none.
    code : str
        Hash of the files in `CODE`, committed or not, without those that only some runs read: names of runs have it.
    changed_files : tuple of str
        Files of `CODE` that differ from the commit.
    """

    project: Path
    commit: str
    patch: bytes
    code: str
    changed_files: tuple[str, ...]

    @classmethod
    def of(cls, project: Path) -> CodeSnapshot:
        """Take the code as it is now; neither the work tree nor its index is touched.

        Raises
        ------
        UserError
            If the project is not a git repository with a commit.
        """
        commit = git("rev-parse", "--verify", "HEAD", folder=project).decode().strip()
        with tempfile.TemporaryDirectory() as temporary:
            index = Path(temporary, "index")
            present = [path for path in CODE if (project / path).exists()]
            git("read-tree", commit, folder=project, index=index)
            git("add", "--all", "--", *present, *NOT_CODE, folder=project, index=index)
            options = ("--cached", "--binary", "--full-index", "--no-color", "--no-ext-diff")
            patch = git("diff", *options, commit, "--", *CODE, *NOT_CODE, folder=project, index=index)
            names = git(
                "diff", "--cached", "--name-only", "-z", commit, "--", *CODE, *NOT_CODE, folder=project, index=index
            )
            files = git("ls-files", "--stage", "--", *CODE, *NOT_CODE, f":!{TUNED}", folder=project, index=index)
        changed = names.decode(errors="replace").split("\0")[:-1]
        return cls(project, commit, patch, hashlib.sha256(files).hexdigest(), tuple(changed))

    def clone(self, folder: Path, cache: Path) -> None:
        """Make a repository in `folder` with this code, which shares the project's git objects and DVC cache.

        Parameters
        ----------
        folder : Path
            Must not exist.
        cache : Path
            The project's DVC cache.
        """
        folder.parent.mkdir(parents=True, exist_ok=True)
        origin, clone = str(self.project), str(folder)
        git("clone", "--quiet", "--shared", "--no-checkout", origin, clone, folder=self.project)
        git("checkout", "--quiet", "--detach", self.commit, folder=folder)
        if self.patch:
            git("apply", "--index", "--whitespace=nowarn", "-", folder=folder, stdin=self.patch)
        for key, fallback in IDENTITY.items():
            known = git("config", "--default", fallback, "--get", key, folder=self.project)
            git("config", key, known.decode().strip(), folder=folder)
        self._configure_dvc(folder, cache)

    def _configure_dvc(self, folder: Path, cache: Path) -> None:
        """Take over the project's local settings; point to its cache; keep DVC's notes inside the clone."""
        local = configparser.RawConfigParser()
        local.optionxform = str  # type: ignore[assignment,method-assign]  # keys keep their case
        local.read(self.project / ".dvc/config.local", encoding="utf-8")
        for section, key, value in (("cache", "dir", cache), ("core", "site_cache_dir", folder / ".dvc/site")):
            if not local.has_section(section):
                local.add_section(section)
            local.set(section, key, str(value))
        with (folder / ".dvc/config.local").open("w", encoding="utf-8") as stream:
            local.write(stream)
