"""The simplex equiangular tight frame, and pooling towards its prototypes."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from structalign.losses.etf import pool_to_prototype, simplex_etf
from structalign.util.errors import UserError

SIZES = [(20, 512), (200, 512), (512, 512), (513, 512), (2, 1), (5, 4), (5, 5)]


def deviation(frame: Tensor) -> float:
    ideal = torch.full((len(frame), len(frame)), -1 / (len(frame) - 1), dtype=torch.float64).fill_diagonal_(1.0)
    return float((frame @ frame.T - ideal).abs().max())


@pytest.mark.parametrize(("classes", "dim"), SIZES)
@pytest.mark.parametrize("seed", [0, 7])
def test_exact_frames_are_equiangular(classes: int, dim: int, seed: int) -> None:
    frame = simplex_etf(classes, dim, seed)
    assert frame.shape == (classes, dim)
    assert deviation(frame) < 1e-12
    assert deviation(frame.float().double()) < 1e-6
    assert float(frame.sum(0).abs().max()) < 1e-11


@pytest.mark.parametrize(("classes", "dim"), [(20, 512), (200, 512), (512, 512)])
def test_random_frames_are_unit_rows_and_not_equiangular(classes: int, dim: int) -> None:
    frame = simplex_etf(classes, dim, construction="random")
    torch.testing.assert_close(frame.norm(dim=1), torch.ones(classes, dtype=torch.float64))
    assert deviation(frame) > 0.05


def test_the_exact_frame_is_tight() -> None:
    frame = simplex_etf(20, 512, seed=3)
    eigenvalues = torch.linalg.eigvalsh(frame.T @ frame)
    torch.testing.assert_close(eigenvalues[-19:], torch.full((19,), 20 / 19, dtype=torch.float64))
    assert float(eigenvalues[:-19].abs().max()) < 1e-12


@pytest.mark.parametrize("construction", ["exact", "random"])
def test_the_seed_decides(construction: str) -> None:
    assert torch.equal(simplex_etf(6, 9, 4, construction), simplex_etf(6, 9, 4, construction))
    assert not torch.equal(simplex_etf(6, 9, 4, construction), simplex_etf(6, 9, 5, construction))


def test_global_randomness_is_left_alone() -> None:
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    simplex_etf(6, 9)
    assert torch.equal(torch.rand(1), expected)


@pytest.mark.parametrize("construction", ["exact", "random"])
def test_too_few_dimensions_are_refused_with_both_numbers(construction: str) -> None:
    with pytest.raises(UserError, match=r"20 .*\b19 .*\b18\b"):
        simplex_etf(20, 18, construction=construction)
    assert simplex_etf(20, 19, construction=construction).shape == (20, 19)


@pytest.mark.parametrize("classes", [1, 0, -3])
def test_fewer_than_two_classes_are_refused(classes: int) -> None:
    with pytest.raises(UserError, match=rf"etf.num_classes = {classes}"):
        simplex_etf(classes, 8)


def test_an_unknown_construction_is_named() -> None:
    with pytest.raises(UserError, match=r"etf.construction = 'qr'"):
        simplex_etf(4, 8, construction="qr")


@pytest.fixture
def sample() -> dict[str, Tensor]:
    source = torch.Generator().manual_seed(0)
    return {
        "features": torch.randn(3, 4, 6, generator=source, dtype=torch.float64),
        "prototype": simplex_etf(5, 6)[[1, 1, 4]],
        "weight": torch.randn(6, 6, generator=source, dtype=torch.float64),
        "mask": torch.tensor([[1, 1, 0, 0], [0, 1, 0, 1], [1, 1, 1, 1]], dtype=torch.bool),
    }


def test_pooling_projects_every_feature_in_effect(sample: dict[str, Tensor]) -> None:
    pooled = pool_to_prototype(sample["features"], sample["prototype"], sample["weight"], sample["mask"])
    for i, kept in enumerate(sample["mask"]):
        projected = sample["features"][i][kept] @ sample["weight"].T
        share = (projected @ sample["prototype"][i]).softmax(0)
        torch.testing.assert_close(pooled[i], share @ projected)


def test_pooling_ignores_what_padding_holds(sample: dict[str, Tensor]) -> None:
    arguments = (sample["prototype"], sample["weight"], sample["mask"])
    expected = pool_to_prototype(sample["features"], *arguments)
    broken = sample["features"].masked_fill(~sample["mask"][..., None], math.nan)
    torch.testing.assert_close(pool_to_prototype(broken, *arguments), expected)


def test_pooling_no_words_gives_zeros_and_finite_gradients(sample: dict[str, Tensor]) -> None:
    features = sample["features"].requires_grad_()
    mask = sample["mask"].clone()
    mask[0] = False
    pooled = pool_to_prototype(features, sample["prototype"], sample["weight"], mask)
    assert not pooled[0].any()
    pooled.sum().backward()
    assert features.grad.isfinite().all()


def test_a_projection_with_a_bias_is_refused(sample: dict[str, Tensor]) -> None:
    with pytest.raises(TypeError, match="bias"):
        pool_to_prototype(sample["features"], sample["prototype"], nn.Linear(6, 6).double())


def test_a_frame_needs_room_for_its_classes() -> None:
    with pytest.raises(UserError, match="600 equiangular prototypes need at least 599 dimensions"):
        simplex_etf(600, 512)
