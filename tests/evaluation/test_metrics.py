"""Recall, ranks and forgetting: worked examples, ties, and every way a matrix can be unfit."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from structalign.evaluation import metrics
from structalign.util.errors import UserError


def plain_rank(row: list[float], target: int) -> int:
    """Sort from the best, a target behind all that tie with it, and look where it stands."""
    order = sorted(range(len(row)), key=lambda item: (-row[item], item == target))
    return order.index(target) + 1


@settings(max_examples=50, deadline=None)
@given(data=st.data(), queries=st.integers(1, 6), videos=st.integers(1, 6), step=st.integers(1, 6))
def test_ranks_equal_those_by_sorting_however_queries_are_chunked(
    data: st.DataObject, queries: int, videos: int, step: int
) -> None:
    # Few different values, so that ties are common.
    scores = torch.tensor(
        data.draw(st.lists(st.integers(0, 3), min_size=queries * videos, max_size=queries * videos))
    )
    scores = scores.reshape(queries, videos).double()
    target = torch.tensor(data.draw(st.lists(st.integers(0, videos - 1), min_size=queries, max_size=queries)))
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(metrics, "_BLOCK", step)
        whole = metrics.ranks(scores, target)
    assert whole.tolist() == [plain_rank(row, t) for row, t in zip(scores.tolist(), target.tolist(), strict=True)]
    parts = [metrics.ranks(scores[i : i + step], target[i : i + step]) for i in range(0, queries, step)]
    assert torch.equal(torch.cat(parts), whole)


def test_ties_count_against_the_query() -> None:
    assert metrics.ranks(torch.zeros(1, 7), torch.tensor([0])).tolist() == [7]
    assert metrics.recall(torch.zeros(4, 20), torch.arange(4))["r10"] == 0


def test_recall_of_known_ranks() -> None:
    values = metrics.recall_from_ranks(torch.tensor([1, 2, 5, 6, 10, 11]))
    assert values["r1"] == pytest.approx(100 / 6)
    assert values["r5"] == pytest.approx(50)
    assert values["r10"] == pytest.approx(500 / 6)
    assert values["medr"] == 5.5
    assert values["meanr"] == pytest.approx(35 / 6)


def test_arrays_and_lists_are_taken_as_well() -> None:
    scores = [[0.9, 0.1, 0.3], [0.2, 0.4, 0.5]]
    expected = metrics.recall(torch.tensor(scores), torch.tensor([0, 1]))
    assert metrics.recall(np.array(scores), np.array([0, 1])) == expected
    assert metrics.recall(scores, [0, 1]) == expected


def test_a_nan_has_no_rank() -> None:
    scores = torch.zeros(3, 4)
    scores[1, 2] = math.nan
    with pytest.raises(UserError, match="query 1 and gallery video 2"):
        metrics.recall(scores, torch.zeros(3, dtype=torch.long))


@pytest.mark.parametrize("target", [[0, 4], [-1, 0], [0], [[0, 1]]])
def test_targets_must_fit_the_matrix(target: list) -> None:
    with pytest.raises(UserError, match="target"):
        metrics.ranks(torch.zeros(2, 4), torch.tensor(target))


def test_no_queries_have_no_recall() -> None:
    with pytest.raises(UserError, match="no queries"):
        metrics.recall(torch.zeros(0, 4), torch.zeros(0, dtype=torch.long))


def plain_video_to_text(scores: list[list[float]], target: list[int]) -> list[int]:
    """For each video that has captions: 1 + the other captions at least as good as its best one."""
    result = []
    for video in sorted(set(target)):
        best = max(row[video] for row, owner in zip(scores, target, strict=True) if owner == video)
        others = [row[video] for row, owner in zip(scores, target, strict=True) if owner != video]
        result.append(1 + sum(score >= best for score in others))
    return result


@settings(max_examples=50, deadline=None)
@given(data=st.data(), queries=st.integers(1, 7), videos=st.integers(1, 5))
def test_videos_find_the_best_of_their_captions(data: st.DataObject, queries: int, videos: int) -> None:
    scores = data.draw(arrays(np.float64, (queries, videos), elements=st.integers(0, 3)))
    target = data.draw(st.lists(st.integers(0, videos - 1), min_size=queries, max_size=queries))
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(metrics, "_BLOCK", 2)
        ours = metrics.video_to_text_ranks(torch.from_numpy(scores), torch.tensor(target))
    assert ours.tolist() == plain_video_to_text(scores.tolist(), target)


def test_equal_captions_of_one_video_do_not_compete() -> None:
    scores = torch.tensor([[0.9, 0.1], [0.9, 0.1], [0.2, 0.8]])
    assert metrics.video_to_text_ranks(scores, torch.tensor([0, 0, 1])).tolist() == [1, 1]


def test_many_videos_are_compared_in_pieces() -> None:
    source = torch.Generator().manual_seed(0)
    scores, target = torch.rand(600, 600, generator=source), torch.randperm(600, generator=source)
    ours = metrics.video_to_text_ranks(scores, target)
    assert ours.tolist() == plain_video_to_text(scores.tolist(), target.tolist())


SQUARE = [[1, 0, 0], [0.5, 0.8, 1], [0.2, 1, 0.5]]
RAGGED = [[40], [44, 30], [36, 33, 50]]


def test_backward_forgetting_by_hand() -> None:
    assert metrics.backward_forgetting(SQUARE) == pytest.approx(0.3)
    assert metrics.backward_forgetting(SQUARE[:2]) == pytest.approx(0.5)
    assert metrics.backward_forgetting(RAGGED, [2, 1, 9]) == pytest.approx(5 / 3)
    assert metrics.backward_forgetting(RAGGED, [2, 1]) == pytest.approx(5 / 3)


@pytest.mark.parametrize("form", [np.array, torch.tensor])
def test_matrices_may_be_arrays_with_anything_above_the_diagonal(form) -> None:
    matrix = [[1, math.nan, math.nan], [0.5, 0.8, math.nan], [0.2, 1, 0.5]]
    assert metrics.backward_forgetting(form(matrix)) == pytest.approx(0.3)
    assert metrics.backward_forgetting([[1, None], [0.5, 0.8]]) == pytest.approx(0.5)


def test_backward_transfer_is_its_negative() -> None:
    assert metrics.backward_transfer(SQUARE) == pytest.approx(-0.3)
    assert metrics.backward_transfer(RAGGED) == pytest.approx(((36 - 40) + (33 - 30)) / 2)
    assert metrics.backward_transfer(RAGGED, [2, 1]) == pytest.approx(-5 / 3)


def test_max_forgetting_remembers_the_best_time() -> None:
    # Task 2 is at its best after task 3, and counts 0; what stands above the diagonal does not count.
    assert metrics.max_forgetting(SQUARE) == pytest.approx(((1 - 0.2) + 0) / 2)
    assert metrics.max_forgetting(RAGGED) == pytest.approx(((44 - 36) + 0) / 2)
    assert metrics.max_forgetting(RAGGED, [2, 1]) == pytest.approx(2 * 8 / 3)
    assert metrics.max_forgetting([[40], [10, 30], [20, 70, 50], [30, 60, 40, 5]]) == pytest.approx(
        (10 + 10 + 10) / 3
    )


@settings(max_examples=50, deadline=None)
@given(arrays(np.float64, (4, 4), elements=st.integers(0, 100)))
def test_the_three_measures_agree_where_they_must(matrix: np.ndarray) -> None:
    assert metrics.backward_transfer(matrix) == -metrics.backward_forgetting(matrix)
    assert metrics.max_forgetting(matrix) >= max(0, metrics.backward_forgetting(matrix))
    falling = -np.sort(-matrix, axis=0)  # no task is ever better than when it was learnt
    assert metrics.max_forgetting(falling) == pytest.approx(metrics.backward_forgetting(falling))


@pytest.mark.parametrize("measure", [metrics.backward_forgetting, metrics.backward_transfer, metrics.max_forgetting])
def test_one_task_has_nothing_to_forget(measure) -> None:
    value = measure([[40]])
    assert value == 0
    assert math.copysign(1, value) == 1


@pytest.mark.parametrize("measure", [metrics.backward_forgetting, metrics.max_forgetting])
@pytest.mark.parametrize(
    ("matrix", "weights", "words"),
    [
        ([], None, "no rows"),
        ([[40], [44]], None, "row 2 has 1"),
        ([[40], [math.nan, 30]], None, "row 2 holds"),
        (RAGGED, [2], "2 numbers"),
        (RAGGED, [0, 0, 3], "2 numbers"),
        (RAGGED, [-1, 2], "2 numbers"),
        (RAGGED, [math.nan, 2], "2 numbers"),
    ],
)
def test_unfit_matrices_and_weights_are_named(measure, matrix, weights, words: str) -> None:
    with pytest.raises(UserError, match=words):
        measure(matrix, weights)
