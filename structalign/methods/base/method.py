"""The interface of a continual-learning method: what trains, what it adds to the loss, what it carries along.

A method is one file in `structalign/methods/` with one subclass of `Method`; `method.name` is the file's name. It
imports no other method, so that editing one retrains no other. A file in `conf/method/` is
needed only if the method has parameter values of its own. How a method scores at test time is a parameter
(`similarity.alpha`), so the same code ranks for all methods.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from structalign.config.schema import Config
from structalign.losses.contrastive import contrastive
from structalign.methods.base.batch import Batch, joint_text, joint_video
from structalign.methods.base.terms import Terms
from structalign.model.retriever import Retriever
from structalign.retrieval.gallery import TaskGallery

Teacher = Literal["previous", "initial"]


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
    needs_galleries: ClassVar[bool] = False
    """True: training reads the stored galleries of earlier tasks."""
    needs_all_tasks: ClassVar[bool] = False
    """True: task 1 trains on the data of all tasks, and later tasks train on nothing."""

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

    def averaged_weights(self) -> list[Tensor] | None:
        """Weights that an epoch is judged by and that training ends with, in the order of `parameter_groups`.

        None: the trained ones themselves.
        """
        return None

    def loss(self, batch: Batch) -> Terms:
        """Compute the terms of the loss; training minimises their weighted sum.

        Features come from `joint_video` and `joint_text`. Nothing else in the loss may differ between ranks.
        """
        raise TypeError(f"{type(self).__name__} has nothing to train")

    def contrast(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """Contrast the batch's global features: the loss (), text (B, D) and video (B, D)."""
        _, _, text = joint_text(self.retriever, batch.tokens, self.task)
        _, video = joint_video(self.retriever, batch)
        scl = contrastive(text, video, self.retriever.log_scale, self.config.loss.same_video, batch.video)
        return scl, text, video

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Parameters in groups for the optimizer, each with its name, its learning rate, and the key of that rate."""
        return []

    def trained_parameters(self) -> int:
        """Count the parameters that train in this task."""
        return self.retriever.trained_parameters(self.task)

    def finish_task(self, features: TrainingFeatures | None) -> None:
        """Update what is carried from task to task."""

    def training_state(self) -> dict[str, Any]:
        """What `loss` keeps from step to step, for a training that resumes after an interruption."""
        return {}

    def load_training_state(self, state: dict[str, Any]) -> None:
        """Restore from `training_state()`."""

    def state(self) -> dict[str, Tensor]:
        """What is carried from task to task, as named tensors."""
        return {}

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Restore from `state()`."""

    def align(self, text: Tensor, video: Tensor) -> tuple[Tensor, Tensor, Tensor] | None:
        """Map pooled features (M, D) to where they meet class prototypes (C, D); None without prototypes."""
        return None
