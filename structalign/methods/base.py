"""The interface of a continual-learning method: what trains, what it adds to the loss, what it carries along.

A method is one module with one subclass of `Method` and one YAML file in `conf/method/`. How it scores at test
time is a parameter (`similarity.alpha`), so that all methods are ranked by the same code.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from structalign.config.schema import Config
from structalign.model.retriever import Retriever
from structalign.retrieval.gallery import TaskGallery
from structalign.util import distributed

Teacher = Literal["previous", "initial"]


@dataclass
class Batch:
    """B pairs of a video and a caption; only pixels are cut into shares where several devices train.

    Attributes
    ----------
    pixels : Tensor, shape (V, N, 3, H, W), uint8
        Frames of this rank's share of the videos; V = B on a single device, unless videos are shared.
    tokens : Tensor, shape (B, L), int64
        Caption tokens.
    category : Tensor, shape (B,), int64
        Global category ids.
    video : Tensor, shape (B,), int64
        Which training video each pair shows; equal numbers are the same video.
    row : Tensor, shape (B,), int64, optional
        Which of the encoded videos each pair shows, where pairs of one video share its features.
    """

    pixels: Tensor
    tokens: Tensor
    category: Tensor
    video: Tensor
    row: Tensor | None = None


def joint_video(model: Retriever, batch: Batch) -> tuple[Tensor, Tensor]:
    """Encode this rank's share of the batch's videos and gather all: frames (B, N, D), global_ (B, D)."""
    frames, global_ = model.encode_video(batch.pixels)
    if distributed.world_size() == 1 and batch.row is None:
        return frames, global_
    frames = distributed.gather(frames)
    frames = frames[: len(batch.video)] if batch.row is None else frames[batch.row]  # [B,N,D]
    return frames, frames.mean(dim=1)


def joint_text(model: Retriever, tokens: Tensor, task: int) -> tuple[Tensor, Tensor, Tensor]:
    """Encode this rank's share of texts (B, L) and gather all: words (B, L, D), mask (B, L), global_ (B, D)."""
    if distributed.world_size() == 1:
        return model.encode_text(tokens, task)
    words, _, global_ = model.encode_text(tokens[distributed.shard_indices(len(tokens))], task)
    words, global_ = (distributed.gather(part)[: len(tokens)] for part in (words, global_))
    return words, model.word_mask(tokens), global_


@dataclass
class TrainingFeatures:
    """Pooled, L2-normalised features of all training samples of a task, each video and each caption once.

    Attributes
    ----------
    text : Tensor, shape (T, D)
    text_category : Tensor, shape (T,)
    video : Tensor, shape (V, D)
    video_category : Tensor, shape (V,)
    """

    text: Tensor
    text_category: Tensor
    video: Tensor
    video_category: Tensor


class Method:
    """A method that trains nothing and carries nothing: the base of all others.

    Parameters
    ----------
    config : Config
        All parameters.
    retriever : Retriever
        The model, with the weights that the previous task left.
    num_categories : int
        Categories over all tasks.
    """

    trains: ClassVar[bool] = True
    """False: there is nothing to optimise, and tasks only grow the gallery."""
    trains_clip: ClassVar[bool] = False
    """True: all of CLIP trains, and checkpoints hold all of it."""

    def __init__(self, config: Config, retriever: Retriever, num_categories: int) -> None:
        self.config = config
        self.retriever = retriever
        self.num_categories = num_categories
        self.task = 0
        self.teacher: Retriever | None = None

    def teacher_kind(self, task: int) -> Teacher | None:
        """Which frozen model `loss` compares with in this task; None spares its cost."""
        return None

    def needs_features(self, task: int, num_tasks: int) -> bool:
        """Whether `finish_task` wants the features of the training samples."""
        return False

    def start_task(self, task: int, teacher: Retriever | None) -> None:
        """Get ready to train on a task; `teacher` is what `teacher_kind` asked for."""
        self.task = task
        self.teacher = teacher

    def start_galleries(self, galleries: list[TaskGallery]) -> None:
        """Look at the stored galleries of earlier tasks before training starts."""

    def start_epoch(self, generator: torch.Generator) -> None:
        """Take the generator that this epoch's draws come from."""

    def finish_epoch(self) -> None:
        """Bring together what each device noted of its own share during the epoch."""

    def finish_step(self) -> None:
        """Look at the weights that an optimizer step led to."""

    def kept(self) -> list[Tensor] | None:
        """Weights that an epoch is judged by and that training ends with, in the order of `parameter_groups`.

        None: the trained ones themselves.
        """
        return None

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Compute the terms of the loss by name; `total` is the one to minimise.

        Features come from `joint_video` and `joint_text`, and nothing else in it may differ between ranks.
        """
        raise TypeError(f"{type(self).__name__} has nothing to train")

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Parameters in groups for the optimizer, each with its name and learning rate."""
        return []

    def trained_parameters(self) -> int:
        """Count the parameters that train in this task."""
        return self.retriever.trained_parameters(self.task)

    def finish_task(self, features: TrainingFeatures | None) -> None:
        """Update what is carried from task to task."""

    def training_state(self) -> dict[str, Any]:
        """What `loss` keeps from step to step, for a training that is taken up after an interruption."""
        return {}

    def load_training_state(self, state: dict[str, Any]) -> None:
        """Take back what `training_state` gave."""

    def state(self) -> dict[str, Tensor]:
        """What is carried from task to task, as named tensors."""
        return {}

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Take back what `state` gave."""

    def align(self, text: Tensor, video: Tensor) -> tuple[Tensor, Tensor, Tensor] | None:
        """Map pooled features (M, D) to where they meet class prototypes (C, D); None without prototypes."""
        return None


class AdapterMethod(Method):
    """A method that trains adapters, with separate rates for attention and for scalars."""

    def parameter_groups(self) -> list[dict[str, Any]]:
        """One rate in task 1; from task 2 on, one for attention adapters and one for scalars and prototypes."""
        train = self.config.train
        attention, scalars = self.retriever.parameter_groups()
        first = self.task == 1
        groups = [
            {"name": "attention", "params": attention, "lr": train.lr_first if first else train.lr_later},
            {"name": "scalars", "params": scalars, "lr": train.lr_first if first else train.lr_scalars},
        ]
        return [group for group in groups if group["params"]]
