"""Composing `params.yaml` from `conf/`, and saying what is wrong with an override."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from structalign.config.schema import Config
from structalign.util.errors import UserError


def compose(overrides: list[str], output: Path) -> None:
    """Write to `output` what Hydra composes from `conf/` with `overrides`, by the function that DVC uses.

    Raises
    ------
    UserError
        If Hydra refuses an override, or a composed value is not allowed; `output` then stays as it was.
    """
    from dvc.utils.hydra import compose_and_dump
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    for override in overrides:
        _check_syntax(override)
    conf = str(Path("conf").resolve())
    draft = output.with_name(f".{output.stem}.draft.yaml")
    try:
        compose_and_dump(draft, conf, None, "config", conf, overrides)
        Config.load(draft)
        draft.replace(output)
    except UserError as error:
        raise UserError(str(error).replace(str(draft), "the composed parameters")) from None
    except (HydraException, OmegaConfBaseException, ValueError) as error:
        raise UserError(_explained(overrides, error, conf)) from None
    finally:
        draft.unlink(missing_ok=True)


def _check_syntax(override: str) -> None:
    """Refuse what Hydra's grammar cannot parse, and what would add or delete keys."""
    key, equals, value = override.partition("=")
    if not equals or override.startswith(("+", "~")):
        raise UserError(
            f"{override}: overrides are written key=value, for keys that exist; none can be added or deleted"
        )
    if not re.fullmatch(r"[A-Za-z_][\w.]*", key):
        right = ".".join(re.findall(r"\w+", key))
        raise UserError(f"{override}: the parts of a key are joined by dots: {right}={value}")
    if not _parses(override):
        text = value.strip("\"'").replace("\\", "\\\\").replace('"', '\\"')
        right = shlex.quote(f'{key}="{text}"')
        raise UserError(
            f"{override}: the value needs double quotes, and single quotes around them for the shell: {right}"
        )


def _parses(override: str) -> bool:
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    try:
        OverridesParser.create().parse_override(override)
    except HydraException:
        return False
    return True


def _explained(overrides: list[str], error: Exception, conf: str) -> str:
    """Say which override is wrong, and which key or choice may be meant."""
    text = " ".join(str(error).split()).partition(" Config search path:")[0]  # users need not know where Hydra looked
    if found := re.search(r"Could not override '([^']+)'", text):
        return f"{found[1]}: no such key{_similar(found[1], _keys(overrides, conf))}"
    if found := re.search(r"Could not find '(\w+)/([^']+)' Available options in '\w+': (.+)", text):
        group, name, choices = found[1], found[2], found[3].split()
        return f"{group}={name}: no such choice{_similar(name, choices)} (there are {', '.join(choices)})"
    return f"cannot compose {' '.join(overrides)}: {text}"


def _similar(name: str, names: list[str]) -> str:
    close = get_close_matches(name, names, n=1) or [one for one in names if one.split(".")[-1] == name.split(".")[-1]]
    return f"; did you mean {close[0]}?" if close else ""


def _keys(overrides: list[str], conf: str) -> list[str]:
    """All keys and groups that exist with the data set, method and variant of the overrides."""
    from dvc.utils.hydra import load_hydra_plugins
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir
    from omegaconf import OmegaConf

    groups = [path.name for path in Path(conf).iterdir() if path.is_dir()]
    chosen = [override for override in overrides if override.partition("=")[0] in groups]
    load_hydra_plugins(conf)
    with initialize_config_dir(conf, version_base=None):
        values = OmegaConf.to_container(hydra_compose(config_name="config", overrides=chosen))
    return [*groups, *_flat(values)]


def _flat(values: Any, prefix: str = "") -> Iterator[str]:
    for key, value in values.items():
        yield f"{prefix}{key}"
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
