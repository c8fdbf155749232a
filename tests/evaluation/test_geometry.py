"""How close class means come to a simplex ETF: worked examples, and what has no geometry."""

from __future__ import annotations

import math

import numpy as np
import pytest

from structalign.evaluation.geometry import GEOMETRY, ClassMeans, geometry
from structalign.losses.etf import simplex_etf
from structalign.util.errors import UserError

ETF = simplex_etf(7, 12).numpy()
NOISE = np.random.default_rng(0).normal(size=(7, 12))


def full(means: np.ndarray, scatter: float = 0.0) -> dict[str, float]:
    return geometry(ClassMeans(means, prototypes=ETF, scatter=np.full(len(means), scatter)))


def test_a_simplex_etf_has_the_ideal_value_of_every_measure() -> None:
    measures = full(3 * ETF)
    assert measures.keys() == {measure.key for measure in GEOMETRY}
    for measure in GEOMETRY:
        assert measures[measure.key] == pytest.approx(measure.ideal, abs=1e-7), measure.key


def test_a_distorted_etf_is_worse_in_the_direction_that_the_table_says() -> None:
    near, far = full(ETF + 0.01 * NOISE, 0.01), full(ETF + 0.3 * NOISE, 0.3)
    for measure in GEOMETRY:
        better = {"higher": far[measure.key] < near[measure.key] < measure.ideal}
        better |= {"lower": far[measure.key] > near[measure.key] > measure.ideal}
        assert better[measure.better], measure.key


def test_where_the_etf_lies_does_not_matter() -> None:
    assert max(geometry(ClassMeans(3 * ETF + 5)).values()) < 1e-7


def test_geometry_by_hand() -> None:
    means = np.array([[3.0, 0.0], [0.0, 1.0]])
    assert max(geometry(ClassMeans(means)).values()) < 1e-7  # two means always form the simplex of 2 classes
    line = geometry(ClassMeans(np.array([[0.0], [1.0], [5.0]])))  # centred: -2, -1, 3
    assert line["equinorm"] == pytest.approx(np.std([2, 1, 3]) / 2)
    assert line["maximal_angle"] == pytest.approx((1.5 + 0.5 + 0.5) / 3)  # cosines 1, -1, -1; ideal -0.5
    assert line["equiangularity"] == pytest.approx(np.std([1, -1, -1]))
    assert line["gram_max"] == pytest.approx(1.5)
    gram = np.outer([-2, -1, 3], [-2, -1, 3]) / 14
    ideal = np.full((3, 3), -0.5) + 1.5 * np.eye(3)
    assert line["gram_distance"] == pytest.approx(np.linalg.norm(gram - ideal / np.linalg.norm(ideal)))


def test_alignment_and_scatter_by_hand() -> None:
    measures = geometry(ClassMeans(2 * ETF, prototypes=ETF, scatter=np.full(7, 12 * 0.25)))
    assert measures["alignment"] == pytest.approx(1)
    assert measures["within_between"] == pytest.approx(12 * 0.25 / 4)
    assert geometry(ClassMeans(ETF, prototypes=-ETF))["alignment"] == pytest.approx(-1)


def test_measures_per_class_average_to_the_whole() -> None:
    classes = ClassMeans(ETF + 0.2 * NOISE, prototypes=ETF)
    assert classes.angle_errors.mean() == pytest.approx(geometry(classes)["maximal_angle"])
    assert classes.alignments is not None
    assert classes.alignments.mean() == pytest.approx(geometry(classes)["alignment"])


def test_equal_means_have_finite_measures() -> None:
    assert all(math.isfinite(value) for value in geometry(ClassMeans(np.ones((4, 6)))).values())


def test_what_has_no_geometry_is_refused() -> None:
    with pytest.raises(UserError, match="at least 2"):
        ClassMeans(np.ones((1, 6)))
    broken = np.ones((4, 6))
    broken[2, 3] = math.nan
    with pytest.raises(UserError, match=r"\[2\]"):
        ClassMeans(broken)
