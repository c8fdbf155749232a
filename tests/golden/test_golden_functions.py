"""Every function array of the released code's golden numbers, in float64, within 1e-6."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from structalign.evaluation import metrics
from structalign.losses import contrastive as losses
from structalign.losses.memory import class_statistics
from structalign.losses.similarity import fuse, word_frame_similarity

RELEASED = Path(__file__).with_name("released-small.npz")
TOLERANCE = 1e-6


@pytest.fixture(scope="module")
def golden() -> dict[str, Tensor]:
    groups = ("sim/", "scl/", "etf/", "pseudo/", "proto/", "fuse/", "metrics/")
    with np.load(RELEASED, allow_pickle=False) as arrays:
        return {name: torch.from_numpy(arrays[name]) for name in arrays.files if name.startswith(groups)}


def assert_near(ours: Tensor | float, theirs: Tensor) -> None:
    assert float((torch.as_tensor(ours, dtype=torch.float64).detach() - theirs).abs().max()) < TOLERANCE


@pytest.mark.parametrize("pooling", ["max", "soft"])
@pytest.mark.parametrize("max_elements", [None, 1, 100])
def test_similarity(golden: dict[str, Tensor], pooling: str, max_elements: int | None) -> None:
    inputs = (golden["sim/frames"], golden["sim/words"], golden["sim/mask"])
    ours = word_frame_similarity(*inputs, pooling=pooling, max_elements=max_elements)
    assert_near(ours, golden[f"sim/{pooling}"])


@pytest.fixture(scope="module")
def student(golden: dict[str, Tensor]) -> Tensor:
    return word_frame_similarity(golden["scl/frames"], golden["scl/words"], golden["scl/mask"])


@pytest.fixture(scope="module")
def teacher(golden: dict[str, Tensor]) -> Tensor:
    return word_frame_similarity(golden["scl/ref_frames"], golden["scl/ref_words"], golden["scl/mask"])


@pytest.mark.parametrize("as_number", [False, True])
def test_scl_and_crp(golden: dict[str, Tensor], student: Tensor, teacher: Tensor, as_number: bool) -> None:
    scale = golden["scl/logit_scale_log"]
    scale = float(scale) if as_number else scale
    scl = losses.scl(student, scale)
    crp = losses.crp(student, teacher, scale, scale)
    assert_near(scl, golden["scl/scl"])
    assert_near(crp, golden["scl/crp"])
    assert_near(scl + 10 * crp, golden["scl/scl_plus_10crp"])


def etf_terms(golden: dict[str, Tensor], text_proj, video_proj) -> tuple[Tensor, Tensor]:
    maps = (golden["etf/prototypes"], text_proj, video_proj)
    batch = (golden["scl/words"], golden["scl/mask"], golden["scl/frames"], golden["etf/category"])
    pseudo = (golden["etf/pseudo_text"], golden["etf/pseudo_video"], golden["etf/pseudo_category"])
    return losses.etf_alignment(*batch, *maps), losses.etf_pseudo(*pseudo, *maps)


def layer(weight: Tensor) -> nn.Linear:
    linear = nn.Linear(*weight.shape, bias=False, dtype=weight.dtype)
    linear.weight.data.copy_(weight)
    return linear


@pytest.mark.parametrize("form", [lambda w: w, layer, lambda w: lambda x: x @ w.T], ids=["weight", "layer", "map"])
def test_etf_terms(golden: dict[str, Tensor], form) -> None:
    base, pseudo = etf_terms(golden, form(golden["etf/text_proj"]), form(golden["etf/video_proj"]))
    assert_near(base, golden["etf/base"])
    assert_near(base + pseudo, golden["etf/incremental"])


def test_the_released_swap_of_projections_is_a_different_number(golden: dict[str, Tensor]) -> None:
    right = (golden["etf/text_proj"], golden["etf/video_proj"])
    base, pseudo = etf_terms(golden, *right)
    _, swapped = etf_terms(golden, *reversed(right))
    released = golden["etf/incremental_released_swapped_projections"]
    assert_near(base + swapped, released)
    assert abs(float(base + pseudo - released)) > 0.01


@pytest.mark.parametrize("as_number", [False, True])
def test_pseudo_contrastive(golden: dict[str, Tensor], as_number: bool) -> None:
    scale = golden["scl/logit_scale_log"]
    batch = (golden["scl/words"], golden["scl/mask"], golden["scl/frames"])
    pseudo = (golden["etf/pseudo_text"], golden["etf/pseudo_video"])
    term = losses.pseudo_contrastive(*batch, *pseudo, float(scale) if as_number else scale)
    assert_near(term, golden["pseudo/contrastive"])


def test_class_statistics(golden: dict[str, Tensor]) -> None:
    classes, means, radii = class_statistics(golden["proto/features"], golden["proto/labels"])
    assert classes.tolist() == [0, 1, 2]
    assert_near(means, golden["proto/means"])
    assert_near(radii, golden["proto/radii"])


def test_fusion(golden: dict[str, Tensor]) -> None:
    ours = fuse(golden["fuse/word_frame"], golden["fuse/global"], float(golden["fuse/alpha"]))
    assert_near(ours, golden["fuse/fused"])


def test_recall(golden: dict[str, Tensor]) -> None:
    values = metrics.recall(golden["metrics/sims"], torch.arange(30))
    names = ("r1", "r5", "r10", "medr", "meanr")
    assert_near(torch.tensor([values[name] for name in names], dtype=torch.float64), golden["metrics/values"])
