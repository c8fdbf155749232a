"""A model and the method that trains it, restored from one task's checkpoint and saved for the next."""

from __future__ import annotations

import copy

import torch

from structalign import paths
from structalign.config.schema import Config, ModelConfig
from structalign.data.store import FrameStore
from structalign.data.tasks import Sample
from structalign.losses.contrastive import pool_frames
from structalign.methods.base import TrainingFeatures
from structalign.methods.base.discover import build_method, method_class
from structalign.model.clip import load_clip, text_tower
from structalign.model.retriever import Retriever, Trainable
from structalign.retrieval.encode import encode_videos, pooled_texts
from structalign.retrieval.gallery import TaskGallery
from structalign.training.loader import TrainingSet, eval_batches
from structalign.util.checkpoint import Checkpoint
from structalign.util.distributed import pick_device
from structalign.util.errors import UserError
from structalign.util.seeding import derive_seed

AT_A_TIME = 8
"""Training videos that are encoded together when a task ends. No parameter: class statistics must not change in their
last bits with how much memory an evaluation may take."""


def compile_encoders(retriever: Retriever) -> None:
    """Compile the blocks of both encoders in place, on their first use; names and weights stay as they are."""
    for tower in (retriever.clip.visual, text_tower(retriever.clip)):
        for block in tower.transformer.resblocks:
            block.compile()


class Learner:
    """Retriever and method, with the weights that a checkpoint holds.

    Parameters
    ----------
    config : Config
        All parameters.
    num_categories : int
        Categories over all tasks.
    checkpoint : Checkpoint
        What the previous task left; that of task 0 is empty.

    Raises
    ------
    UserError
        If the checkpoint was written by another method or for a model of another size.
    """

    def __init__(self, config: Config, num_categories: int, checkpoint: Checkpoint) -> None:
        if checkpoint.task > 0 and checkpoint.method != config.method.name:
            raise UserError(
                f"{paths.checkpoint(checkpoint.task)}: written by method {checkpoint.method!r}, "
                f"params.yaml asks for {config.method.name!r}; run `dvc repro`"
            )
        self.config = config
        self.device = pick_device(config.machine.device)
        self.retriever = self._fresh_retriever(config.model)
        if checkpoint.weights:
            self.retriever.load_trained_state(checkpoint.weights)
        self.retriever.task = max(1, checkpoint.task)
        self.retriever.to(self.device)
        self.method = build_method(config, self.retriever, num_categories)
        self.method.load_state(checkpoint.memory)

    def _fresh_retriever(self, model: ModelConfig) -> Retriever:
        """CLIP with untouched adapters, on the CPU."""
        clip, info = load_clip(paths.CLIP)
        trains: Trainable = "all" if method_class(self.config.method.name).trains_clip else "adapters"
        seed = derive_seed(self.config.seed, 0, 2)
        return Retriever(clip, info, model, num_tasks=self.config.K, seed=seed, trainable=trains)

    def initial(self) -> Retriever:
        """The model as task 1 starts from it: CLIP with untouched adapters, on this learner's device."""
        return self._fresh_retriever(self.config.model).to(self.device)

    def zero_shot(self) -> Retriever:
        """CLIP alone, on this learner's device, with the method's pooling of frames.

        Prompts and proxies change what CLIP computes even if they are untouched.
        """
        pooling = "mean" if self.config.model.video_pooling == "proxies" else self.config.model.video_pooling
        bare = {"vision_adapter": "none", "text_adapter": "none", "video_pooling": pooling}
        return self._fresh_retriever(self.config.model.model_copy(update=bare)).to(self.device)

    def start(self, task: int) -> None:
        """Choose what trains in this task, and give the method the teacher that it asks for."""
        kind = self.method.teacher_kind(task)
        teacher = None
        if kind == "previous":
            teacher = copy.deepcopy(self.retriever)
        elif kind == "initial":
            teacher = self.initial()
        if teacher is not None:
            teacher.requires_grad_(False).eval()
        self.retriever.prepare_task(task)
        self.method.start_task(task, teacher)
        if self.config.train.compile:
            for model in filter(None, (self.retriever, teacher)):
                compile_encoders(model)

    def finish(self, task: int, data: TrainingSet) -> None:
        """Close the task: experts are copied after task 1, and the method updates what it carries along."""
        self.retriever.finish_task(task)
        features = None
        if self.method.needs_features(task, self.config.K):
            features = self._training_features(task, data)
        self.method.finish_task(features)

    def _training_features(self, task: int, data: TrainingSet) -> TrainingFeatures:
        """Pooled features of all training samples, without augmentation, dropout or router noise."""
        frames = encode_videos(self.retriever, data.eval_batches(AT_A_TIME))  # [V,N,D]
        return TrainingFeatures(
            text=pooled_texts(self.retriever, data.captions, task),
            text_category=data.category,
            video=pool_frames(frames),
            video_category=torch.tensor([sample.category for sample in data.samples]),
        )

    def checkpoint(self, task: int, categories: list[str]) -> Checkpoint:
        """Collect what the next task and the evaluation need."""
        return Checkpoint(
            task=task,
            method=self.config.method.name,
            categories=categories,
            weights=self.retriever.trained_state(),
            memory=self.method.state(),
        )

    def gallery(
        self, store: FrameStore, samples: list[Sample], task: int, model: Retriever | None = None
    ) -> TaskGallery:
        """Queries and videos of samples, encoded as at test time; `task` is the one that texts are read as.

        `model` is this learner's by default.
        """
        frames = self.encode_clips(store, [sample.clip for sample in samples], model=model)
        return TaskGallery.from_samples(task, samples, frames)

    def encode_clips(
        self, store: FrameStore, clips: list[str], task: int | None = None, model: Retriever | None = None
    ) -> torch.Tensor:
        """Encode stored clips as at test time: frame features (V, N, D) on the CPU.

        `task` says whose routers see the clips, if vision has any; by default the present task's. `model` is this
        learner's by default.
        """
        size, workers = self.retriever.image_size, self.config.machine.num_workers
        batches = eval_batches(store, clips, size, self.config.evaluate.batch_size, workers)
        return encode_videos(model or self.retriever, batches, task)
