"""Stage evaluate@NN: store task NN's gallery and rank all seen galleries for all seen queries."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from stages.run import run
from structalign import paths
from structalign.config.schema import Config
from structalign.data.store import FrameStore
from structalign.data.tasks import TaskSplit, read_task
from structalign.evaluation.diagnostics import diagnose
from structalign.evaluation.evaluate import rank, recall_at_1
from structalign.evaluation.examples import follow, illustrate
from structalign.evaluation.record import Record
from structalign.evaluation.reference import reference
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
    galleries = [*load_galleries(earlier), learner.gallery(store, split.test, task)]
    ranking = rank(learner.retriever, galleries, config.similarity, config.evaluate)

    record = Record.load(paths.record(task - 1))
    encode = partial(learner.encode_clips, store)
    features = diagnose(record.features, galleries, learner.method, encode, config.evaluate.drift_videos)
    untouched = learner.zero_shot()
    untouched_gallery = learner.gallery(store, split.test, task, untouched)
    next_r1 = _next_r1(config, task, learner, store)
    references = reference(untouched, untouched_gallery, config.similarity, next_r1)
    validation = validation_gallery(earlier, learner, store, split)
    val_r1 = recall_at_1(learner.retriever, validation, config.similarity) if validation else None
    notes = _notes(split, store, learner)
    row = record.add_evaluation(config, split, galleries, ranking, features, references, val_r1, notes)
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


def _next_r1(config: Config, task: int, learner: Learner, store: FrameStore) -> float | None:
    """R@1 (percent) of the next task within its own gallery, before it is learnt; None after the last task."""
    if task == config.K:
        return None
    samples = read_task(paths.split(task + 1)).test
    return recall_at_1(learner.retriever, [learner.gallery(store, samples, task)], config.similarity)


def validation_gallery(earlier: Path, learner: Learner, store: FrameStore, split: TaskSplit) -> list[TaskGallery]:
    """Galleries of all seen tasks' validation videos, stored as the test videos' are; empty if there are none."""
    if not split.validation:
        return []
    return [*load_galleries(earlier, "validation"), learner.gallery(store, split.validation, split.task)]


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
