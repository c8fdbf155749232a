"""Compose `params.yaml` from `conf/` without running anything, for people who live in `dvc repro`.

    structalign params K=4 loss.etf_weight=0.5 data=msrvtt

takes the overrides that `dvc exp run -S` takes. Without any, it restores the defaults.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from structalign.config.schema import Config
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

    conf = str(Path("conf").resolve())
    draft = output.with_name(f".{output.stem}.draft.yaml")
    try:
        compose_and_dump(draft, conf, None, "config", conf, overrides)
        Config.load(draft)
        draft.replace(output)
    except UserError as error:
        raise UserError(str(error).replace(str(draft), "the composed parameters")) from None
    except (HydraException, OmegaConfBaseException, ValueError) as error:
        reason = " ".join(str(error).split()).partition(" Config search path:")[0]  # where Hydra looked helps nobody
        raise UserError(f"cannot compose {' '.join(overrides)}: {reason}") from None
    finally:
        draft.unlink(missing_ok=True)


def main() -> None:
    """Parse the command line and compose."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="as for `dvc exp run -S`")
    parser.add_argument("--output", type=Path, default=Path("params.yaml"), help="default: %(default)s")
    args = parse(parser)
    with errors_in_one_line(args.debug):
        compose(args.overrides, args.output)
