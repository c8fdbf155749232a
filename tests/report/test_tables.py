"""The report stage on galleries made up here: tables, summary, refusals, and what stands on the figures."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from safetensors.numpy import save_file

from stages import report as stage
from structalign.evaluation.metric_table import METRICS
from structalign.report import figures
from structalign.report import tables as report
from structalign.report.run import read_run
from structalign.report.tables import check_same_data, cost_of, published_results, summary
from structalign.util.cost import keep_cost, known_cost
from structalign.util.errors import UserError

pytestmark = pytest.mark.slow

WIDTH = 24


def write_gallery(
    root: Path, num_tasks: int = 3, categories: int = 3, bare: bool = False, seed: int = 0, **keys: Any
) -> Path:
    """Write what `evaluate` leaves after the last task; `bare` leaves out all that is optional."""
    rng = np.random.default_rng(seed)
    folder = root / "metrics" / f"task-{num_tasks:02d}"
    folder.mkdir(parents=True)
    tasks = [
        {
            "task": task,
            "categories": categories,
            "queries": 100,
            "videos": 100,
            "missing": task % 2,
            "category_names": [f"category {task}.{index}" for index in range(categories)],
            **({} if bare else {"train_videos": [16 // (index + 1) for index in range(categories)]}),
        }
        for task in range(1, num_tasks + 1)
    ]
    record = {
        "method": "structalign",
        "variant": "method",
        "data": "creatures",
        "protocol": "fewshot",
        "seed": seed,
        "K": num_tasks,
        "select": "last",
        "data_fingerprint": "0123456789abcdef" * 4,
        "tasks": tasks,
        "rows": [_row(task, categories, rng, bare) for task in range(1, num_tasks + 1)],
        **keys,
    }
    (folder / "recall.json").write_text(json.dumps(record))
    if not bare:
        (folder / "cost.json").write_text(json.dumps([_cost(task) for task in range(1, num_tasks + 1)]))
        (folder / "loss.csv").write_text(_loss(num_tasks, rng))
        save_file(_features(num_tasks, categories, rng), folder / "features.safetensors")
    return folder


def _row(task: int, categories: int, rng: np.random.Generator, bare: bool) -> dict[str, Any]:
    r1 = 60 / task + rng.uniform(0, 3)
    recall = {"r1": r1, "r5": r1 + 20, "r10": r1 + 30, "medr": 2.0 + task, "meanr": 5.0 + task}
    row = {"after": task, **recall, "bwf": 2.5 * (task - 1), "A": list(rng.uniform(30, 70, task))}
    if not bare:
        row |= {metric.key: 1.0 for metric in METRICS if metric.key not in row}
        row |= {f"v2t_{key}": value * 0.9 for key, value in recall.items()}
        row["mean_r1"] = r1 + 1
        geometry = {"alignment": 1 / task, "equinorm": 0.5 / task, "equiangularity": 0.4 / task}
        by_class = {"alignment": [0.1 * index for index in range(task * categories)]}
        row["category_r1"] = [10.0 * index for index in range(task * categories)]
        row["geometry"] = dict.fromkeys(("text", "video"), geometry)
        row["by_class"] = dict.fromkeys(("text", "video"), by_class)
    return row


def _cost(task: int) -> dict[str, Any]:
    parameters = 1000 if task == 1 else 4000
    return {"steps": 40, "trained_parameters": parameters, "training": f"training-of-task-{task}"}


def measure(task: int, seconds: float) -> None:
    """Leave what the train stage leaves beside its outputs."""
    keep_cost(_cost(task)["training"], {"seconds": seconds, "peak_memory_mb": 500.0 + task})


def _loss(num_tasks: int, rng: np.random.Generator) -> str:
    lines = ["task,step,epoch,lr,term,value,weighted"]
    for task in range(1, num_tasks + 1):
        for step in range(1, 41):
            scl = 3 / task + 2 * np.exp(-step / 12) + rng.normal(0, 0.1)
            terms = {"total": scl * 1.3, "scl": scl, "etf": 1.2} | (
                {"crp": 0.3 + 0.1 * rng.random()} if task > 1 else {}
            )
            for term, value in terms.items():
                lines.append(f"{task},{step},{(step - 1) // 10 + 1},2e-5,{term},{value:.4f},{0.5 * value:.4f}")
    return "\n".join(lines) + "\n"


def _features(num_tasks: int, categories: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
    count = num_tasks * categories
    means = rng.normal(size=(count, WIDTH)).astype(np.float32)
    features = {"classes": np.arange(count), "prototypes": means.copy()}
    learnt = np.repeat(np.arange(1, num_tasks + 1), categories)
    for modality, shift in (("text", 0.4), ("video", -0.4)):
        features[f"{modality}/stored"] = means + np.float32(shift)
        features[f"{modality}/current"] = means + np.float32(shift / 2)
        after = np.arange(1, num_tasks + 1)[:, None]
        fall = 0.03 + 0.02 * rng.random(count)
        cosines = np.where(after >= learnt, 1 - fall * (after - learnt), np.nan)
        features[f"drift/{modality}"] = cosines.astype(np.float32)
        for prefix, classes in (("points", count), ("points/first", categories)):
            category = np.repeat(np.arange(classes), 8)
            noise = rng.normal(0, 0.5, (len(category), WIDTH))
            features[f"{prefix}/{modality}"] = (means[category] + shift + noise).astype(np.float32)
            features[f"{prefix}/{modality}_category"] = category
    return features


def read_csv(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as stream:
        return list(csv.DictReader(stream))


def run_stage(root: Path, monkeypatch: pytest.MonkeyPatch, num_tasks: int = 3) -> None:
    monkeypatch.chdir(root)
    stage.main(SimpleNamespace(K=num_tasks))


@pytest.fixture(scope="module")
def reported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("full")
    write_gallery(root)
    with pytest.MonkeyPatch.context() as patch:
        run_stage(root, patch)
    return root


def test_summary_holds_every_metric_of_the_final_row(reported: Path) -> None:
    numbers = json.loads((reported / "metrics/summary.json").read_text())
    rows = read_run(reported / "metrics/task-03").rows
    assert numbers["r1"] == pytest.approx(rows[-1]["r1"], abs=1e-4)
    assert numbers["v2t_r1"] == pytest.approx(0.9 * rows[-1]["r1"], abs=1e-4)
    assert {metric.key for metric in METRICS} <= set(numbers)
    assert numbers["bwf"] == 5.0
    assert numbers["trained_parameters"] == 4000
    assert numbers["missing_videos"] == 2
    assert numbers["changed_or_doubtful"] == 0
    assert numbers["select"] == "last"
    assert "warning" not in numbers
    assert all(isinstance(value, int | float | str) for value in numbers.values())


@pytest.mark.parametrize(("trained", "parameters"), [((1,), 1000), ((), 0)])
def test_tasks_that_train_nothing_do_not_dilute_the_cost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trained: tuple[int, ...], parameters: int
) -> None:
    """Joint training trains once, zero-shot CLIP never."""
    monkeypatch.chdir(tmp_path)
    folder = write_gallery(tmp_path)
    idle = {"steps": 0, "trained_parameters": 0, "training": "none"}
    for task in trained:
        measure(task, 30.0)
    costs = [_cost(task) if task in trained else idle for task in (1, 2, 3)]
    (folder / "cost.json").write_text(json.dumps(costs))
    cost = cost_of(read_run(folder))
    assert cost["train_seconds"] == 30.0 * len(trained)
    assert cost.get("seconds_per_task") == (30.0 if trained else None)
    assert cost["trained_parameters"] == summary(read_run(folder))["trained_parameters"] == parameters
    assert cost["peak_memory_mb"] == (501.0 if trained else 0.0)


def test_seconds_and_memory_are_in_nothing_that_dvc_hashes(
    reported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same run on a slower machine has the same outputs, and both know what it took them."""
    write_gallery(tmp_path)
    for root, seconds in ((reported, 10.0), (tmp_path, 99.0)):
        monkeypatch.chdir(root)
        for task in (1, 2, 3):
            measure(task, seconds)
        run_stage(root, monkeypatch)
        training = json.loads((root / "metrics/summary.json").read_text())["training"]
        assert known_cost(training)["train_seconds"] == 3 * seconds
    names = [path.relative_to(reported) for path in reported.rglob("*") if path.is_file()]
    hashed = [name for name in names if name.parts[0] in ("metrics", "plots")]
    assert len(hashed) > 15
    for name in hashed:
        assert (tmp_path / name).read_bytes() == (reported / name).read_bytes(), name


def test_a_run_that_another_machine_trained_has_no_seconds(
    reported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run = read_run(reported / "metrics/task-03")
    assert cost_of(run) == {"trained_parameters": 4000}


def test_tables_are_long_and_hold_every_value_once(reported: Path) -> None:
    cells = read_csv(reported / "plots/accuracy_matrix.csv")
    assert [(row["after"], row["task"]) for row in cells] == [
        ("1", "1"), ("2", "1"), ("2", "2"), ("3", "1"), ("3", "2"), ("3", "3"),
    ]  # fmt: skip
    rows = read_run(reported / "metrics/task-03").rows
    assert float(cells[4]["r1"]) == pytest.approx(rows[2]["A"][1], rel=1e-5)
    assert [row["after"] for row in read_csv(reported / "plots/recall_by_task.csv")] == ["1", "2", "3"]


def test_steps_go_on_from_task_to_task_and_terms_come_as_they_are(reported: Path) -> None:
    rows = read_csv(reported / "plots/loss.csv")
    assert [int(row["global_step"]) for row in rows if row["term"] == "total"] == list(range(1, 121))
    assert {row["term"] for row in rows if row["task"] == "1"} == {"total", "scl", "etf"}
    assert {row["term"] for row in rows if row["task"] == "2"} == {"total", "scl", "etf", "crp"}


def test_drift_leaves_out_classes_not_learnt_yet(reported: Path) -> None:
    rows = read_csv(reported / "plots/drift.csv")
    assert len(rows) == 2 * (3 + 6 + 9)  # modalities times classes known after each of three tasks
    assert all(int(row["after"]) >= int(row["learnt_in"]) for row in rows)
    assert {float(row["cosine"]) for row in rows if row["after"] == row["learnt_in"]} == {1.0}
    assert {row["category"] for row in rows if row["learnt_in"] == "2"} == {
        f"category 2.{index}" for index in range(3)
    }


def test_recall_by_category_says_what_each_was_learnt_from(reported: Path) -> None:
    rows = read_csv(reported / "plots/recall_by_category.csv")
    assert [row["category"] for row in rows] == [f"category {task}.{i}" for task in (1, 2, 3) for i in range(3)]
    assert [row["train_videos"] for row in rows] == ["16", "8", "5"] * 3
    assert [row["learnt_in"] for row in rows] == ["1"] * 3 + ["2"] * 3 + ["3"] * 3
    assert [float(row["r1"]) for row in rows] == [10 * index for index in range(9)]


@pytest.mark.parametrize(("counts", "names"), [((4, 2, 1), 3), ((4, 4, 4), 3), ((4,) * 60, 0)])
def test_categories_are_named_while_there_is_room(counts: tuple[int, ...], names: int) -> None:
    size = len(counts)
    table = pd.DataFrame(
        {"category": [f"c{i}" for i in range(size)], "learnt_in": 1, "train_videos": counts, "r1": 50.0}
    )
    (axes, *_) = figures.recall_by_category(table).axes
    labels = [label.get_text() for label in axes.get_yticklabels()]
    assert len(labels) == names
    assert ("c0 (4)" in labels) == ("training videos" in axes.get_ylabel()) == (len(set(counts)) > 1)


def test_every_figure_is_drawn(reported: Path) -> None:
    names = {path.stem for path in (reported / "plots/figures").iterdir()}
    assert names == {
        "recall_by_task", "accuracy_matrix", "recall_by_category", "loss", "drift", "collapse", "etf", "gram",
        "features_pca", "features_tsne",
    }  # fmt: skip


def test_same_input_gives_the_same_bytes(reported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_gallery(tmp_path)
    run_stage(tmp_path, monkeypatch)
    outputs = [path.relative_to(tmp_path) for path in tmp_path.glob("plots/**/*") if path.is_file()]
    assert len(outputs) == 20
    assert Path("plots/report.html") in outputs
    for path in [*outputs, Path("metrics/summary.json")]:
        assert (tmp_path / path).read_bytes() == (reported / path).read_bytes(), path


@pytest.mark.parametrize("num_tasks", [1, 12])
def test_a_run_with_nothing_optional_gives_every_table_and_two_figures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, num_tasks: int
) -> None:
    write_gallery(tmp_path, num_tasks, bare=True, method="zeroshot")
    run_stage(tmp_path, monkeypatch, num_tasks)
    assert {path.stem for path in (tmp_path / "plots/figures").iterdir()} == {
        "recall_by_task",
        "accuracy_matrix",
    }
    for name, (_, columns) in report.TABLES.items():
        header = (tmp_path / f"plots/{name}.csv").read_text().splitlines()[0]
        assert header == ",".join(columns)
    assert "v2t_r1" not in json.loads((tmp_path / "metrics/summary.json").read_text())


def test_one_task_with_everything_is_drawn(tmp_path: Path) -> None:
    drawn = dict(stage.draw(read_run(write_gallery(tmp_path, num_tasks=1, categories=1))))
    assert "features_pca" in drawn
    assert "gram" not in drawn  # one class has no angles


def test_selection_on_the_test_set_is_reported_everywhere(tmp_path: Path) -> None:
    run = read_run(write_gallery(tmp_path, select="best_on_test"))
    assert summary(run)["warning"] == "epoch picked on the test set"
    for name, figure in stage.draw(run):
        assert "epoch picked on the test set" in figure.get_supxlabel(), name


def test_a_run_that_keeps_the_last_epoch_carries_no_warning(tmp_path: Path) -> None:
    for name, figure in stage.draw(read_run(write_gallery(tmp_path))):
        assert figure.get_supxlabel() == "structalign on creatures, K = 3, seed 0", name


def test_real_benchmark_is_set_against_the_published_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_gallery(tmp_path, 10, categories=2, data="msrvtt", protocol="published")
    run_stage(tmp_path, monkeypatch, 10)
    rows = read_csv(tmp_path / "plots/published.csv")
    assert len(rows) == 10
    own = [row for row in rows if row["source"] == "this run"]
    assert [(row["method"], row["select"]) for row in own] == [("structalign (this run)", "last")]
    fusion = next(row for row in rows if row["method"] == "StableFusion")
    assert (fusion["r1"], fusion["bwf"], fusion["select"]) == ("25.87", "-0.45", "best_on_test")
    drawn = dict(stage.draw(read_run(tmp_path / "metrics/task-10")))
    assert "published numbers: epoch picked on the test set" in drawn["published"].get_supxlabel()


@pytest.mark.parametrize(
    ("data", "num_tasks", "protocol"),
    [("msrvtt", 5, "published"), ("creatures", 10, "published"), ("actnet", 10, "fewshot")],
)
def test_nothing_published_means_no_comparison(tmp_path: Path, data: str, num_tasks: int, protocol: str) -> None:
    run = read_run(write_gallery(tmp_path, num_tasks, bare=True, data=data, protocol=protocol))
    assert report.published_table(run).source.tolist() == ["this run"]
    assert "published" not in dict(stage.draw(run))


def test_published_table_is_whole() -> None:
    tables = [published_results(name) for name in ("MSRVTT-10", "MSRVTT-20", "ACTNET-10", "ACTNET-20")]
    assert [table.method.nunique() for table in tables] == [9, 9, 9, 9]
    # column sums of METHOD.md section 6, so that a slip in any number shows
    assert [round(table.r1.sum(), 2) for table in tables] == [207.99, 193.43, 155.89, 148.43]
    assert [round(table.bwf.sum(), 2) for table in tables] == [4.07, 6.43, 3.18, 3.73]


def test_different_data_are_not_compared() -> None:
    same = {"main": {"data_fingerprint": "a" * 64}, "ablation": {"data_fingerprint": "a" * 12}}
    check_same_data(same)
    with pytest.raises(UserError, match=r"cannot compare main .* with other") as caught:
        check_same_data({**same, "other": {"data_fingerprint": "b" * 12}})
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="bare"):
        check_same_data({"main": {"data_fingerprint": "a" * 12}, "bare": {}})


def test_missing_and_broken_records_are_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"recall\.json: missing or damaged"):
        read_run(tmp_path)
    folder = write_gallery(tmp_path)
    record = json.loads((folder / "recall.json").read_text())
    del record["select"]
    (folder / "recall.json").write_text(json.dumps(record))
    with pytest.raises(UserError, match="'select' is missing"):
        read_run(folder)
    (folder / "features.safetensors").write_bytes(b"short")
    (folder / "recall.json").write_text(json.dumps({**record, "select": "last"}))
    with pytest.raises(UserError, match=r"features\.safetensors: damaged"):
        read_run(folder)
    (folder / "recall.json").write_text("{")
    with pytest.raises(UserError, match=r"recall\.json: missing or damaged"):
        read_run(folder)


def test_broken_loss_curve_is_named(tmp_path: Path) -> None:
    folder = write_gallery(tmp_path)
    (folder / "loss.csv").write_text(
        "task,step,epoch,lr,term,value,weighted\n1,1,1,0,total,2.0,2.0\n1,2,1,0,total,oops,2.0\n"
    )
    with pytest.raises(UserError, match=r"loss\.csv: damaged .*oops"):
        read_run(folder)


def test_failure_while_drawing_leaves_the_earlier_figures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_gallery(tmp_path, bare=True)
    run_stage(tmp_path, monkeypatch)
    before = {path.name: path.read_bytes() for path in (tmp_path / "plots/figures").iterdir()}

    def fail(_: object, path: Path) -> None:
        path.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(stage.figures, "save", fail)
    with pytest.raises(OSError, match="disk full"):
        run_stage(tmp_path, monkeypatch)
    assert {path.name: path.read_bytes() for path in (tmp_path / "plots/figures").iterdir()} == before
    assert not list((tmp_path / "plots").glob(".*"))
