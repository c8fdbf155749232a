"""No stage of the pipeline: what `structalign tune --quick` runs in place of train, evaluate and report.

All tasks are learnt in one process, and nothing but recall on validation videos is measured, so that no time goes
into starting programs, test videos, references and figures.
"""

from __future__ import annotations

from stages import train
from stages.evaluate import validation_gallery
from stages.run import run
from structalign import paths
from structalign.config.schema import Config
from structalign.data.store import FrameStore
from structalign.data.tasks import read_task
from structalign.evaluation.evaluate import recall_at_1
from structalign.retrieval.gallery import Side, TaskGallery, store_galleries
from structalign.training.learner import Learner
from structalign.util.checkpoint import Checkpoint
from structalign.util.errors import UserError
from structalign.util.files import atomic_write_json
from structalign.util.log import log


def main(config: Config) -> None:
    """Train on all tasks; after each, write R@1 on the validation videos of all seen tasks to metrics/trial.json."""
    if not config.split.validation:
        raise UserError("split.validation = 0: without validation videos there is nothing to tune on")
    measured: list[float] = []
    for task in range(1, config.K + 1):
        train.main(config, task)
        measured.append(_validate(config, task))
        atomic_write_json(paths.TRIAL, measured)
        log.info(f"after task {task}: validation R@1 {measured[-1]:.2f}")


def _validate(config: Config, task: int) -> float:
    """Store the galleries that later tasks need, and return R@1 (percent) over all seen tasks."""
    split = read_task(paths.split(task))
    learner = Learner(config, split.num_categories, Checkpoint.load(paths.checkpoint(task)))
    store, earlier = FrameStore(paths.FRAMES), paths.gallery(task - 1)
    galleries = validation_gallery(earlier, learner, store, split)
    newest: dict[Side, TaskGallery] = {"validation": galleries[-1]}
    if learner.method.needs_galleries or config.train.select == "best_on_test":
        newest["test"] = learner.gallery(store, split.test, task)
    store_galleries(paths.gallery(task), earlier, newest)
    return recall_at_1(learner.retriever, galleries, config.similarity)


if __name__ == "__main__":
    run(main)
