"""Stage evaluate@NN: store task NN's gallery and rank all seen galleries for all seen queries."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from torch import Tensor

from stages.run import run
from structalign import paths
from structalign.config.schema import Config
from structalign.data.store import FrameStore
from structalign.data.tasks import TaskSplit, read_task
from structalign.evaluation.diagnostics import diagnose
from structalign.evaluation.evaluate import rank, recall_over_all
from structalign.evaluation.examples import follow, illustrate
from structalign.evaluation.record import Record
from structalign.evaluation.reference import recall_within_own_gallery, reference
from structalign.model.retriever import Retriever
from structalign.retrieval.gallery import Side, TaskGallery, load_galleries, store_galleries
from structalign.training.learner import Learner
from structalign.util.checkpoint import Checkpoint
from structalign.util.files import fresh_dir
from structalign.util.log import log
from structalign.util.seeding import configure_numerics


def main(config: Config, task: int) -> None:
    """Evaluate after one task: data/gallery/after-NN, and metrics/task-NN with recall over all seen tasks."""
    configure_numerics(config.threads)
    split = read_task(paths.split(task))
    learner = Learner(config, split.num_categories, Checkpoint.load(paths.checkpoint(task)))
    store = FrameStore(paths.FRAMES)
    earlier = paths.gallery(task - 1)
    frames = learner.encode_clips(store, [sample.clip for sample in split.test])
    galleries = [*load_galleries(earlier), TaskGallery.from_samples(task, split.test, frames)]
    ranking = rank(learner.retriever, galleries, config.similarity, config.evaluate)

    record = Record.load(paths.record(task - 1))
    encode = partial(learner.encode_clips, store)
    features = diagnose(record.features, galleries, learner.method, encode, config.evaluate.drift_videos)
    references = reference(
        *_untouched(learner, store, split), split, config.similarity, _next_r1(config, task, learner, store)
    )
    validation = validation_gallery(earlier, learner, store, split)
    val_r1 = recall_over_all(rank(learner.retriever, validation, config.similarity))["r1"] if validation else None
    row = record.add_evaluation(
        config, split, galleries, ranking, features, references, val_r1, _notes(split, store, learner)
    )
    record.add_training(paths.loss_curve(task), paths.cost(task))

    record.followed = follow(record.followed, galleries, ranking.scores, config.K, config.seed)
    record.shown = illustrate(record.followed, galleries, record.categories, store)

    if config.evaluate.index == "faiss":
        galleries[-1].faiss_index()  # is stored with the gallery, so that nothing builds it again
    newest: dict[Side, TaskGallery] = {"test": galleries[-1]}
    if validation:
        newest["validation"] = validation[-1]
    store_galleries(paths.gallery(task), earlier, newest)
    with fresh_dir(paths.record(task)) as folder:
        record.save(folder)
    log.info(f"after task {task}: R@1 {row['r1']:.2f}, R@5 {row['r5']:.2f}, BWF {row['bwf']:.2f}")


def _untouched(learner: Learner, store: FrameStore, split: TaskSplit) -> tuple[Retriever, Tensor]:
    """The untouched CLIP, and its frame features (V, N, D) of the task's test videos."""
    model = learner.zero_shot()
    return model, learner.encode_clips(store, [sample.clip for sample in split.test], model=model)


def _next_r1(config: Config, task: int, learner: Learner, store: FrameStore) -> float | None:
    """R@1 (percent) of the next task within its own gallery, before it is learnt; None after the last task."""
    if task == config.K:
        return None
    split = read_task(paths.split(task + 1))
    frames = learner.encode_clips(store, [sample.clip for sample in split.test])
    return recall_within_own_gallery(learner.retriever, split, frames, config.similarity, task)


def validation_gallery(earlier: Path, learner: Learner, store: FrameStore, split: TaskSplit) -> list[TaskGallery]:
    """Galleries of all seen tasks' validation videos, stored as the test videos' are; empty if there are none."""
    if not split.validation:
        return []
    frames = learner.encode_clips(store, [sample.clip for sample in split.validation])
    newest = TaskGallery.from_samples(split.task, split.validation, frames)
    return [*load_galleries(earlier, "validation"), newest]


def _notes(split: TaskSplit, store: FrameStore, learner: Learner) -> dict[str, int]:
    """Count what was changed or is doubtful about a task's clips, and its captions that are too long."""
    samples = [*split.train, *split.validation, *split.test]
    clips = {sample.clip for sample in samples}
    notes = {note: len(clips.intersection(found)) for note, found in store.notes.items()}
    cut = learner.retriever.count_cut([caption for sample in samples for caption in sample.captions])
    if cut:
        log.warning(f"task {split.task}: captions longer than the text encoder reads, ends cut: {cut}")
    return {note: count for note, count in {**notes, "captions cut": cut}.items() if count}


if __name__ == "__main__":
    run(main, task=True)
