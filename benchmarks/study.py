"""Run a study of `conf/study` without DVC: the same stages, one process a run, several runs at a time.

    python -m benchmarks.study --study ablation --seeds 0,1,2 --jobs 2 --output docs/ablation

For long ablations on a small machine, where the start-up of stages is a good part of a run under DVC. Finished runs
are kept under `.cache/study` and not run again at the same commit.
`structalign compare` does the same through DVC.
"""

from __future__ import annotations

import argparse
import os
import shutil
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pandas as pd

from stages import backbone, download, evaluate, frames, report, split, train
from structalign.cli.compare import present_commit, read_study, write
from structalign.cli.params import compose
from structalign.config.schema import Config
from structalign.util.files import read_json
from structalign.util.log import configure, log

ROOT = Path(__file__).resolve().parent.parent


def prepare(folder: Path, overrides: list[str]) -> None:
    """Make what all runs of one seed share: data, split and CLIP."""
    if (folder / "done").exists():
        return
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    config = enter(folder, overrides)
    for stage in (download, frames, split, backbone):
        stage.main(config)
    (folder / "done").touch()


def enter(folder: Path, overrides: list[str]) -> Config:
    """Compose the parameters of a run into its folder, and work there from now on."""
    os.chdir(ROOT)
    compose(overrides, folder / "params.yaml")
    os.chdir(folder)
    return Config.load()


def run(folder: Path, shared: Path, overrides: list[str]) -> dict[str, Any]:
    """Train, evaluate and report in a folder of its own; return the summary and the whole record."""
    configure("WARNING")
    if not (folder / "metrics/summary.json").exists():
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        config = enter(folder, overrides)
        for part in ("data/raw", "data/frames", "data/split", "models/clip"):
            (folder / part).parent.mkdir(exist_ok=True)
            (folder / part).symlink_to(shared / part)
        for part in ("models/task-00", "data/gallery/after-00", "metrics/task-00"):
            shutil.copytree(shared / part, folder / part)
        for task in range(1, config.K + 1):
            train.main(config, task)
            evaluate.main(config, task)
        report.main(config)
    first = read_json(max(folder.glob("metrics/task-*")) / "recall.json")["rows"][0]
    return {**read_json(folder / "metrics/summary.json"), "first_r1": first["r1"], "first_r10": first["r10"]}


def curve_of(folder: Path) -> pd.DataFrame:
    """Recall by task of a finished run."""
    return pd.read_csv(folder / "plots/recall_by_task.csv")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--study", default="ablation")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--output", type=Path, required=True)
    args = parser.parse_args()
    configure()
    study, seeds = read_study(args.study), [int(seed) for seed in args.seeds.split(",")]
    work, output = ROOT / ".cache/study" / present_commit(), args.output.resolve()
    rows, curves = [], []
    with ProcessPoolExecutor(args.jobs, mp_context=get_context("spawn"), max_tasks_per_child=1) as pool:
        shared = {seed: work / f"seed-{seed}" for seed in seeds}
        made = [pool.submit(prepare, shared[seed], [f"seed={seed}"]) for seed in seeds]
        for preparation in made:
            preparation.result()
        runs = {}
        for label, overrides in study.items():
            for seed in seeds:
                folder = work / f"{args.study}-{label}-{seed}".replace(" ", "-").replace("=", "-")
                future = pool.submit(run, folder, shared[seed], [*overrides, f"seed={seed}"])
                runs[future] = (label, seed, folder)
        for future in as_completed(runs):
            label, seed, folder = runs[future]
            rows.append({"label": label, "seed": seed, **future.result()})
            curves.append(curve_of(folder).assign(label=label, seed=seed))
            log.info(f"{label}, seed {seed}: R@1 {rows[-1]['r1']:.2f}, BWF {rows[-1]['bwf']:.2f}")
            os.chdir(ROOT)
            write(pd.DataFrame(rows), pd.concat(curves), list(study), next(iter(study)), output)


if __name__ == "__main__":
    main()
