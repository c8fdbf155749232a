"""Compose `params.yaml` from `conf/` without running anything, for those who run `dvc repro`.

    structalign params K=4 loss.etf_weight=0.5 data=msrvtt

takes the overrides that `dvc exp run -S` takes, and says in one line what is wrong with them. Without any, it
restores the defaults. A value with other characters than letters, digits and `_-+./:%@` is put in double quotes, and
the whole override in single quotes for the shell: 'data.videos="/data/Vidéos"'.
"""

from __future__ import annotations

from pathlib import Path

from structalign.config.compose import compose
from structalign.util.command import command_parser, errors_in_one_line, parse


def main() -> None:
    """Parse the command line and compose."""
    parser = command_parser(__doc__)
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="as for `dvc exp run -S`")
    parser.add_argument("--output", type=Path, default=Path("params.yaml"), help="default: %(default)s")
    args = parse(parser)
    with errors_in_one_line(args.debug):
        compose(args.overrides, args.output)
