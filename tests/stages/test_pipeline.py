"""The whole DAG, through DVC, on a few tiny generated videos: what runs, what runs again, and what comes out."""

from __future__ import annotations

import fnmatch
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.helpers.checkout import copy_checkout

pytestmark = pytest.mark.slow

TINY = [
    "threads=1",
    "data.categories=4",
    "data.train_videos=4",
    "data.test_videos=3",
    "split.shots=4",
    "split.validation=2",
    "frames.num_frames=2",
    "model.experts=2",
    "model.rank=4",
    "train.epochs=2",
    "train.batch_size=8",
    "machine.workers=2",
]


class Project:
    """A copy of the checkout as a repository of its own, in which commands are run as a user would."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def run(self, *command: str, check: bool = True) -> str:
        """Run a command; return what it printed, standard error included."""
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        environment = {**os.environ, "PATH": path, "DVC_NO_ANALYTICS": "1", "OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            command, cwd=self.folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        if check and done.returncode != 0:
            pytest.fail(f"{' '.join(command)} exited with {done.returncode}:\n{done.stdout[-4000:]}")
        if not check:
            assert done.returncode != 0, f"{' '.join(command)} should have failed:\n{done.stdout[-4000:]}"
        return done.stdout

    def json(self, path: str) -> dict:
        return json.loads((self.folder / path).read_text())

    def ran(self, output: str) -> set[str]:
        """Stages that `dvc repro` ran, of everything it printed."""
        lines = [line for line in output.splitlines() if line.startswith("Running stage")]
        return {line.split("'")[1] for line in lines}


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    folder = tmp_path_factory.mktemp("checkout")
    copy_checkout(folder)
    made = Project(folder)
    made.run("git", "init", "--quiet")
    made.run("git", "config", "user.name", "tests")  # DVC commits experiments, and a bare machine knows no name
    made.run("git", "config", "user.email", "tests@example.org")
    made.run(sys.executable, "-m", "structalign", "params", "K=2", *TINY)
    made.run("git", "add", "--all")
    made.run("git", "commit", "--quiet", "-m", "start")
    made.run("dvc", "repro")
    return made


def test_chain_leaves_everything_that_a_user_looks_at(project: Project) -> None:
    summary = project.json("metrics/summary.json")
    assert 0 <= summary["r1"] <= summary["r5"] <= summary["r10"] <= 100
    record = project.json("metrics/task-02/recall.json")
    assert [row["after"] for row in record["rows"]] == [1, 2]
    assert [len(row["A"]) for row in record["rows"]] == [1, 2]
    assert [task["train_videos"] for task in record["tasks"]] == [[4, 4], [4, 4]]
    for row in record["rows"]:  # every category has as many queries
        assert sum(row["category_r1"]) / len(row["category_r1"]) == pytest.approx(row["r1"])
    assert record["rows"][0]["bwf"] == 0
    assert list((project.folder / "plots/figures").glob("*.png"))
    assert "What queries find" in (project.folder / "plots/report.html").read_text()
    curve = (project.folder / "plots/loss/task-02.csv").read_text().splitlines()
    assert len(curve) > 2


def test_outputs_are_tracked_by_dvc_and_invisible_to_git(project: Project) -> None:
    status = project.run("git", "status", "--porcelain", "--untracked-files=all")
    assert {line[3:] for line in status.splitlines()} == {"dvc.lock", "metrics/summary.json"}
    declared, locked = (
        yaml.safe_load((project.folder / name).read_text())["stages"].values() for name in ("dvc.yaml", "dvc.lock")
    )
    paths = [out["path"] for stage in locked for out in stage["outs"]]
    for stage in (stage.get("do", stage) for stage in declared):
        for out in (*stage["outs"], *(path for metric in stage.get("metrics", []) for path in metric)):
            assert fnmatch.filter(paths, re.sub(r"\$\{.*?\}", "*", out)), out


def test_an_unchanged_chain_runs_nothing(project: Project) -> None:
    assert project.ran(project.run("dvc", "repro")) == set()


def test_the_same_training_again_changes_no_output_and_reruns_nothing(project: Project) -> None:
    """Seconds and memory are in nothing that DVC hashes."""
    before = (project.folder / "dvc.lock").read_text()
    assert project.ran(project.run("dvc", "repro", "--force", "--single-item", "train@02")) == {"train@02"}
    assert (project.folder / "dvc.lock").read_text() == before
    assert project.ran(project.run("dvc", "repro")) == set()


def test_a_quick_trial_measures_what_the_chain_does(project: Project, tmp_path: Path) -> None:
    copy = Project(shutil.copytree(project.folder, tmp_path / "trial", symlinks=True))
    copy.run(sys.executable, "-m", "stages.trial")
    rows = project.json("metrics/task-02/recall.json")["rows"]
    assert copy.json("metrics/trial.json") == [row["val_r1"] for row in rows]


def test_a_quick_run_measures_what_the_chain_does(project: Project, tmp_path: Path) -> None:
    copy = Project(shutil.copytree(project.folder, tmp_path / "quick", symlinks=True))
    for name in ("metrics/summary.json", "plots/recall_by_task.csv"):
        (copy.folder / name).unlink()
    copy.run(sys.executable, "-m", "stages.quick")
    for name in ("metrics/summary.json", "plots/recall_by_task.csv"):
        assert (copy.folder / name).read_text() == (project.folder / name).read_text()


def test_an_index_is_stored_with_every_gallery_and_searched(project: Project, tmp_path: Path) -> None:
    copy = Project(shutil.copytree(project.folder, tmp_path / "index", symlinks=True))
    two_stages = ("evaluate.rerank=8", "evaluate.index=faiss")  # task 1 has 6 test videos: one stage there
    copy.run(sys.executable, "-m", "structalign", "params", "K=2", *TINY, *two_stages)
    for task in ("1", "2"):
        copy.run(sys.executable, "-m", "stages.evaluate", "--task", task)
    stored = sorted(path.name for path in (copy.folder / "data/gallery/after-02").glob("*.faiss"))
    assert stored == ["task-01.faiss", "task-02.faiss"]
    assert "after task 2" in copy.run(sys.executable, "-m", "structalign", "search", "a red core", "--top", "2")


def test_a_loss_weight_reruns_training_evaluation_and_report_alone(project: Project) -> None:
    project.run(sys.executable, "-m", "structalign", "params", "K=2", *TINY, "loss.etf_weight=0.5")
    # Dry, nothing changes that later stages read: they are in it as those that follow from a stage that would run.
    would = project.run("dvc", "repro", "--dry", "--force-downstream")
    project.run(sys.executable, "-m", "structalign", "params", "K=2", *TINY)
    assert project.ran(would) == {"train@01", "train@02", "evaluate@01", "evaluate@02", "report"}


@pytest.mark.parametrize(
    ("file", "change"), [("figures/run.py", "\n# a change\n"), ("page.html.j2", "\n<!-- a change -->\n")]
)
def test_the_look_of_the_report_reruns_the_report_alone(project: Project, file: str, change: str) -> None:
    source = project.folder / "structalign/report" / file
    before = source.read_text()
    source.write_text(before + change)
    try:
        assert project.ran(project.run("dvc", "repro")) == {"report"}
    finally:
        source.write_text(before)
        project.run("dvc", "repro")


def test_k_changes_the_dag(project: Project) -> None:
    project.run("dvc", "exp", "run", "--name", "one-task", "-S", "K=1", *[f"-S{item}" for item in TINY])
    params = yaml.safe_load((project.folder / "params.yaml").read_text())
    assert list(params["tasks"]) == ["01"]
    stages = project.run("dvc", "stage", "list", "--name-only").split()
    assert [name for name in stages if "@" in name] == ["train@01", "evaluate@01"]
    project.run(sys.executable, "-m", "structalign", "params", "K=2", *TINY)
    assert project.ran(project.run("dvc", "repro")) == set()


def test_k_that_does_not_divide_the_categories_is_one_clear_line(project: Project) -> None:
    project.run(sys.executable, "-m", "structalign", "params", "K=3", *TINY)
    try:
        output = project.run("dvc", "repro", check=False)
        lines = [line for line in output.splitlines() if "ERROR " in line and "K = 3" in line]
        assert len(lines) == 1
        assert "4 categories" in lines[0]
    finally:
        project.run(sys.executable, "-m", "structalign", "params", "K=2", *TINY)
        project.run("dvc", "checkout")


def test_an_edited_csv_makes_the_download_run_again(project: Project, tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / f"{name}.mp4").write_bytes(name.encode())
    table = tmp_path / "my clips.csv"
    train = ["one.mp4,,,a,first,train", "one.mp4,,,a,first again,train"]
    rows = ["video,start,end,category,caption,split", *train, "two.mp4,,,a,second,test"]
    mine = ["data=local", f'data.csv="{table}"', f'data.videos="{tmp_path}"', "K=1", "split.shots=1"]
    lock = project.folder / "dvc.lock"
    before = lock.read_text()
    project.run(sys.executable, "-m", "structalign", "params", *mine)
    try:
        for last in ("second", "another caption"):
            table.write_text("\n".join([*rows[:-1], rows[-1].replace("second", last)]) + "\n")
            assert project.ran(project.run("dvc", "repro", "download")) == {"download"}
            assert last in (project.folder / "data/raw/local/manifest.jsonl").read_text()
        assert project.ran(project.run("dvc", "repro", "download")) == set()
    finally:
        project.run(sys.executable, "-m", "structalign", "params", "K=2", *TINY)
        lock.write_text(before)
    assert project.ran(project.run("dvc", "repro")) == set()


def test_a_study_runs_in_clones_and_names_what_failed(project: Project) -> None:
    # As in a fresh clone: dvc.lock names data that this cache has never seen.
    lock = project.folder / "dvc.lock"
    lock.write_text(re.sub(r"\bmd5: ([0-9a-f]{32})", lambda match: f"md5: {match[1][::-1]}", lock.read_text()))
    study = {"structalign": [*TINY, "train.epochs=1"], "broken": [*TINY, "etf.num_classes=2"]}
    (project.folder / "conf/study/tiny.yaml").write_text(yaml.safe_dump(study, sort_keys=False))
    project.run("git", "add", "--all")
    project.run("git", "commit", "--quiet", "-m", "study")
    command = ("-m", "structalign", "compare", "--study", "tiny", "--K", "2", "--seeds", "0")
    printed = project.run(sys.executable, *command, check=False)
    assert re.search("tiny-broken-2-seed0-[0-9a-f]+-[0-9a-f]+: etf.num_classes", printed)
    assert "1 of 2 runs are missing" in printed
    folder = project.folder / "plots/compare/tiny-2"
    assert {path.name for path in folder.iterdir()} == {"runs.csv", "table.md", "figure.png", "by_task.png"}
    rows = [line for line in (folder / "table.md").read_text().splitlines() if line.startswith("| ")]
    assert [row.split()[1] for row in rows] == ["run", "structalign"]
