"""Delete stored outputs that are damaged, so that `dvc repro` makes or fetches them anew.

    structalign repair

DVC trusts the files in its cache and does not read them again: one that a failing disk has damaged comes back with
every `dvc repro`. This compares all of them, and the outputs in the project, with the checksums that DVC noted. So
outputs of a stage that was run by hand count as damaged, and so do those of a stage that is still running.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from pathlib import Path

import yaml

from structalign.experiments.results import dvc_repo
from structalign.util.command import command_parser, errors_in_one_line, parse
from structalign.util.log import log, progress

LOCK = Path("dvc.lock")
_OBJECT = re.compile(r"([0-9a-f]{32})(\.dir)?")


def repair(cache: Path) -> list[Path]:
    """Delete what does not have its checksum, in DVC's cache and among the outputs here.

    Parameters
    ----------
    cache : Path
        The folder of DVC's cached files, each named by its MD5.

    Returns
    -------
    list of Path
        What was deleted. An output that DVC's cache does not know is left alone.
    """
    noted = dict(_noted(cache))  # before damaged lists of folders are gone
    damaged = [path for path, checksum in _objects(cache) if _md5(path) != checksum]
    damaged += [
        path
        for path, checksum in noted.items()
        if path.is_file() and _object(cache, checksum).exists() and _md5(path) != checksum
    ]
    for path in damaged:
        log.warning(f"{path}: damaged, deleted")
        path.unlink()
    return damaged


def _objects(cache: Path) -> Iterator[tuple[Path, str]]:
    """Yield every cached file and the checksum in its name."""
    paths = sorted(cache.glob("[0-9a-f][0-9a-f]/*"))
    for path in progress(paths, desc="check", unit="file"):
        if (match := _OBJECT.fullmatch(path.parent.name + path.name)) and path.is_file():
            yield path, match[1]


def _object(cache: Path, checksum: str) -> Path:
    return cache / checksum[:2] / checksum[2:]


def _noted(cache: Path) -> Iterator[tuple[Path, str]]:
    """Yield every output's path and the checksum that dvc.lock, or a folder's list in the cache, gives it."""
    stages = yaml.safe_load(LOCK.read_text(encoding="utf-8"))["stages"] if LOCK.exists() else {}
    for stage in stages.values():
        for out in stage.get("outs", ()):
            if "md5" not in out:  # its files are listed one by one, as for a remote with versions
                continue
            if not out["md5"].endswith(".dir"):
                yield Path(out["path"]), out["md5"]
                continue
            try:
                entries = json.loads(_object(cache, out["md5"]).read_text(encoding="utf-8"))
            except (OSError, ValueError):
                continue  # the list itself is gone or damaged: the stage will run again
            for entry in entries:
                yield Path(out["path"], entry["relpath"]), entry["md5"]


def _md5(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "md5").hexdigest()


def main() -> None:
    """Parse the command line and repair."""
    args = parse(command_parser(__doc__))
    with errors_in_one_line(args.debug):
        with dvc_repo(Path.cwd()) as repo:
            damaged = repair(Path(repo.cache.local.path))
        log.info(f"{len(damaged)} damaged files deleted" + ("; run `dvc repro`" if damaged else ""))
