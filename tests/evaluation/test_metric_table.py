"""The table of metrics: what it computes, that docs/metrics.md follows from it, and that one entry is enough."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from rich.console import Console

from structalign.cli.inspect import geometry_table
from structalign.evaluation.geometry import GEOMETRY
from structalign.evaluation.metric_table import COST, METRICS, Measured, computed, panels, recall_ceiling
from structalign.report.figures import LINES
from structalign.report.metric_docs import describe
from tests.report.test_tables import write_gallery

ROOT = Path(__file__).resolve().parents[2]

MEASURED = Measured(
    ranks=np.array([1, 2, 6, 11]),
    caption_ranks=np.array([1, 1, 7, 2]),
    zero_shot_ranks=np.array([1, 9, 9, 9]),
    queries=["a dog", "A  dog ", "a cat", "a bird"],
    target=np.array([0, 1, 2, 3]),
    num_videos=40,
    train_videos=np.array([16, 16, 4, 2]),
    accuracy=[[50.0], [40.0, 30.0]],
    categories=[3, 3],
    before=[12.0],
    untouched=[10.0],
    earlier_r1=[50.0],
)


def test_metrics_by_hand() -> None:
    values = computed(METRICS, MEASURED)
    assert values == pytest.approx(
        {
            "r1": 25, "r5": 50, "r10": 75, "medr": 4, "rare_r1": 0, "frequent_r1": 50, "meanr": 5, "mean_r1": 37.5,
            "bwf": 10, "learnt_r1": 40, "backward_transfer": -10, "max_forgetting": 10, "forward_transfer": 2,
            "r1_ceiling": 75, "zero_shot_r1": 25, "chance_r1": 2.5,
            "v2t_r1": 50, "v2t_r5": 75, "v2t_r10": 100, "v2t_medr": 1.5, "v2t_meanr": 2.75,
        }
    )  # fmt: skip


def test_a_shared_caption_can_find_one_video_only() -> None:
    assert recall_ceiling(["a", "b"], [0, 1]) == 100
    assert recall_ceiling(["a", "a", "a", "b"], [0, 1, 2, 3]) == 50
    assert recall_ceiling(["a", "a", "a", "b"], [0, 1, 2, 3], cutoff=2) == 75
    assert recall_ceiling(["a", "a"], [0, 0]) == 100  # two captions of one video


def test_every_entry_is_complete_and_has_a_key_of_its_own() -> None:
    for table in (METRICS, GEOMETRY, COST):
        assert len({metric.key for metric in table}) == len(table)
        for metric in table:
            assert metric.label
            assert metric.range
            assert metric.meaning.endswith("."), metric.key
            assert metric.better in ("higher", "lower", "")
    assert all(metric.line in LINES for some in panels().values() for metric in some)


def test_the_document_follows_from_the_tables() -> None:
    text = (ROOT / "docs/metrics.md").read_text(encoding="utf-8")
    assert text == describe(), "run: python -m structalign.report.metric_docs > docs/metrics.md"


def test_alignment_is_nowhere_said_to_be_ideal_at_zero(tmp_path: Path) -> None:
    declared = yaml.safe_load((ROOT / "dvc.yaml").read_text())["plots"]
    assert "0 is ideal" not in json.dumps(declared).replace("others: 0 is ideal", "")
    write_gallery(tmp_path)
    table = geometry_table(tmp_path / "models/task-03")
    assert table is not None
    headers = {str(column.header).split("\n")[0]: str(column.header).split("\n")[1:] for column in table.columns}
    assert headers["alignment"] == ["↑ higher is better", "ideal 1"]
    assert headers["spread of norms"] == ["↓ lower is better", "ideal 0"]
    console = Console(width=200)
    with console.capture() as shown:
        console.print(table)
    assert "alignment" in shown.get()
    assert "0 is ideal" not in shown.get()


NEW_METRIC = """
import dataclasses
from structalign.evaluation import metric_table
new = dataclasses.replace(
    metric_table.METRICS[0], key="odd", label="odd ranks", panel="Odd ranks", meaning="Share of odd ranks."
)
metric_table.METRICS += (new,)
import json
from structalign.cli.show import experiments_table
from structalign.report import figures
from structalign.report.page import render
from structalign.report.run import read_run
from structalign.report.tables import recall_table, summary
run = read_run("metrics/task-03")
assert summary(run)["odd"] == 42.5
assert recall_table(run).odd.tolist() == [42.5] * 3
assert "Odd ranks" in [axes.get_title() for axes in figures.recall_by_task(recall_table(run)).axes]
assert "Share of odd ranks." in render(run, {})
row = {"typ": "baseline", "rev": "main", "Experiment": "", "odd": "1.5"}
assert "odd\\nranks" in [column.header for column in experiments_table([row], []).columns]
"""


def test_one_entry_brings_a_metric_into_summary_tables_figures_page_and_show(tmp_path: Path) -> None:
    folder = write_gallery(tmp_path, bare=True)
    record = json.loads((folder / "recall.json").read_text())
    for row in record["rows"]:
        row["odd"] = 42.5
    (folder / "recall.json").write_text(json.dumps(record))
    done = subprocess.run(
        [sys.executable, "-c", NEW_METRIC],
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
