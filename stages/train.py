"""Stage train@NN: adapt the model that the previous task left to task NN."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from stages.run import run
from structalign import paths
from structalign.config.schema import Config
from structalign.data.store import FrameStore
from structalign.data.tasks import TaskSplit, read_task
from structalign.evaluation.evaluate import recall_at_1
from structalign.methods.base.discover import method_class
from structalign.retrieval.gallery import Side, load_galleries
from structalign.training import launch
from structalign.training.learner import Learner
from structalign.training.loader import TrainingSet
from structalign.training.loss_curve import LossCurve
from structalign.training.resume import ResumeFile, training_fingerprint
from structalign.training.trainer import Cost, Trainer
from structalign.util import distributed
from structalign.util.checkpoint import Checkpoint
from structalign.util.cost import keep_cost, training_id
from structalign.util.files import atomic_write_json, fresh_dir
from structalign.util.log import log
from structalign.util.machine import peak_memory_mb
from structalign.util.seeding import configure_numerics


def main(config: Config, task: int) -> None:
    """Train one task: from models/task-(NN-1) to models/task-NN."""
    devices = 1
    if _trains(config, task):
        devices = distributed.num_ranks(config.train.devices, config.machine.device, config.train.batch_size)
    launch.run(devices, distributed.pick_device(config.machine.device), _train, config, task)


def _trains(config: Config, task: int) -> bool:
    method = method_class(config.method.name)
    return method.trains and not (method.needs_all_tasks and task > 1)


def _train(config: Config, task: int) -> None:
    """Train as one of the ranks; rank 0 alone leaves outputs."""
    split, previous, learner = _restore(config, task)
    resume = None
    if learner.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(learner.device)  # a quick run has evaluated earlier tasks in this process
    with TemporaryDirectory(prefix="structalign-") as folder:
        curve = paths.loss_curve(task) if distributed.rank() == 0 else Path(folder) / "loss.csv"
        if _trains(config, task):
            # Rank 0 alone reads and writes the file: the others need not hash all that training reads.
            resume = ResumeFile(training_fingerprint(config, task) if distributed.rank() == 0 else "")
            trainer = _trainer(config, split, learner, resume)
            cost = trainer.run(curve)
            if distributed.rank() == 0:
                learner.finish(task, trainer.data)
        else:
            with LossCurve(curve, task):
                cost = Cost(seconds=0.0, steps=0, trained_parameters=0)
    if distributed.rank() > 0:
        return
    names = previous.categories + [category.name for category in split.categories]
    with fresh_dir(paths.checkpoint(task)) as model:
        learner.checkpoint(task, names).save(model)
    _write_cost(cost, learner.device, task, curve)
    if resume is not None:
        resume.remove()
    ranks = distributed.world_size()
    where = distributed.device_name(learner.device) + f" x {ranks}" * (ranks > 1)
    log.info(f"task {task}: {cost.steps} steps in {cost.seconds:.1f} s on {where}")


def _restore(config: Config, task: int) -> tuple[TaskSplit, Checkpoint, Learner]:
    """The task's split, what the previous task left, and a learner that is ready to go on from there."""
    configure_numerics(config.threads, config.train.deterministic)
    split = read_task(paths.split(task))
    if method_class(config.method.name).needs_all_tasks:
        split = _with_all_training_data(config, split)
    previous = Checkpoint.load(paths.checkpoint(task - 1))
    learner = Learner(config, split.num_categories, previous)
    learner.start(task)
    return split, previous, learner


def _trainer(config: Config, split: TaskSplit, learner: Learner, resume: ResumeFile) -> Trainer:
    if learner.method.needs_galleries:
        learner.method.start_galleries(load_galleries(paths.gallery(split.task - 1)))
    store = FrameStore(paths.FRAMES)
    data = TrainingSet(split.train, store, learner.retriever, config.machine.num_workers)
    validate = None
    if config.train.select == "best_on_test":
        log.warning("train.select=best_on_test: the epoch is picked on the test queries, which leaks the test set")
        validate = partial(_recall_on, "test", config, split, store, learner)
    elif config.train.select == "best_on_val":
        validate = partial(_recall_on, "validation", config, split, store, learner)
    return Trainer(learner.method, data, config, split.task, validate, resume)


def _recall_on(side: Side, config: Config, split: TaskSplit, store: FrameStore, learner: Learner) -> float:
    """R@1 of all seen tasks' queries of one side: what `best_on_val` and `best_on_test` pick their epoch by."""
    galleries = load_galleries(paths.gallery(split.task - 1), side)
    for one in _all_tasks(config) if learner.method.needs_all_tasks else [split]:
        samples = one.test if side == "test" else one.validation
        galleries.append(learner.gallery(store, samples, one.task))
    return recall_at_1(learner.retriever, galleries, config.similarity)


def _all_tasks(config: Config) -> list[TaskSplit]:
    return [read_task(paths.split(task)) for task in range(1, config.K + 1)]


def _with_all_training_data(config: Config, split: TaskSplit) -> TaskSplit:
    """Give task 1 the training data of all tasks, and the others none."""
    samples = [sample for one in _all_tasks(config) for sample in one.train]
    return replace(split, train=samples if split.task == 1 else [])


def _write_cost(cost: Cost, device: torch.device, task: int, curve: Path) -> None:
    """Write what repeats (steps, parameters) for DVC, and what does not (seconds, memory) beside it."""
    text = curve.read_text(encoding="utf-8")
    training = training_id(text)
    facts = {"steps": cost.steps, "trained_parameters": cost.trained_parameters, "training": training}
    atomic_write_json(paths.cost(task), facts)
    if cost.steps:
        peak = torch.cuda.max_memory_allocated(device) / 2**20 if device.type == "cuda" else peak_memory_mb()
        keep_cost(training, {"seconds": round(cost.seconds, 2), "peak_memory_mb": round(peak, 1)})


if __name__ == "__main__":
    run(main, task=True)
