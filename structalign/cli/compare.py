"""Queue experiments over several seeds through DVC, run them, and set them side by side.

    structalign compare                           every method, 3 seeds, built-in data
    structalign compare --data msrvtt --K 20      the same on MSR-VTT
    structalign compare --data actnet -S data.videos=/path/to/videos
    structalign compare --study ablation          the choices within StructAlign, one by one

A study is a file in conf/study/: a label and its overrides per line. What has run at the present commit does not run
again. Results come as runs.csv, table.md, figure.png and by_task.png in plots/compare; a failed experiment is named,
and the rest continue.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import re
import subprocess
import time
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import yaml

from structalign.report import figures
from structalign.report.compare import comparison_table, named_warnings, to_markdown
from structalign.report.tables import check_same_data
from structalign.util.command import errors_in_one_line, parse
from structalign.util.cost import known_cost
from structalign.util.errors import UserError
from structalign.util.files import atomic_write_text
from structalign.util.log import log, progress_bar

POLL_SECONDS = 5.0

LOOKS = 5
"""Times in a row that dvc is asked for the state of things before its failure counts."""

OVER = ("Success", "Failed")

ABSENT = 6
"""Looks at the queue in a row, at least half a minute, after which workers that nobody saw at work are missed."""

RESTARTS = 3
"""Times that workers are started again without any experiment's ending in between."""


def read_study(name: str) -> dict[str, list[str]]:
    """Read `conf/study/<name>.yaml`: labels with the overrides that make them."""
    path = Path(f"conf/study/{name}.yaml")
    if not path.exists():
        known = ", ".join(sorted(file.stem for file in path.parent.glob("*.yaml")))
        raise UserError(f"{path}: no such study; there are {known}")
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def experiment_name(study: str, label: str, seed: int, common: list[str], commit: str) -> str:
    """Name an experiment so that `dvc exp show` and a second call at the same commit recognise it."""
    return _joined([study, label, *_words(common), f"seed{seed}", commit])


def _words(common: list[str]) -> list[str]:
    """Tell apart what is common to the runs of a study: data and K in plain words, anything else as a hash."""
    plain = {item: match[1] for item in common if (match := re.fullmatch(r"(?:data|K)=(\w+)", item))}
    rest = [item for item in common if item not in plain]
    return [*plain.values(), *([hashlib.sha256(" ".join(rest).encode()).hexdigest()[:6]] if rest else [])]


def _joined(words: list[str]) -> str:
    return "-".join("".join(c if c.isalnum() else "-" for c in word) for word in words).lower()


def present_commit() -> str:
    """Short name of the commit that is checked out."""
    command = ["git", "rev-parse", "--short", "HEAD"]
    return subprocess.run(command, text=True, capture_output=True, check=True).stdout.strip()


def dvc(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run dvc and give back what it printed; the caller judges the exit status."""
    return subprocess.run(["dvc", *arguments], text=True, capture_output=True, check=False)


def asked(*arguments: str) -> str:
    """Ask dvc, which fails now and then while its queue is at work, until it answers.

    Raises
    ------
    UserError
        Where it fails `LOOKS` times in a row.
    """
    for look in range(LOOKS):
        if look:
            time.sleep(POLL_SECONDS)
        done = dvc(*arguments)
        if done.returncode == 0:
            return done.stdout
    raise UserError(f"dvc {' '.join(arguments)}: {' '.join(done.stderr.split())}")


def finished(names: set[str]) -> set[str]:
    """Which of these experiments exist already."""
    return names.intersection(asked("exp", "list", "--name-only", "--all-commits").split())


def queue(experiments: dict[str, list[str]]) -> None:
    """Queue experiments under their names, but for those that wait or run already; forget that they failed once."""
    present = queue_state().experiments
    for name, overrides in experiments.items():
        if present.get(name) in ("Queued", "Running"):
            continue
        if present.get(name) == "Failed":
            dvc("queue", "remove", name)
        settings = [part for item in overrides for part in ("-S", item)]
        done = dvc("exp", "run", "--queue", "--name", name, *settings)
        if done.returncode != 0:
            raise UserError(f"cannot queue {name}: {' '.join(done.stderr.split())}")


def run_queue(names: set[str], jobs: int) -> None:
    """Run the queue until none of our experiments waits or runs.

    A worker ends by itself soon after the queue is empty, and one that is about to end may count as started; others
    are killed, for want of memory. So workers are started again where there is work and nobody at it.

    Raises
    ------
    UserError
        Where they do not stay up.
    """
    start_workers(jobs)
    absent = starts = 0
    with progress_bar(len(names), "experiments", "run") as bar:
        while True:
            state = queue_state()
            # One that is just being taken from the queue is in neither of dvc's lists.
            waiting = {name for name in names if state.experiments.get(name) not in OVER}
            if len(names) - len(waiting) > bar.n:
                starts = 0
            bar.update(len(names) - len(waiting) - bar.n)
            if not waiting:
                return
            absent = 0 if state.active else absent + 1
            if absent == ABSENT:
                if all(state.experiments.get(name) != "Queued" for name in waiting):
                    log.error(f"{', '.join(sorted(waiting))}: no worker is at it any more; it was killed or removed")
                    return
                if starts == RESTARTS:
                    raise UserError("the queue's workers do not stay up; `dvc queue start -v` may say why")
                log.warning(f"{len(waiting)} experiments wait, and no worker is at them: starting the workers again")
                start_workers(jobs)
                absent, starts = 0, starts + 1
            time.sleep(POLL_SECONDS)


def start_workers(jobs: int) -> None:
    """Start workers that take experiments from the queue, unless so many are up."""
    # Nothing is captured: the workers inherit the pipe, and reading it would wait for the last of them.
    started = subprocess.run(["dvc", "queue", "start", "--jobs", str(jobs)], stdout=subprocess.DEVNULL, check=False)
    if started.returncode != 0:
        raise UserError("cannot start the queue; `dvc queue start` says why")


class QueueState(NamedTuple):
    """What `dvc queue status` says: the status of every experiment, by name, and how many workers are at one."""

    experiments: dict[str, str]
    active: int


def queue_state() -> QueueState:
    """Ask for the state of the queue."""
    printed = asked("queue", "status")
    lines = [line.split() for line in printed.splitlines()]
    experiments: dict[str, str] = {}
    # An experiment that was queued again has its old row as well; what goes on now counts.
    for state in ("Failed", "Success", "Queued", "Running"):
        experiments |= {words[1]: state for words in lines if len(words) > 2 and state in words[2:]}
    workers = re.search(r"Worker status: (\d+) active", printed)
    return QueueState(experiments, int(workers[1]) if workers else 0)


def collect(experiments: dict[str, tuple[str, int]]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Read the summaries of finished experiments and their recall by task; name those that have none."""
    import dvc.api

    rows: list[dict[str, Any]] = []
    curves = []
    summaries = {}
    for name, (label, seed) in experiments.items():
        try:
            text = dvc.api.read("metrics/summary.json", rev=name)
            curve = pd.read_csv(io.StringIO(dvc.api.read("plots/recall_by_task.csv", rev=name)))
        except Exception as error:
            log.error(f"{name}: failed, no result ({type(error).__name__}: {error}); see `dvc queue logs {name}`")
            continue
        summaries[name] = yaml.safe_load(text)
        cost = known_cost(summaries[name].get("training", ""))
        rows.append({"label": label, "seed": seed, "experiment": name, **summaries[name], **cost})
        curves.append(curve.assign(label=label, seed=seed))
    if not rows:
        raise UserError("no experiment finished; `dvc queue status` and `dvc queue logs NAME` say why")
    for seed in sorted({row["seed"] for row in rows}):
        # Another seed draws other data, so only runs of one seed must agree.
        check_same_data({row["experiment"]: summaries[row["experiment"]] for row in rows if row["seed"] == seed})
    return pd.DataFrame(rows), pd.concat(curves)


def write(runs: pd.DataFrame, curves: pd.DataFrame, labels: list[str], reference: str, folder: Path) -> None:
    """Write runs.csv, table.md, figure.png (recall against forgetting) and by_task.png.

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
    """
    folder.mkdir(parents=True, exist_ok=True)
    atomic_write_text(folder / "runs.csv", runs.to_csv(index=False, lineterminator="\n"))
    warnings = named_warnings(runs)
    table = to_markdown(comparison_table(runs, labels, reference))
    atomic_write_text(folder / "table.md", table + "".join(f"\n{warning}.\n" for warning in warnings))
    points = runs.rename(columns={"label": "method", "method": "_method"}).to_dict("records")
    figure = figures.recall_against_bwf(points)
    figures.footnote(figure, f"{len(runs)} runs over {runs.seed.nunique()} seeds", "; ".join(warnings))
    figures.save(figure, folder / "figure.png")
    means = curves.groupby(["label", "after"], as_index=False)[["r1", "bwf"]].mean()
    by_task = {label: means[means.label == label].to_dict("records") for label in labels if label in set(means.label)}
    figure = figures.compare_recall(by_task)
    figures.footnote(figure, f"means over {runs.seed.nunique()} seeds", "; ".join(warnings))
    figures.save(figure, folder / "by_task.png")


def main() -> None:
    """Parse the command line, queue, run and compare."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("--study", default="methods", help="file in conf/study (default: %(default)s)")
    parser.add_argument("--data", default="shapes")
    parser.add_argument("--K", type=int, default=None, help="number of tasks (default: that of the data set)")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument(
        "-S",
        dest="overrides",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="for every run",
    )
    parser.add_argument("--jobs", type=int, default=1, help="experiments at a time")
    parser.add_argument(
        "--output", type=Path, default=None, help="default: plots/compare/STUDY-DATA[-K][-hash of other overrides]"
    )
    args = parse(parser)
    with errors_in_one_line(args.debug):
        compare(args)


def compare(args: argparse.Namespace) -> None:
    """Run what is missing of a study and write the comparison."""
    study = read_study(args.study)
    common = [f"data={args.data}"] + ([f"K={args.K}"] if args.K else []) + args.overrides
    commit = present_commit()
    seeds = [int(seed) for seed in args.seeds.split(",")]
    experiments = {
        experiment_name(args.study, label, seed, common, commit): (label, seed) for seed in seeds for label in study
    }
    done = finished(set(experiments))
    missing = {
        name: [*common, *study[label], f"seed={seed}"]
        for name, (label, seed) in experiments.items()
        if name not in done
    }
    # What the runs of one seed share, data and CLIP, is made by the first of them. Made twice at a time it costs
    # twice, and DVC was seen to take one's run from its cache before the files were there.
    first = {experiment_name(args.study, next(iter(study)), seed, common, commit) for seed in seeds} & set(missing)
    for names, jobs in ((first, 1), (set(missing) - first, args.jobs)):
        if names:
            queue({name: missing[name] for name in missing if name in names})
            run_queue(names, jobs)
    folder = args.output or Path("plots/compare") / _joined([args.study, *_words(common)])
    write(*collect(experiments), list(study), next(iter(study)), folder)
    print((folder / "table.md").read_text(encoding="utf-8"))
    log.info(f"written: {folder}/runs.csv, table.md, figure.png, by_task.png")
