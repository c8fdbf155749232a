"""Run every label of a study with several seeds, and compare the results.

    structalign compare                           every method, 5 seeds, built-in data
    structalign compare --jobs 2                  two runs at a time
    structalign compare --data msrvtt --K 20 --executor slurm --partition gpu --gpus 1 --time 12:00:00
    structalign compare --data actnet -S data.videos=/path/to/videos
    structalign compare --study ablation          the choices within StructAlign, one by one
    structalign compare --study curves --labels "* as tuned,* K=*" --against K    a curve over the number of tasks
    structalign compare --quick --jobs 2          for runs of minutes: one process per run; only its numbers are kept

A study is a file in conf/study/: a label and its overrides per line. Each run is an experiment of DVC's, made in a
clone of its own, on one CPU thread (`-S threads=8` for more). Runs that the project has are not repeated; failed ones
are named, and run again at the next call. With --quick a run is one process in place of a dozen, and its numbers go
to .cache/quick in place of an experiment. Results come as runs.csv, table.md, figure.png, by_task.png and
differences.png in plots/compare; with --against also curve.png, recall against a parameter with a line for each
method and variant.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from structalign import paths
from structalign.experiments import executors
from structalign.experiments.batch import results_of, run_missing
from structalign.experiments.results import Results
from structalign.experiments.run import Workspace
from structalign.experiments.study import (
    StudyRun,
    chosen,
    common_overrides,
    composed,
    output_name,
    read_study,
    runs_of,
    seeds_of,
    value_of,
)
from structalign.report import figures
from structalign.report.compare import comparison_table, named_warnings, notes
from structalign.report.tables import check_same_data
from structalign.util.command import command_parser, errors_in_one_line, parse
from structalign.util.cost import known_cost
from structalign.util.errors import UserError
from structalign.util.files import atomic_write_text
from structalign.util.log import log


def collect(
    runs: list[StudyRun], results: Results, points: Mapping[str, Point] | None = None
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Read the summaries of the runs that the project has, and their recall by task.

    Raises
    ------
    UserError
        If runs of one seed ranked different data. A parameter that decides which videos are ranked after which task,
        such as K, may do so if runs are drawn against it: only those at the same of its values must agree then.
    """
    present = results.names()
    rows, curves = [], []
    for run in (run for run in runs if run.name in present):
        summary = results.summary(run.name)
        cost = known_cost(summary.get("training", ""))
        point = asdict(points[run.name]) if points else {}
        rows.append({"label": run.label, "seed": run.seed, "experiment": run.name, **point, **summary, **cost})
        curves.append(results.curve(run.name).assign(label=run.label, seed=run.seed))
    alike = defaultdict[tuple[int, Any], dict[str, Any]](dict)
    for row in rows:  # another seed draws other data, so only runs of one seed must agree
        alike[row["seed"], row.get("value")][row["experiment"]] = row
    for group in alike.values():
        check_same_data(group)
    return pd.DataFrame(rows), pd.concat(curves, ignore_index=True) if curves else pd.DataFrame()


def write(
    runs: pd.DataFrame, curves: pd.DataFrame, labels: list[str], reference: str, folder: Path, against: str = ""
) -> None:
    """Write runs.csv, table.md, figure.png (recall against forgetting), by_task.png, differences.png and curve.png.

    The last two only if there is something to pair, or to draw recall against.

    Parameters
    ----------
    runs : DataFrame
        A row a run, as `structalign.report.compare.comparison_table` takes them.
    curves : DataFrame
        Recall by task of all runs: label, seed, and the columns of `structalign.report.tables.recall_table`.
    labels : list of str
        Their order.
    reference : str
        The label that the others are paired with.
    folder : Path
    against : str
        The parameter that curve.png draws recall against; empty: none is drawn.
    """
    folder.mkdir(parents=True, exist_ok=True)
    atomic_write_text(folder / "runs.csv", runs.to_csv(index=False, lineterminator="\n"))
    table = comparison_table(runs, labels, reference).to_markdown(index=False, disable_numparse=True)
    atomic_write_text(folder / "table.md", "\n\n".join([table, *notes(runs)]) + "\n")
    warnings = "; ".join(named_warnings(runs))
    count = runs.seed.nunique()
    seeds = f"{count} seed{'s' * (count > 1)}"
    drawn = [
        ("figure.png", figures.recall_against_bwf(runs), f"{len(runs)} runs over {seeds}"),
        ("by_task.png", figures.compare_recall(curves), f"means over {seeds}; bands are one standard deviation"),
    ]
    if reference in set(runs.label) and runs.label.nunique() > 1:
        figure = figures.differences(runs, labels, reference)
        drawn.append(("differences.png", figure, f"paired over {seeds}; bars are 95% intervals, dots are seeds"))
    if against:
        figure = figures.against_parameter(runs, against)
        drawn.append(("curve.png", figure, f"means over {seeds}; bars are one standard deviation"))
    for name, figure, caption in drawn:
        figures.footnote(figure, caption, warnings)
        figures.save(figure, folder / name)
    log.info(f"written: {folder}/{', '.join(['runs.csv', 'table.md', *(name for name, *_ in drawn)])}")


def main() -> None:
    """Parse the command line, run and compare."""
    parser = command_parser(__doc__)
    parser.add_argument("--study", default="methods", help="file in conf/study (default: %(default)s)")
    parser.add_argument("--labels", default=None, help="of the file, such as full,finetune or 'SCL*' (default: all)")
    parser.add_argument(
        "--reference", default=None, help="label that the others are paired with (default: the first)"
    )
    parser.add_argument("--against", default="", metavar="KEY", help="parameter to draw recall against, such as K")
    parser.add_argument("--data", default=None, help="file in conf/data (default: that of conf/config.yaml)")
    parser.add_argument("--K", type=int, default=None, help="number of tasks (default: that of the data set)")
    parser.add_argument("--seeds", default="0,1,2,3,4", help="default: %(default)s")
    parser.add_argument(
        "-S", dest="overrides", action="append", default=[], metavar="KEY=VALUE", help="for every run"
    )
    parser.add_argument(
        "--output",
        type=Path,
        default=None,
        help=f"default: {paths.COMPARISONS}/STUDY[-DATA][-K][-hash of other overrides]",
    )
    parser.add_argument("--quick", action="store_true", help="one process per run; only its numbers are kept")
    executors.add_arguments(parser)
    args = parse(parser)
    with errors_in_one_line(args.debug):
        compare(args)


def compare(args: argparse.Namespace) -> None:
    """Run what is missing of a study and write the comparison.

    Raises
    ------
    UserError
        If runs are missing at the end; those that are there have been compared.
    """
    project = Path.cwd()
    resources = executors.resources(args)
    study = read_study(args.study)
    labels = {label: study[label] for label in chosen(args.labels, study, args.study)}
    reference = args.reference or next(iter(labels))
    if reference not in labels:
        raise UserError(f"--reference {reference}: must be one of {', '.join(labels)}")
    common = common_overrides(args)
    workspace = Workspace.of(project, args.scratch)
    seeds = seeds_of(args.seeds)
    # Seed by seed: so all labels are there to compare, if only for the first seeds, when time runs out.
    runs = runs_of(args.study, labels, common, seeds, workspace.source)
    points = points_of(runs, args.against) if args.against else None
    errors = run_missing(runs, workspace, resources, args.quick)
    table, curves = collect(runs, results_of(workspace, args.quick), points)
    if len(table):
        folder = args.output or paths.COMPARISONS / output_name(args.study, common)
        write(table, curves, list(labels), reference, folder, args.against)
        print((folder / "table.md").read_text(encoding="utf-8"))
    if errors:
        raise UserError(f"{len(errors)} of {len(runs)} runs are missing; the same command runs them again")


@dataclass(frozen=True)
class Point:
    """Where a run stands in a curve.

    Attributes
    ----------
    line : str
        Method and variant.
    value : float
        Of the parameter that the curve is drawn against.
    """

    line: str
    value: float


def points_of(runs: list[StudyRun], key: str) -> dict[str, Point]:
    """Look up where each run will stand in a curve against a parameter, by name of the run.

    Raises
    ------
    UserError
        If there is no such parameter, its value is not a number, or two runs of a seed stand at the same place.
    """
    points: dict[str, Point] = {}
    places: dict[tuple[int, Point], str] = {}
    for run, parameters in zip(runs, composed(runs).values(), strict=True):
        try:
            value = value_of(parameters, key)
        except UserError as error:
            raise UserError(f"--against {error}") from None
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise UserError(f"--against {key}: is {value!r} for {run.label}; a curve needs numbers")
        method, variant = parameters["method"]["name"], parameters["variant"]
        points[run.name] = Point(method if variant == "method" else f"{method} ({variant})", value)
        other = places.setdefault((run.seed, points[run.name]), run.label)
        if other != run.label:
            raise UserError(
                f"--against {key}: {other} and {run.label} are both {points[run.name].line} with {key}={value}; "
                "pick one of them by --labels"
            )
    return points
