"""How close class means come to a simplex equiangular tight frame: the measures of neural collapse, in one table.

Sources: neural collapse (Papyan, Han and Donoho, 2020); distance between normalised Gram matrices (Zhu et al.,
2021). A new measure is one entry in `GEOMETRY`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from structalign.evaluation.metric_table import Metric, computed
from structalign.util.errors import UserError

_TINY = np.finfo(np.float64).tiny


@dataclass(frozen=True)
class ClassMeans:
    """Class means, to be compared with a simplex ETF.

    Attributes
    ----------
    means : ndarray, shape (C, D)
        Mean feature of each class.
    prototypes : ndarray, shape (C, D), optional
        Prototype of each class.
    scatter : ndarray, shape (C,), optional
        Mean squared distance of each class's features to their mean.

    Raises
    ------
    UserError
        If there are fewer than two classes, or a mean is not finite.
    """

    means: np.ndarray
    prototypes: np.ndarray | None = None
    scatter: np.ndarray | None = None

    def __post_init__(self) -> None:
        if len(self.means) < 2:
            raise UserError(f"class means: {len(self.means)} given, their geometry needs at least 2 classes")
        bad = np.flatnonzero(~np.isfinite(self.means).all(axis=1)).tolist()
        if bad:
            raise UserError(f"class means: not finite in rows {bad}; every feature must be a finite number")

    @property
    def ideal_cosine(self) -> float:
        """Cosine of any two classes of a simplex ETF: -1 / (C - 1)."""
        return -1 / (len(self.means) - 1)

    @cached_property
    def ideal_gram(self) -> np.ndarray:
        """Gram matrix (C, C) of a simplex ETF of unit vectors."""
        gram = np.full((len(self.means),) * 2, self.ideal_cosine)
        np.fill_diagonal(gram, 1.0)
        return gram

    @cached_property
    def centred(self) -> np.ndarray:
        """Means (C, D) minus their own mean: features of one modality share a large common part."""
        return self.means - self.means.mean(axis=0)

    @cached_property
    def norms(self) -> np.ndarray:
        """Norms (C,) of the centred means."""
        return np.linalg.norm(self.centred, axis=1)

    @cached_property
    def cosines(self) -> np.ndarray:
        """Cosines (C, C) between the centred means."""
        unit = self.centred / np.maximum(self.norms, 1e-12)[:, None]
        return unit @ unit.T

    @property
    def off_diagonal(self) -> np.ndarray:
        """Cosines (C, C - 1) of each class with every other class."""
        return self.cosines[~np.eye(len(self.means), dtype=bool)].reshape(len(self.means), -1)

    @cached_property
    def angle_errors(self) -> np.ndarray:
        """Mean distance (C,) of each class's cosines from the ideal one."""
        return np.abs(self.off_diagonal - self.ideal_cosine).mean(axis=1)

    @cached_property
    def alignments(self) -> np.ndarray | None:
        """Cosine (C,) of each mean, not centred, with its own prototype."""
        if self.prototypes is None:
            return None
        lengths = np.linalg.norm(self.means, axis=1) * np.linalg.norm(self.prototypes, axis=1)
        return (self.means * self.prototypes).sum(axis=1) / np.maximum(lengths, _TINY)


def _equinorm(classes: ClassMeans) -> float:
    return float(classes.norms.std() / max(classes.norms.mean(), _TINY))


def _gram_distance(classes: ClassMeans) -> float:
    gram, ideal = classes.centred @ classes.centred.T, classes.ideal_gram
    return float(np.linalg.norm(gram / max(np.linalg.norm(gram), _TINY) - ideal / np.linalg.norm(ideal)))


def _alignment(classes: ClassMeans) -> float | None:
    return None if classes.alignments is None else float(classes.alignments.mean())


def _within_between(classes: ClassMeans) -> float | None:
    if classes.scatter is None:
        return None
    return float(classes.scatter.mean() / max(np.square(classes.norms).mean(), _TINY))


GEOMETRY: tuple[Metric, ...] = (
    Metric(
        key="alignment",
        label="alignment",
        unit="cosine",
        better="higher",
        ideal=1,
        range="-1 to 1",
        meaning="Mean cosine of each class mean with its own prototype, after the projections P_t and P_v. It is "
        "what the ETF loss trains: 1 if every class lies in the direction of its prototype, 0 if the two have "
        "nothing to do with each other. Only methods with prototypes have it. If it falls from task to task, the "
        "ETF is being lost.",
        compute=_alignment,
    ),
    Metric(
        key="maximal_angle",
        label="angle error",
        unit="cosine",
        better="lower",
        ideal=0,
        range="0 to 2",
        meaning="Mean distance of the cosine of two classes from -1/(C-1), which is the cosine of any two classes "
        "of a simplex ETF: the largest angle that C classes can all have with each other. 0: all classes are as "
        "far apart as possible.",
        compute=lambda classes: float(classes.angle_errors.mean()),
    ),
    Metric(
        key="equiangularity",
        label="spread of angles",
        unit="cosine",
        better="lower",
        ideal=0,
        range="0 to 1",
        meaning="Standard deviation of the cosines between different classes. 0: every pair of classes is equally "
        "far apart, whatever that angle is.",
        compute=lambda classes: float(classes.off_diagonal.std()),
    ),
    Metric(
        key="equinorm",
        label="spread of norms",
        unit="relative",
        better="lower",
        ideal=0,
        range="at least 0",
        meaning="Standard deviation of the norms of the class means, divided by their mean. 0: every class is "
        "equally far from the common centre.",
        compute=_equinorm,
    ),
    Metric(
        key="gram_max",
        label="worst cosine",
        unit="cosine",
        better="lower",
        ideal=0,
        range="0 to 2",
        meaning="Largest distance of any cosine between two classes from the ideal one: the worst pair, whereas "
        "the angle error is the mean over pairs.",
        compute=lambda classes: float(np.abs(classes.cosines - classes.ideal_gram).max()),
    ),
    Metric(
        key="gram_distance",
        label="distance of Gram matrices",
        unit="Frobenius norm",
        better="lower",
        ideal=0,
        range="0 to 2",
        meaning="Distance between the Gram matrix of the class means and that of a simplex ETF, both divided by "
        "their norms. It sums up norms and angles in one number: 0 for a simplex ETF of any size.",
        compute=_gram_distance,
    ),
    Metric(
        key="within_between",
        label="within / between classes",
        unit="ratio",
        better="lower",
        ideal=0,
        range="at least 0",
        meaning="Mean squared distance of features to their class mean, divided by the mean squared norm of the "
        "class means. 0: features have collapsed onto their class means. Above 1: classes overlap more than they "
        "differ.",
        compute=_within_between,
    ),
)
"""Unless a paragraph says otherwise, the mean over all classes is subtracted from the class means first, because
features of one modality share a large common part."""


def geometry(classes: ClassMeans) -> dict[str, float]:
    """Compute all measures of `GEOMETRY` that apply to these class means."""
    return computed(GEOMETRY, classes)
