"""Prototype memory: a mean and a radius per class and modality, from which pseudo features are drawn."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from structalign.util.errors import UserError

_FIELDS = ("classes", "counts", "text_means", "text_radii", "video_means", "video_radii")


def class_statistics(features: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Summarise each class by its mean and one radius.

    Parameters
    ----------
    features : Tensor, shape (M, D)
        Pooled features of all samples; the method normalises them first.
    labels : Tensor of int, shape (M,)
        Global category ids.

    Returns
    -------
    classes : Tensor of int, shape (C,)
        The labels that occur, sorted.
    means : Tensor, shape (C, D)
    radii : Tensor, shape (C,)
        sqrt(trace(covariance) / D) with the unbiased covariance; 0 for a class with one sample.

    Raises
    ------
    UserError
        If there are no samples, or a feature is not a finite number.

    Notes
    -----
    Source: METHOD.md, section 4. Computed in float64 and returned in the features' type.
    """
    if not len(features):
        raise UserError("class statistics: no samples; every task needs training data")
    if not features.isfinite().all():
        bad = labels[~features.isfinite().all(1)].unique().tolist()
        raise UserError(f"class statistics: features of categories {bad} are not finite numbers")
    classes, index, counts = labels.unique(return_inverse=True, return_counts=True)
    exact = features.detach().double()
    means = _sum_by_class(exact, index, len(classes)) / counts[:, None]  # [C,D]
    deviations = (exact - means[index]).square().mean(1)  # [M], the mean over D
    radii = (_sum_by_class(deviations, index, len(classes)) / (counts - 1).clamp(min=1)).sqrt()  # [C]
    return classes, means.to(features.dtype), radii.to(features.dtype)


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

    classes: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.long))
    counts: Tensor = field(default_factory=lambda: torch.empty(0))
    text_means: Tensor = field(default_factory=lambda: torch.empty(0, 0))
    text_radii: Tensor = field(default_factory=lambda: torch.empty(0))
    video_means: Tensor = field(default_factory=lambda: torch.empty(0, 0))
    video_radii: Tensor = field(default_factory=lambda: torch.empty(0))

    def __len__(self) -> int:
        return len(self.classes)

    def add(self, text: Tensor, text_category: Tensor, video: Tensor, video_category: Tensor) -> PrototypeMemory:
        """Return a memory that also holds one more task's classes.

        Parameters
        ----------
        text, video : Tensor, shapes (T, D) and (V, D)
            Pooled, L2-normalised features of all the task's training samples.
        text_category, video_category : Tensor, shapes (T,) and (V,)
            Both hold the same classes.

        Raises
        ------
        ValueError
            If they do not, or a class is in the memory already.
        """
        classes, text_means, text_radii = class_statistics(text, text_category)
        video_classes, video_means, video_radii = class_statistics(video, video_category)
        if not torch.equal(classes, video_classes):
            raise ValueError(f"texts are of classes {classes.tolist()}, videos of {video_classes.tolist()}")
        counts = torch.bincount(text_category)[classes].float()
        new = PrototypeMemory(classes, counts, text_means, text_radii, video_means, video_radii)
        return self.merge(new)

    def merge(self, new: PrototypeMemory) -> PrototypeMemory:
        """Return a memory with the classes of both.

        Raises
        ------
        ValueError
            If a class is in both: tasks share no categories.
        """
        if not len(self):
            return new
        both = self.classes[torch.isin(self.classes, new.classes)].tolist()
        if both:
            raise ValueError(f"categories {both} are in the memory already; tasks share no categories")
        return PrototypeMemory(*(torch.cat([getattr(self, name), getattr(new, name)]) for name in _FIELDS))

    def draw(self, count: int, generator: torch.Generator, balanced: bool = True) -> tuple[Tensor, Tensor, Tensor]:
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

        Raises
        ------
        ValueError
            If the memory is empty.
        """
        if not len(self):
            raise ValueError("the memory holds no classes to draw from: no task has ended yet")
        odds = torch.ones_like(self.counts) if balanced else self.counts
        index = torch.multinomial(odds, count, replacement=True, generator=generator)  # [P]
        text = self._sample(self.text_means[index], self.text_radii[index], generator)
        video = self._sample(self.video_means[index], self.video_radii[index], generator)
        return text, video, self.classes[index]

    @staticmethod
    def _sample(means: Tensor, radii: Tensor, generator: torch.Generator) -> Tensor:
        return means + radii[:, None] * torch.randn(means.shape, generator=generator, dtype=means.dtype)

    def to_tensors(self) -> dict[str, Tensor]:
        """Return the fields by name, for a checkpoint."""
        return {name: getattr(self, name) for name in _FIELDS}

    @classmethod
    def from_tensors(cls, tensors: dict[str, Tensor]) -> PrototypeMemory:
        """Restore from `to_tensors()`; without its fields, an empty memory.

        Raises
        ------
        UserError
            If only some of the fields are there, or they disagree in their number of classes.
        """
        found = {name: tensors[name] for name in _FIELDS if name in tensors}
        if found and len(found) < len(_FIELDS):
            missing = [name for name in _FIELDS if name not in found]
            raise UserError(f"memory.safetensors: {', '.join(missing)} missing; all of a memory's fields are needed")
        if len({len(value) for value in found.values()}) > 1:
            sizes = {name: len(value) for name, value in found.items()}
            raise UserError(f"memory.safetensors: the fields disagree in their number of classes: {sizes}")
        return cls(**found)


def _sum_by_class(values: Tensor, index: Tensor, num_classes: int) -> Tensor:
    return values.new_zeros(num_classes, *values.shape[1:]).index_add_(0, index, values)
