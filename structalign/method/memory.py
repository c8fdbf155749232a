"""Prototype memory: a mean and a radius per class and modality, from which pseudo features are drawn."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

_FIELDS = ("classes", "counts", "text_means", "text_radii", "video_means", "video_radii")


def class_statistics(features: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean and radius of every class.

    Parameters
    ----------
    features : Tensor, shape (M, D)
    labels : Tensor, shape (M,), int64

    Returns
    -------
    classes : Tensor, shape (C,)
        The labels that occur, sorted.
    means : Tensor, shape (C, D)
    radii : Tensor, shape (C,)
        sqrt(trace(covariance) / D), by the unbiased covariance; 0 for a class with a single sample.
    """
    classes, index = torch.unique(labels, return_inverse=True)
    member = torch.nn.functional.one_hot(index, len(classes)).to(features).T  # [C,M]
    counts = member.sum(dim=1)  # [C]
    means = member @ features / counts[:, None]  # [C,D]
    squares = (features - means[index]).square().sum(dim=1)  # [M]
    trace = (member @ squares) / (counts - 1).clamp_min(1)  # [C]
    return classes, means, (trace / features.shape[1]).sqrt()


def _empty(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.empty(*shape, dtype=dtype)


@dataclass
class PrototypeMemory:
    """What is remembered of the classes of earlier tasks; global category ids throughout.

    Attributes
    ----------
    classes : Tensor, shape (C,), int64
    counts : Tensor, shape (C,)
        Training captions of each class.
    text_means, video_means : Tensor, shape (C, D)
    text_radii, video_radii : Tensor, shape (C,)
    """

    classes: Tensor = field(default_factory=lambda: _empty(0, dtype=torch.long))
    counts: Tensor = field(default_factory=lambda: _empty(0))
    text_means: Tensor = field(default_factory=lambda: _empty(0, 0))
    text_radii: Tensor = field(default_factory=lambda: _empty(0))
    video_means: Tensor = field(default_factory=lambda: _empty(0, 0))
    video_radii: Tensor = field(default_factory=lambda: _empty(0))

    def __len__(self) -> int:
        return len(self.classes)

    def add(
        self, text: Tensor, text_category: Tensor, video: Tensor, video_category: Tensor
    ) -> PrototypeMemory:
        """Give the memory with the classes of one more task.

        Parameters
        ----------
        text, video : Tensor, shapes (T, D) and (V, D)
            Pooled, L2-normalised features of all the task's training samples.
        text_category, video_category : Tensor, shapes (T,) and (V,)
            Both hold the same classes.
        """
        classes, text_means, text_radii = class_statistics(text, text_category)
        video_classes, video_means, video_radii = class_statistics(video, video_category)
        if not torch.equal(classes, video_classes):
            raise ValueError(f"texts are of classes {classes.tolist()}, videos of {video_classes.tolist()}")
        counts = torch.bincount(text_category)[classes].float()
        new = PrototypeMemory(classes, counts, text_means, text_radii, video_means, video_radii)
        if not len(self):
            return new
        return PrototypeMemory(*(torch.cat([getattr(self, name), getattr(new, name)]) for name in _FIELDS))

    def draw(
        self, count: int, generator: torch.Generator, balanced: bool = True
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Draw pseudo pairs, mean + radius * N(0, I), of remembered classes.

        Parameters
        ----------
        count : int
            Number of pairs, P.
        generator : Generator
            On the CPU.
        balanced : bool
            True: all classes are equally likely. False: in proportion to their training samples.

        Returns
        -------
        text, video : Tensor, shape (P, D)
            Both halves of a pair are of the same class, with noise of their own.
        category : Tensor, shape (P,)
        """
        odds = torch.ones_like(self.counts) if balanced else self.counts
        index = torch.multinomial(odds, count, replacement=True, generator=generator)  # [P]
        text = self._sample(self.text_means[index], self.text_radii[index], generator)
        video = self._sample(self.video_means[index], self.video_radii[index], generator)
        return text, video, self.classes[index]

    @staticmethod
    def _sample(means: Tensor, radii: Tensor, generator: torch.Generator) -> Tensor:
        return means + radii[:, None] * torch.randn(means.shape, generator=generator)

    def to_tensors(self) -> dict[str, Tensor]:
        """Give the fields by name, for a checkpoint."""
        return {name: getattr(self, name) for name in _FIELDS}

    @classmethod
    def from_tensors(cls, tensors: dict[str, Tensor]) -> PrototypeMemory:
        """Take back what `to_tensors` gave; without its fields, an empty memory."""
        return cls(**{name: tensors[name] for name in _FIELDS if name in tensors})
