"""Queue experiments over several seeds through DVC, run them, and set them side by side.

    python -m stages.compare                           every method, 3 seeds, built-in data
    python -m stages.compare --data msrvtt --K 20      the same on MSR-VTT
    python -m stages.compare --study ablation          the choices within StructAlign, one by one

A study is a file in conf/study/: a label and its overrides per line. Results come as runs.csv, table.md and
figure.png; a failed experiment is named and the rest continue.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from structalign import figures
from structalign.compare import comparison_table, to_markdown
from structalign.errors import UserError
from structalign.files import atomic_write_text
from structalign.log import configure, log, progress_bar
from structalign.report import check_same_data

POLL_SECONDS = 5.0


def read_study(name: str) -> dict[str, list[str]]:
    """Read `conf/study/<name>.yaml`: labels with the overrides that make them."""
    path = Path(f"conf/study/{name}.yaml")
    if not path.exists():
        known = ", ".join(sorted(file.stem for file in path.parent.glob("*.yaml")))
        raise UserError(f"{path}: no such study; there are {known}")
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def experiment_name(study: str, label: str, seed: int, common: list[str]) -> str:
    """Name an experiment so that `dvc exp show` and a second call recognise it."""
    words = [study, label, *(item.split("=", 1)[1] for item in common), f"seed{seed}"]
    return "-".join("".join(c if c.isalnum() else "-" for c in word) for word in words).lower()


def dvc(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run dvc and give back what it printed; the caller judges the exit status."""
    return subprocess.run(["dvc", *arguments], text=True, capture_output=True, check=False)


def finished(names: set[str]) -> set[str]:
    """Which of these experiments exist already."""
    listed = dvc("exp", "list", "--name-only", "--all-commits").stdout.split()
    return names.intersection(listed)


def queue(experiments: dict[str, list[str]]) -> None:
    """Queue experiments under their names."""
    for name, overrides in experiments.items():
        settings = [part for item in overrides for part in ("-S", item)]
        done = dvc("exp", "run", "--queue", "--name", name, *settings)
        if done.returncode != 0:
            raise UserError(f"cannot queue {name}: {' '.join(done.stderr.split())}")


def run_queue(names: set[str], jobs: int) -> None:
    """Start the workers and wait until no experiment of ours is queued or running."""
    started = dvc("queue", "start", "--jobs", str(jobs))
    if started.returncode != 0:
        raise UserError(f"cannot start the queue: {' '.join(started.stderr.split())}")
    with progress_bar(len(names), "experiments", "run") as bar:
        while True:
            status = queue_status()
            waiting = {name for name in names if status.get(name) in ("Queued", "Running")}
            bar.update(len(names) - len(waiting) - bar.n)
            if not waiting:
                return
            time.sleep(POLL_SECONDS)


def queue_status() -> dict[str, str]:
    """Status of everything in the queue, by name."""
    lines = [line.split() for line in dvc("queue", "status").stdout.splitlines()]
    states = ("Queued", "Running", "Success", "Failed")
    return {words[1]: state for words in lines if len(words) > 2 for state in states if state in words[2:]}


def collect(experiments: dict[str, tuple[str, int]]) -> pd.DataFrame:
    """Read the summaries of finished experiments; name those that have none."""
    import dvc.api

    rows: list[dict[str, Any]] = []
    summaries = {}
    for name, (label, seed) in experiments.items():
        try:
            text = dvc.api.read("metrics/summary.json", rev=name)
        except Exception as error:
            log.error(f"{name}: failed, no result ({type(error).__name__}); see `dvc queue logs {name}`")
            continue
        summaries[name] = yaml.safe_load(text)
        rows.append({"label": label, "seed": seed, "experiment": name, **summaries[name]})
    if not rows:
        raise UserError("no experiment finished; `dvc queue status` and `dvc queue logs NAME` say why")
    for seed in sorted({row["seed"] for row in rows}):
        # Another seed draws other data, so only runs of one seed must agree.
        check_same_data({row["experiment"]: summaries[row["experiment"]] for row in rows if row["seed"] == seed})
    return pd.DataFrame(rows)


def write(runs: pd.DataFrame, labels: list[str], reference: str, folder: Path) -> None:
    """Write runs.csv, table.md and figure.png."""
    folder.mkdir(parents=True, exist_ok=True)
    atomic_write_text(folder / "runs.csv", runs.to_csv(index=False, lineterminator="\n"))
    atomic_write_text(folder / "table.md", to_markdown(comparison_table(runs, labels, reference)))
    points = runs.rename(columns={"label": "method", "method": "_method"}).to_dict("records")
    figure = figures.recall_against_bwf(points)
    warnings = sorted({str(text) for text in runs.get("warning", pd.Series(dtype=str)).dropna()})
    figures.footnote(figure, f"{len(runs)} runs over {runs.seed.nunique()} seeds", "; ".join(warnings))
    figures.save(figure, folder / "figure.png")


def main() -> None:
    """Parse the command line, queue, run and compare."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("--study", default="methods", help="file in conf/study (default: %(default)s)")
    parser.add_argument("--data", default="shapes")
    parser.add_argument("--K", type=int, default=None, help="number of tasks (default: that of the data set)")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--jobs", type=int, default=1, help="experiments at a time")
    parser.add_argument("--output", type=Path, default=None, help="default: plots/compare/<study>-<data>")
    args = parser.parse_args()
    configure()
    try:
        compare(args)
    except UserError as error:
        log.error(str(error))
        sys.exit(1)


def compare(args: argparse.Namespace) -> None:
    """Run what is missing of a study and write the comparison."""
    study = read_study(args.study)
    common = [f"data={args.data}"] + ([f"K={args.K}"] if args.K else [])
    seeds = [int(seed) for seed in args.seeds.split(",")]
    experiments = {
        experiment_name(args.study, label, seed, common): (label, seed) for seed in seeds for label in study
    }
    missing = {
        name: [*common, *study[label], f"seed={seed}"]
        for name, (label, seed) in experiments.items()
        if name not in finished(set(experiments))
    }
    if missing:
        queue(missing)
        run_queue(set(missing), args.jobs)
    folder = args.output or Path(f"plots/compare/{args.study}-{args.data}")
    write(collect(experiments), list(study), next(iter(study)), folder)
    print((folder / "table.md").read_text(encoding="utf-8"))
    log.info(f"written: {folder}/runs.csv, table.md, figure.png")


if __name__ == "__main__":
    main()
