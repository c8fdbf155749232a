"""Compose `params.yaml` from `conf/` without running anything, for people who live in `dvc repro`.

    structalign params K=4 loss.etf_weight=0.5 data=msrvtt

takes the overrides that `dvc exp run -S` takes, and says in one line what is wrong with them. Without any, it
restores the defaults. A value with other characters than letters, digits and `_-+./:%@` is put in double quotes, and
the whole override in single quotes for the shell: 'data.videos="/data/Vidéos"'.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from structalign.config.compose import compose
from structalign.util.command import errors_in_one_line, parse
from structalign.util.errors import UserError


def compose(overrides: list[str], output: Path) -> None:
    """Write to `output` what Hydra composes from `conf/` with `overrides`, by the function that DVC uses.

    Raises
    ------
    UserError
        Where Hydra refuses an override, or a composed value is not allowed; `output` then stays as it was.
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
    """Refuse what Hydra's grammar has no reading for, and what would add or delete keys."""
    key, equals, value = override.partition("=")
    if not equals or override.startswith(("+", "~")):
        raise UserError(
            f"{override}: overrides are written key=value, for keys that there are; none can be added or deleted"
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
    text = " ".join(str(error).split()).partition(" Config search path:")[0]  # where Hydra looked helps nobody
    if found := re.search(r"Could not override '([^']+)'", text):
        return f"{found[1]}: no such key{_similar(found[1], _keys(overrides, conf))}"
    if found := re.search(r"Could not find '(\w+)/([^']+)' Available options in '\w+': (.+)", text):
        group, name, choices = found[1], found[2], found[3].split()
        return f"{group}={name}: no such choice{_similar(name, choices)} (there are {', '.join(choices)})"
    return f"cannot compose {' '.join(overrides)}: {text}"


def _similar(name: str, names: list[str]) -> str:
    close = get_close_matches(name, names, n=1) or [one for one in names if one.split(".")[-1] == name.split(".")[-1]]
    return f"; is {close[0]} meant?" if close else ""


def _keys(overrides: list[str], conf: str) -> list[str]:
    """All keys, and the groups, that there are with the data set, method and variant of the overrides."""
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


def main() -> None:
    """Parse the command line and compose."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="as for `dvc exp run -S`")
    parser.add_argument("--output", type=Path, default=Path("params.yaml"), help="default: %(default)s")
    args = parse(parser)
    with errors_in_one_line(args.debug):
        compose(args.overrides, args.output)
