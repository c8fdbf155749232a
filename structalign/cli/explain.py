"""Say what parameters mean: `structalign explain loss.etf` lists those whose key contains this text.

structalign explain                          all of them
structalign explain train                    those of training
structalign explain --markdown > docs/parameters.md
"""

from __future__ import annotations

from collections.abc import Iterable

from rich.table import Table

from structalign.config.explain import Parameter, parameters
from structalign.util.command import command_parser, console, errors_in_one_line, parse
from structalign.util.errors import UserError

INTRODUCTION = """# Parameters

Every parameter, as `structalign/config/schema.py` documents it. Set one with `dvc exp run -S key=value`. A bad value
stops a stage with one line that names the key. The defaults stand in `conf/`. `structalign explain KEY` prints a part
of this table; `structalign explain --markdown > docs/parameters.md` writes it.

| key | values | meaning |
|---|---|---|
"""


def to_markdown(rows: Iterable[Parameter]) -> str:
    """Lay parameters out as the page docs/parameters.md."""
    lines = (f"| `{row.key}` | {row.values} | {row.meaning} |".replace("  |", " |") for row in rows)
    return INTRODUCTION + "\n".join(lines)


def main() -> None:
    """Parse the command line and print."""
    parser = command_parser(__doc__)
    parser.add_argument("key", nargs="?", default="", help="a part of the key (default: all parameters)")
    parser.add_argument("--markdown", action="store_true", help="print the page docs/parameters.md")
    args = parse(parser)
    with errors_in_one_line(args.debug):
        rows = [row for row in parameters() if args.key in row.key]
        if not rows:
            raise UserError(f"{args.key}: no parameter has this in its key; `structalign explain` lists all")
        if args.markdown:
            print(to_markdown(rows))
            return
        table = Table(box=None)
        for column in ("key", "values", "meaning"):
            table.add_column(column, overflow="fold")
        for row in rows:
            table.add_row(row.key, row.values, row.meaning)
        console().print(table)
