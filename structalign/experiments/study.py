"""What a study asks for: labels and seeds, the overrides that make them, and a name for every run."""

from __future__ import annotations

import argparse
import fnmatch
import hashlib
import json
import re
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

from structalign.config.compose import compose
from structalign.experiments.source import TUNED, CodeSnapshot
from structalign.util.errors import UserError
from structalign.util.files import user_path

STUDIES = Path("conf/study")

ONE_THREAD = "threads=1"
"""What every run starts from. Jobs beside one another use cores better than threads within a run, and results must
not depend on the number of jobs."""

SHARED_STAGES = ("split", "backbone")
"""What the first training needs; DVC makes what these need as well. Runs that agree in it share it."""


@dataclass(frozen=True)
class StudyRun:
    """One run of a study.

    Attributes
    ----------
    name : str
        The experiment's; it changes with all that decides the result.
    label : str
        What the study calls it.
    seed : int
    overrides : tuple of str
        As `dvc exp run -S` takes them, the seed included.
    """

    name: str
    label: str
    seed: int
    overrides: tuple[str, ...]


def read_study(name: str) -> dict[str, list[str]]:
    """Read `conf/study/<name>.yaml`: labels with the overrides that make them.

    Raises
    ------
    UserError
        If there is no such file, or it is not a list of overrides for each of some labels.
    """
    path, study = read_yaml(STUDIES, name, "study")
    if not isinstance(study, dict) or not study:
        raise UserError(f"{path}: no runs; a line such as `without CRP: [loss.crp_weight=0]` makes one")
    return {str(label): override_list(overrides, f"{path}: {label}") for label, overrides in study.items()}


def override_list(value: Any, place: str) -> list[str]:
    """Take a value that was read at `place` for a list of overrides.

    Raises
    ------
    UserError
        If it is none.
    """
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise UserError(f"{place}: must be a list of overrides, such as [loss.crp_weight=0]")
    return value


def read_yaml(folder: Path, name: str, kind: str) -> tuple[Path, Any]:
    """Read `<folder>/<name>.yaml`; return its path and what it holds.

    Raises
    ------
    UserError
        If there is no such file, or it is not YAML. `kind` says what it should be.
    """
    path = folder / f"{name}.yaml"
    if not path.exists():
        known = ", ".join(sorted(file.stem for file in folder.glob("*.yaml")))
        raise UserError(f"{path}: no such {kind}; there are {known or 'none'}")
    try:
        return path, yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise UserError(f"{path}: not YAML ({' '.join(str(error).split())})") from None


def runs_of(
    study: str, labels: dict[str, list[str]], common: Sequence[str], seeds: Iterable[int], source: CodeSnapshot
) -> list[StudyRun]:
    """List the runs of a study: every label with every seed.

    Parameters
    ----------
    study : str
        Its name.
    labels : dict of str to list of str
        Overrides by label.
    common : sequence of str
        Overrides of every run; a label's own come after them.
    seeds : iterable of int
    source : CodeSnapshot
        The code that will run.
    """
    words = words_of(common)
    return [
        make_run([study, label, *words], label, seed, [*common, *overrides], source)
        for seed in seeds
        for label, overrides in labels.items()
    ]


def make_run(words: Sequence[str], label: str, seed: int, overrides: Sequence[str], source: CodeSnapshot) -> StudyRun:
    """Name a run: words for the reader, then a hash of the code, and one of overrides and the files that they name.

    A commit that leaves the code as it is renames no run.
    """
    settings = (ONE_THREAD, *overrides, f"seed={seed}")
    digest = hashlib.sha256(json.dumps(settings).encode() + named_files(overrides, source)).hexdigest()
    name = slug([*words, f"seed{seed}", source.code[:7], digest[:8]])
    return StudyRun(name, label, seed, settings)


def named_files(overrides: Iterable[str], source: CodeSnapshot) -> bytes:
    """Hash the user's CSV, weights and tuned values that overrides name: edited ones make other runs."""
    values = {key: value.strip("\"'") for key, _, value in (item.partition("=") for item in overrides)}
    named = [user_path(values[key]) for key in ("data.csv", "backbone.weights") if key in values]
    named.append(source.project / TUNED / f"{values.get('tuned', '')}.yaml")
    return b"".join(_digest(path, path.stat().st_mtime_ns) for path in named if path.is_file())


@lru_cache  # weights are large, and a study names them in every run
def _digest(path: Path, _mtime: int) -> bytes:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").digest()


def words_of(overrides: Iterable[str]) -> list[str]:
    """Take what a reader wants to see in a name: the data set and the number of tasks."""
    return [match[1] for item in overrides if (match := re.fullmatch(r"(?:data|K)=(\w+)", item))]


def slug(words: Iterable[str]) -> str:
    """Join words to a name that git, DVC, Slurm and file systems accept."""
    return re.sub(r"[^a-z0-9]+", "-", "-".join(words).lower()).strip("-")


def composed(runs: Iterable[StudyRun]) -> dict[str, dict[str, Any]]:
    """Compose the parameters of every run, before any of them starts.

    Raises
    ------
    UserError
        If a run's overrides do not compose; the message names the run's label.
    """
    parameters = {}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "params.yaml")
        for run in runs:
            try:
                compose(list(run.overrides), path)
            except UserError as error:
                raise UserError(f"{run.label}: {error}") from None
            parameters[run.name] = yaml.safe_load(path.read_text(encoding="utf-8"))
    return parameters


def to_prepare(runs: Sequence[StudyRun]) -> tuple[tuple[str, ...], ...]:
    """Pick a run for each different thing that must be made before the runs can start in parallel.

    Returns
    -------
    tuple of tuple of str
        The overrides of those runs.
    """
    keys = sorted(shared_parameters(Path("dvc.yaml")))
    variants: dict[str, tuple[str, ...]] = {}
    for run, parameters in zip(runs, composed(runs).values(), strict=True):
        variants.setdefault(json.dumps([value_of(parameters, key) for key in keys]), run.overrides)
    return tuple(variants.values())


def shared_parameters(path: Path) -> set[str]:
    """Keys of the parameters that the stages before training depend on, as `dvc.yaml` has them."""
    stages = yaml.safe_load(path.read_text(encoding="utf-8"))["stages"]
    makers = {out: name for name, stage in stages.items() for out in stage.get("outs", ()) if isinstance(out, str)}
    found: set[str] = set()
    names = list(SHARED_STAGES)
    while names:
        stage = stages.get(names.pop(), {})
        found.update(stage.get("params", ()))
        names += [makers[path] for path in stage.get("deps", ()) if path in makers]
    return found


def value_of(parameters: dict[str, Any], key: str) -> Any:
    """Look up a key such as `loss.etf_weight`.

    Raises
    ------
    UserError
        If there is no such parameter.
    """
    found: Any = parameters
    for part in key.split("."):
        if not isinstance(found, dict) or part not in found:
            raise UserError(f"{key}: no such parameter")
        found = found[part]
    return found


def chosen(wanted: str | None, labels: Iterable[str], study: str) -> list[str]:
    """List the labels that `--labels` names, by themselves or by patterns such as `* K=*`, or all.

    Raises
    ------
    UserError
        If the study has no such label.
    """
    labels = list(labels)
    parts = [part.strip() for part in (wanted or "*").split(",")]
    names = [wanted] if wanted in labels else parts  # a label may hold a comma
    found = {name: [name] if name in labels else fnmatch.filter(labels, name) for name in names}
    if unknown := [pattern for pattern, names in found.items() if not names]:
        raise UserError(f"--labels {', '.join(unknown)}: {study} has {', '.join(labels)}")
    return list(dict.fromkeys(name for names in found.values() for name in names))


def common_overrides(args: argparse.Namespace) -> list[str]:
    """List the overrides that `--data`, `--K` and `-S` give to every run."""
    named = {"data": args.data, "K": args.K}
    return [*(f"{key}={value}" for key, value in named.items() if value is not None), *args.overrides]


def seeds_of(text: str) -> list[int]:
    """Read seeds such as `0,1,2`.

    Raises
    ------
    UserError
        If one is not a whole number.
    """
    try:
        return list(dict.fromkeys(int(part) for part in text.split(",")))
    except ValueError:
        raise UserError(f"--seeds {text}: must be whole numbers, such as 0,1,2") from None


def output_name(study: str, common: list[str]) -> str:
    """Name a comparison: data and K in plain words, other overrides as a hash."""
    words = words_of(common)
    rest = [item for item in common if not words_of([item])]
    return slug([study, *words, *([hashlib.sha256(" ".join(rest).encode()).hexdigest()[:6]] if rest else [])])
