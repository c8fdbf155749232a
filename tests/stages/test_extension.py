"""A method, a loss term, a data set and a metric, added in one place each, go through the whole chain."""

from __future__ import annotations

import csv
import sys
from pathlib import Path

import pytest

from tests.helpers.checkout import copy_checkout
from tests.stages.test_pipeline import TINY, Project

pytestmark = pytest.mark.slow

METHOD = '''
"""Adapters whose features are kept short: a method with a loss term of its own."""

from structalign.methods.base import AdapterMethod, Batch, Term, Terms


class Short(AdapterMethod):
    """Contrastive training that also keeps text features short."""

    def loss(self, batch: Batch) -> Terms:
        scl, text, _ = self.contrast(batch)
        return {"scl": Term(scl), "length": Term(text.norm(dim=-1).mean(), 0.01)}
'''

DATA = '''
"""Flat colours: two categories, told apart by their brightness."""

from pathlib import Path
from typing import Literal

import av
import numpy as np

from structalign.config.schema import Config
from structalign.config.section import DataSection, Positive
from structalign.data.clips import Clip


class DataConfig(DataSection):
    """Videos of one colour each."""

    name: Literal["flat"]
    protocol: Literal["fewshot"]
    """Always a seeded draw."""
    per_category: Positive
    """Videos per category, for training as for testing."""


def prepare(config: Config, folder: Path) -> list[Clip]:
    """Write the videos and list their clips."""
    clips = []
    for side in ("train", "test"):
        for category, value in (("dark", 20), ("bright", 200)):
            for number in range(config.data.per_category):
                name = f"{side}-{category}-{number}"
                _write(folder / f"{name}.mp4", value + 8 * number)
                clips.append(Clip(name, f"{name}.mp4", None, None, category, side, (f"a {category} video {number}",)))
    return clips


def _write(path: Path, value: int) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width = stream.height = 64
        for _ in range(5):
            frame = av.VideoFrame.from_ndarray(np.full((64, 64, 3), value, np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
'''

DATA_VALUES = "# @package _global_\ndata:\n  name: flat\n  protocol: fewshot\n  per_category: 4\n"

METRIC = """
METRICS += (
    Metric(
        key="worst",
        label="worst rank",
        unit="",
        better="lower",
        ideal=1,
        range="from 1",
        meaning="The largest rank of any query.",
        compute=lambda measured: float(measured.ranks.max()),
        panel="Worst rank",
        colour="worst rank",
    ),
)
"""


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    folder = tmp_path_factory.mktemp("extended")
    copy_checkout(folder)
    (folder / "structalign/methods/short.py").write_text(METHOD)
    (folder / "structalign/data/datasets/flat.py").write_text(DATA)
    (folder / "conf/data/flat.yaml").write_text(DATA_VALUES)
    with (folder / "structalign/evaluation/metric_table.py").open("a") as stream:
        stream.write(METRIC)
    made = Project(folder)
    made.run("git", "init", "--quiet")
    tiny = [override for override in TINY if not override.startswith(("data.", "split.validation"))]
    sizes = [
        "frames.num_frames=2",
        "frames.short_side=64",
        "backbone.architecture=tiny",
        "backbone.pretrained=null",
    ]
    sizes += ["backbone.pretrained=null", "model.adapter_layers=1", "split.validation=0"]
    chosen = ["data=flat", "method.name=short", "K=2", *tiny, *sizes]
    made.run(sys.executable, "-m", "structalign", "params", *dict.fromkeys(chosen))
    made.run("dvc", "repro")
    return made


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as stream:
        return list(csv.DictReader(stream))


def test_the_data_set_is_split_into_its_categories(project: Project) -> None:
    tasks = [project.json(f"data/split/task-0{task}.json") for task in (1, 2)]
    assert {category["name"] for task in tasks for category in task["categories"]} == {"dark", "bright"}


def test_the_loss_term_is_in_every_curve_with_its_weight(project: Project) -> None:
    table = rows(project.folder / "plots/loss.csv")
    assert {row["term"] for row in table} == {"total", "scl", "length"}
    own = [row for row in table if row["term"] == "length"]
    assert {row["task"] for row in own} == {"1", "2"}
    # both numbers are rounded to six digits in the file
    assert all(float(row["weighted"]) == pytest.approx(0.01 * float(row["value"]), abs=1e-5) for row in own)


def test_the_metric_is_recorded_summarised_tabulated_and_drawn(project: Project) -> None:
    record = project.json("metrics/task-02/recall.json")
    values = [row["worst"] for row in record["rows"]]
    assert all(value >= 1 for value in values)
    assert project.json("metrics/summary.json")["worst"] == values[-1]
    assert [float(row["worst"]) for row in rows(project.folder / "plots/recall_by_task.csv")] == values
    assert (project.folder / "plots/figures/recall_by_task.png").stat().st_size > 0


def test_the_method_is_named_beside_its_numbers(project: Project) -> None:
    assert project.json("metrics/task-02/recall.json")["method"] == "short"
