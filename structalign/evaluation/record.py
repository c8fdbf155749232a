"""The record of a run: `metrics/task-NN/`, everything measured up to task NN.

It grows along the chain, so that the report needs the last one alone:

- `recall.json`: the tasks, and a row of metrics for each task learnt so far;
- `features.safetensors`: class means, drift and sample points (`diagnostics.diagnose`);
- `loss.csv`: the loss curves of all tasks so far;
- `cost.json`: steps and trained parameters of each task, and the id under which `util.cost` knows its seconds;
- `examples.json`: some queries with what they found after each task (`examples.follow`), and small pictures of a
  chosen few (`examples.illustrate`); absent before the first task.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor

from structalign.config.schema import Config
from structalign.data.tasks import TaskSplit
from structalign.evaluation import metrics
from structalign.evaluation.evaluate import Ranking, recall_within_task
from structalign.evaluation.examples import Followed
from structalign.evaluation.geometry import ClassMeans, geometry
from structalign.evaluation.metric_table import METRICS, Measured, computed, recall_at
from structalign.evaluation.reference import Reference, zero_shot_ranks
from structalign.retrieval.gallery import TaskGallery, data_fingerprint
from structalign.util.checkpoint import load_tensors, save_tensors
from structalign.util.errors import UserError
from structalign.util.files import REPAIR_ADVICE, atomic_write_json, atomic_write_text, read_json


@dataclass
class Record:
    """What the files of `metrics/task-NN/` hold.

    Attributes
    ----------
    recall : dict
        Facts about the run, `tasks`, and `rows`: metrics after each task.
    features : dict of Tensor
        The diagnostics after the last task.
    loss : str
        Loss curves as CSV, header included.
    cost : list of dict
        Steps, trained parameters and training id, per task.
    followed : list of Followed
        Queries that are followed, with what they found after each task.
    shown : dict
        The few of them that the report's page shows, with pictures.
    """

    recall: dict[str, Any]
    features: dict[str, Tensor]
    loss: str
    cost: list[dict[str, Any]]
    followed: list[Followed] = field(default_factory=list)
    shown: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def load(cls, folder: Path) -> Record:
        """Read a record; a missing or damaged file is a `UserError`."""
        recall = read_json(folder / "recall.json")
        try:
            if not recall["rows"]:  # before the first task there is nothing else
                return cls(recall=recall, features={}, loss="", cost=[])
            return cls(
                recall=recall,
                features=load_tensors(folder / "features.safetensors"),
                loss=(folder / "loss.csv").read_text(encoding="utf-8"),
                cost=read_json(folder / "cost.json"),
                followed=_read_followed(folder / "examples.json"),
            )
        except (KeyError, TypeError, FileNotFoundError) as error:
            raise UserError(f"{folder}: damaged ({error}); {REPAIR_ADVICE}") from None

    def save(self, folder: Path) -> None:
        """Write the record into an existing folder."""
        atomic_write_json(folder / "recall.json", self.recall)
        save_tensors(self.features, folder / "features.safetensors")
        atomic_write_text(folder / "loss.csv", self.loss)
        atomic_write_json(folder / "cost.json", self.cost)
        if self.followed:
            # on one line, because it is long and not meant to be read
            examples = {"followed": [asdict(one) for one in self.followed], "shown": self.shown}
            atomic_write_text(folder / "examples.json", json.dumps(examples, ensure_ascii=False))

    @property
    def categories(self) -> list[str]:
        """Names of all categories seen so far, indexed by their global ids."""
        return [name for task in self.recall["tasks"] for name in task["category_names"]]

    def add_training(self, curve: Path, cost: Path) -> None:
        """Append what training a task left: its loss curve and its cost."""
        lines = curve.read_text(encoding="utf-8").splitlines(keepends=True)
        self.loss += "".join(lines[1:] if self.loss else lines)
        self.cost.append(read_json(cost))

    def add_evaluation(
        self,
        config: Config,
        split: TaskSplit,
        galleries: list[TaskGallery],
        ranking: Ranking,
        features: dict[str, Tensor],
        reference: Reference,
        val_r1: float | None = None,
        notes: Mapping[str, int] | None = None,
    ) -> dict[str, Any]:
        """Append the evaluation after a task and return its row of metrics.

        `notes` counts what was changed or is doubtful about the task's clips and captions.
        """
        newest = galleries[-1]
        entry = {
            "task": split.task,
            "categories": len(split.categories),
            "category_names": [category.name for category in split.categories],
            "queries": len(newest.queries),
            "videos": len(newest.clips),
            "train_videos": [sum(s.category == c.id for s in split.train) for c in split.categories],
            "missing": len(split.missing),
            "notes": dict(notes or {}),
        }
        tasks = [*self.recall["tasks"], entry]
        for name in ("text", "video"):
            key = f"zero_shot/{name}"
            earlier = [self.features[key]] if key in self.features else []
            features = {**features, key: torch.cat([*earlier, getattr(reference, name)])}
        row = metrics_row(ranking, tasks, self.recall["rows"], features, galleries, reference, val_r1)
        facts = {
            "method": config.method.name,
            "variant": config.variant,
            "data": config.data.name,
            "protocol": config.data.protocol,
            "K": config.K,
            "seed": config.seed,
            "select": config.train.select,
            "data_fingerprint": data_fingerprint(galleries),
        }
        self.recall = {**facts, "tasks": tasks, "rows": [*self.recall["rows"], row]}
        self.features = features
        return row


def _read_followed(path: Path) -> list[Followed]:
    if not path.exists():
        return []
    try:
        return TypeAdapter(list[Followed]).validate_python(read_json(path)["followed"])
    except (KeyError, TypeError, ValidationError):
        raise UserError(f"{path}: damaged; {REPAIR_ADVICE}") from None


def metrics_row(
    ranking: Ranking,
    tasks: list[dict[str, Any]],
    earlier: list[dict[str, Any]],
    features: dict[str, Tensor],
    galleries: list[TaskGallery],
    reference: Reference,
    val_r1: float | None = None,
) -> dict[str, Any]:
    """All metrics of `METRICS` after the last of `tasks`, A's row, and the geometry of the class means."""
    accuracy = [recall_within_task(ranking, entry["task"])["r1"] for entry in tasks]
    zero_shot = zero_shot_ranks(features["zero_shot/text"], features["zero_shot/video"], ranking.target)
    ranks = metrics.ranks(ranking.scores, ranking.target).numpy()
    category = np.array([gallery.category[video] for gallery in galleries for video in gallery.target])  # [Q]
    train_videos = np.array([count for entry in tasks for count in entry["train_videos"]])  # [C]
    measured = Measured(
        ranks=ranks,
        caption_ranks=metrics.video_to_text_ranks(ranking.video_scores, ranking.target).numpy(),
        zero_shot_ranks=zero_shot.numpy(),
        queries=[query for gallery in galleries for query in gallery.queries],
        target=ranking.target.numpy(),
        num_videos=len(ranking.video_task),
        train_videos=train_videos[category],
        accuracy=[*(row["A"] for row in earlier), accuracy],
        categories=[entry["categories"] for entry in tasks],
        before=[row["next_r1"] for row in earlier],
        untouched=[*(row["untouched_r1"] for row in earlier), reference.untouched_r1][1:],
        earlier_r1=[row["r1"] for row in earlier],
        val_r1=val_r1,
    )
    found = measured_class_means(features)
    return {
        "after": len(tasks),
        **computed(METRICS, measured),
        "next_r1": reference.next_r1,
        "untouched_r1": reference.untouched_r1,
        "A": accuracy,
        "category_r1": [recall_at(ranks[category == number], 1) for number in range(len(train_videos))],
        "geometry": {modality: geometry(classes) for modality, classes in found.items()},
        "by_class": {modality: _by_class(classes) for modality, classes in found.items()},
    }


def measured_class_means(features: dict[str, Tensor]) -> dict[str, ClassMeans]:
    """Class means of each modality: projected to the prototypes if the method has any, else as they are."""
    found = {}
    for modality in ("text", "video"):
        kind = "aligned" if f"{modality}/aligned" in features else "current"
        means, scatter = (features.get(f"{modality}/{name}") for name in (kind, "scatter"))
        if means is not None and len(means) > 1:
            prototypes = features["prototypes"].double().numpy() if kind == "aligned" else None
            found[modality] = ClassMeans(
                means.double().numpy(), prototypes, None if scatter is None else scatter.double().numpy()
            )
    return found


def _by_class(classes: ClassMeans) -> dict[str, list[float]]:
    """Measures that each class has one of, in the order of the classes."""
    found = {"alignment": classes.alignments, "maximal_angle": classes.angle_errors}
    return {name: values.tolist() for name, values in found.items() if values is not None}
