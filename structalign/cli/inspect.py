"""Print what a checkpoint holds: `structalign inspect models/task-03`."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

from rich.console import Console
from rich.table import Table
from torch import Tensor

from structalign import paths
from structalign.evaluation.geometry import GEOMETRY
from structalign.util.checkpoint import Checkpoint
from structalign.util.command import command_parser, console, errors_in_one_line, parse
from structalign.util.files import read_json


def kind_of(name: str) -> str:
    """Group tensors by what they are: the numbers in their names (block, expert, task) become `*`."""
    return ".".join("*" if part.isdigit() else part for part in name.split("."))


def tensor_table(title: str, tensors: dict[str, Tensor]) -> Table:
    """Tabulate tensors by kind: how many, their shape, parameters and norm."""
    groups: dict[str, list[Tensor]] = defaultdict(list)
    for name, tensor in tensors.items():
        groups[kind_of(name)].append(tensor)
    table = Table(title=title, title_justify="left")
    table.add_column("tensor", overflow="fold")
    for column in ("count", "shape", "parameters", "MB", "mean norm"):
        table.add_column(column, justify="right")
    for kind, members in sorted(groups.items()):
        shapes = sorted({" x ".join(map(str, tensor.shape)) or "scalar" for tensor in members})
        numbers = sum(tensor.numel() for tensor in members)
        size = sum(tensor.numel() * tensor.element_size() for tensor in members) / 2**20
        norm = sum(float(tensor.float().norm()) for tensor in members) / len(members)
        table.add_row(kind, str(len(members)), ", ".join(shapes), f"{numbers:,}", f"{size:.2f}", f"{norm:.3f}")
    return table


def geometry_table(folder: Path) -> Table | None:
    """Tabulate how close class means came to a simplex ETF, if the evaluation has measured it."""
    record = paths.record_of(folder) / "recall.json"
    if not record.exists():
        return None
    rows = read_json(record)["rows"]
    measured = [(row["after"], modality, values) for row in rows for modality, values in row["geometry"].items()]
    if not measured:
        return None
    recorded = set().union(*(values for _, _, values in measured))
    shown = [measure for measure in GEOMETRY if measure.key in recorded]
    table = Table(title="class means against a simplex ETF (docs/metrics.md explains the measures)")
    table.title_justify = "left"
    for column in ("after task", "modality"):
        table.add_column(column, justify="right")
    for measure in shown:
        table.add_column(f"{measure.label}\n{measure.direction}\nideal {measure.ideal:g}", justify="right")
    for after, modality, values in measured:
        numbers = [f"{values[measure.key]:.4f}" if measure.key in values else "" for measure in shown]
        table.add_row(str(after), modality, *numbers)
    return table


def show(folder: Path, console: Console) -> None:
    """Print a checkpoint's facts and tables."""
    checkpoint = Checkpoint.load(folder)
    # without markup, because a category may have brackets in its name
    console.print(
        f"{folder}: after task {checkpoint.task}, method {checkpoint.method or 'none yet'}",
        style="bold",
        markup=False,
    )
    names = ", ".join(checkpoint.categories) or "none yet"
    console.print(f"{len(checkpoint.categories)} categories: {names}", markup=False, highlight=False)
    for title, tensors in (("trained weights", checkpoint.weights), ("memory", checkpoint.memory)):
        console.print(tensor_table(title, tensors) if tensors else f"{title}: none")
    table = geometry_table(folder)
    if table is not None:
        console.print(table)


def main() -> None:
    """Parse the command line and print."""
    parser = command_parser(__doc__)
    parser.add_argument("checkpoint", type=Path, help="a folder such as models/task-03")
    args = parse(parser)
    with errors_in_one_line(args.debug):
        show(args.checkpoint, console())
