"""Print experiments readably: what each changed, and its results.

    structalign show
    structalign show --study ablation

shows what `dvc exp show` knows. DVC gives every parameter that differs anywhere a column of its own; here each
experiment names what it changed against the commit that it started from.
"""

from __future__ import annotations

import csv
import itertools
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import yaml
from rich.table import Table
from rich.text import Text

from structalign.config.explain import FOLLOWS
from structalign.evaluation.metric_table import COST, METRICS
from structalign.experiments.study import slug
from structalign.util.command import command_parser, console, errors_in_one_line, parse
from structalign.util.cost import known_cost
from structalign.util.errors import UserError

SHOWN = [metric for metric in METRICS if metric.headline]
TIME = next(metric for metric in COST if metric.key == "train_seconds")

CHOICES = ("data.name", "method.name", "variant")
"""Parameters that set others, so that they are named first."""

NAMED = 6
"""Changes that are named of each experiment; the others are counted."""

Row = Mapping[str, str]


def parameters(values: Mapping[str, object], prefix: str = "") -> list[str]:
    """List the dotted keys of nested parameters, without those that follow from others."""
    keys: list[str] = []
    for key, value in values.items():
        if prefix or key not in FOLLOWS:
            keys += parameters(value, f"{prefix}{key}.") if isinstance(value, dict) else [prefix + key]
    return keys


def changes(row: Row, base: Row, keys: Sequence[str]) -> list[str]:
    """Name what differs between two experiments as overrides; a group that was exchanged stands for its keys.

    Parameters
    ----------
    row, base : mapping
        Rows of `dvc exp show --csv`.
    keys : sequence of str
        Dotted keys of parameters.
    """
    differing = [key for key in keys if row.get(key, "") != base.get(key, "")]
    chosen = {key.split(".")[0]: row[key] for key in CHOICES if key in differing}
    others = {key: row.get(key, "") for key in differing if key.split(".")[0] not in chosen}
    return [f"{key}={value}" for key, value in {**chosen, **others}.items()]


def experiments_table(rows: Sequence[Row], keys: Sequence[str]) -> Table:
    """Tabulate experiments under the commits that they started from."""
    units = "recall in %, forgetting and transfer in points; seconds as measured on this machine"
    table = Table(title=f"experiments ({units}; changes against the commit above)", box=None)
    table.title_justify = "left"
    table.add_column("experiment", no_wrap=True)
    for metric in SHOWN:
        table.add_column(metric.label.replace(" ", "\n"), justify="right", no_wrap=True)
    table.add_column(f"{TIME.label},\n{TIME.unit}", justify="right", no_wrap=True)
    table.add_column("changed", overflow="fold")
    base = next((row for row in rows if row["typ"] == "baseline" and row["rev"] != "workspace"), rows[0])
    for row in rows:
        commit = row["typ"] == "baseline"
        if commit and row["rev"] != "workspace":
            base = row
        name = row["rev"] if commit else f"  {row['Experiment'] or row['rev']}"
        numbers = [_number(row.get(metric.key, "")) for metric in SHOWN]
        seconds = known_cost(row.get("training", "")).get(TIME.key)
        numbers.append("" if seconds is None else f"{seconds:.0f}")
        table.add_row(Text(name, style="bold" if commit else ""), *numbers, Text(_remarks(row, base, keys)))
    return table


def _number(text: str) -> str:
    """Shorten a number; empty if there is none: DVC writes `!` if the file of a metric is missing."""
    return f"{float(text):.2f}" if text not in ("", "!", "-") else ""


def of_study(rows: Sequence[Row], study: str) -> list[Row]:
    """Keep a study's experiments, by name: so seeds of a label are neighbours in whatever order they ended."""
    kept: list[Row] = []
    for commit in (row for row in rows if row["typ"] == "baseline"):
        after = rows[rows.index(commit) + 1 :]
        below = list(itertools.takewhile(lambda row: row["typ"] != "baseline", after))
        named = [row for row in below if row["Experiment"].startswith(f"{slug([study])}-")]
        kept += [commit, *sorted(named, key=lambda row: row["Experiment"])]
    return kept


def _remarks(row: Row, base: Row, keys: Sequence[str]) -> str:
    changed = changes(row, base, keys)
    more = [f"and {len(changed) - NAMED} more"] if len(changed) > NAMED else []
    state = row.get("State", "")
    remarks = [state.lower()] if state and state != "Success" else []
    remarks += ["WARNING: epoch picked on the test set"] if row.get("select") == "best_on_test" else []
    return "; ".join([*remarks, " ".join([*changed[:NAMED], *more])]) if changed else "; ".join(remarks)


def main() -> None:
    """Parse the command line, ask DVC, and print."""
    parser = command_parser(__doc__)
    parser.add_argument("--num", type=int, default=1, help="commits to show, newest first (default: %(default)s)")
    parser.add_argument("--study", default=None, help="only what `structalign compare --study` made of this one")
    args = parse(parser)
    with errors_in_one_line(args.debug):
        command = [sys.executable, "-m", "dvc", "exp", "show", "--csv", "--num", str(args.num)]
        done = subprocess.run(command, text=True, capture_output=True, check=False)
        if done.returncode != 0:
            raise UserError(f"dvc exp show: {' '.join(done.stderr.split())}")
        rows: list[Row] = list(csv.DictReader(done.stdout.splitlines()))
        rows = of_study(rows, args.study) if args.study else rows
        keys = parameters(yaml.safe_load(Path("params.yaml").read_text(encoding="utf-8")))
        console().print(experiments_table(rows, keys))
