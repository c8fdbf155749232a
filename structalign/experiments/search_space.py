"""What `structalign tune` searches: the files in `conf/tune/`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from structalign.experiments.study import override_list, read_yaml
from structalign.util.errors import UserError

SPACES = Path("conf/tune")


@dataclass(frozen=True)
class Times:
    """A range around the value that a label has untuned, so that one file serves data sets whose rates differ.

    Attributes
    ----------
    low, high : float
        Factors; the range is searched on a logarithmic scale.
    """

    low: float
    high: float

    def around(self, value: Any, key: str) -> FloatDistribution:
        """Take the range around a value.

        Raises
        ------
        UserError
            If the value is not a number above 0.
        """
        if isinstance(value, bool) or not isinstance(value, int | float) or value <= 0:
            raise UserError(f"{key} = {value!r}: `times` needs a number above 0 to multiply; give low and high")
        return FloatDistribution(self.low * value, self.high * value, log=True)


@dataclass(frozen=True)
class SearchSpace:
    """What `conf/tune/<name>.yaml` asks for.

    Attributes
    ----------
    name : str
    overrides : tuple of str
        Of every trial.
    labels : dict of str to list of str
        What is tuned: labels with their overrides.
    spaces : dict of str to dict
        By label, the keys that are searched with their distributions, or factors of their untuned values.
    """

    name: str
    overrides: tuple[str, ...]
    labels: dict[str, list[str]]
    spaces: dict[str, dict[str, BaseDistribution | Times]]


def read_space(name: str) -> SearchSpace:
    """Read `conf/tune/<name>.yaml`.

    Raises
    ------
    UserError
        If there is no such file, or it cannot be understood.
    """
    path, content = read_yaml(SPACES, name, "search space")
    if not isinstance(content, dict) or not isinstance(content.get("labels"), dict) or not content["labels"]:
        raise UserError(f"{path}: no labels; `labels:` names what is tuned, with its overrides and what is searched")
    if unknown := set(content) - {"overrides", "search", "labels"}:
        raise UserError(f"{path}: {', '.join(sorted(unknown))}: unknown; there are overrides, search, labels")
    labels: dict[str, list[str]] = {}
    spaces: dict[str, dict[str, BaseDistribution | Times]] = {}
    for label, entry in content["labels"].items():
        entry = entry or {}
        if not isinstance(entry, dict) or (unknown := set(entry) - {"overrides", "search"}):
            raise UserError(f"{path}: {label}: must have `overrides` or `search` or both, and nothing else")
        labels[str(label)] = override_list(entry.get("overrides") or [], f"{path}: {label}: overrides")
        searched = {**_searched(content, str(path)), **_searched(entry, f"{path}: {label}")}
        spaces[str(label)] = {key: _distribution(value, f"{path}: {label}: {key}") for key, value in searched.items()}
        if not searched:
            raise UserError(f"{path}: {label}: nothing is searched")
    common = override_list(content.get("overrides") or [], f"{path}: overrides")
    return SearchSpace(name, tuple(common), labels, spaces)


def _searched(entry: dict[str, Any], place: str) -> dict[str, Any]:
    found = entry.get("search") or {}
    if not isinstance(found, dict):
        raise UserError(f"{place}: search: must be keys of parameters, each with a list, times, or low and high")
    return found


def _distribution(value: Any, place: str) -> BaseDistribution | Times:
    """Read `[a, b, c]`, `{times: [0.1, 10]}`, or `{low: 1, high: 9, log: true}`, of whole numbers if both are."""
    try:
        if isinstance(value, list):
            return CategoricalDistribution(value)
        if set(value) == {"times"}:
            low, high = value["times"]
            if not 0 < low < high:
                raise ValueError(f"times = [{low}, {high}] is no range above 0")
            return Times(low, high)
        whole = isinstance(value["low"], int) and isinstance(value["high"], int)
        return IntDistribution(**value) if whole else FloatDistribution(**value)
    except (TypeError, KeyError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{place}: must be a list, times, or low and high with log or step ({reason})") from None


def offers(domain: BaseDistribution, value: Any) -> bool:
    """Whether a value is among those that are searched."""
    if isinstance(domain, CategoricalDistribution):
        return value in domain.choices
    return isinstance(value, int | float) and domain.low <= value <= domain.high  # type: ignore[attr-defined]


def middle(space: Mapping[str, BaseDistribution]) -> dict[str, Any]:
    """Pick values within a search space, to see whether they compose."""
    return {
        key: domain.choices[0] if isinstance(domain, CategoricalDistribution) else domain.low  # type: ignore[attr-defined]
        for key, domain in space.items()
    }
