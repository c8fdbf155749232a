"""References for recall and forward transfer: the untouched model, and the next task before it is learnt."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.nn.functional import normalize

from structalign.data.tasks import Sample
from structalign.evaluation import metrics
from structalign.evaluation.reference import recall_within_own_gallery, reference, zero_shot_ranks
from structalign.losses.similarity import fuse
from tests.retrieval.test_ranker import Stored, plain, similarity, stored


def one_task() -> tuple[Stored, Any, torch.Tensor, torch.Tensor]:
    """A model, a task's split, its frame features, and the video of each query, in the order of the queries."""
    model, (gallery,) = stored(sizes=(30,))
    captions: dict[int, list[str]] = {video: [] for video in range(30)}
    for query, video in zip(gallery.queries, gallery.target, strict=True):
        captions[video].append(query)
    test = [Sample(clip, 0, tuple(captions[video])) for video, clip in enumerate(gallery.clips)]
    target = torch.tensor([video for video, some in captions.items() for _ in some])
    return model, SimpleNamespace(task=1, test=test), gallery.frames, target


def test_a_task_is_ranked_within_its_own_gallery_as_the_method_scores() -> None:
    model, split, frames, target = one_task()
    queries = [caption for sample in split.test for caption in sample.captions]
    galleries = [SimpleNamespace(frames=frames, task=1)]
    expected = metrics.recall(fuse(*plain(model, galleries, queries), 0.5), target)["r1"]  # type: ignore[arg-type]
    assert recall_within_own_gallery(model, split, frames, similarity(), 1) == expected  # type: ignore[arg-type]
    assert 0 < expected < 100


def test_the_reference_keeps_global_features_of_unit_length_in_the_order_of_queries_and_videos() -> None:
    model, split, frames, target = one_task()
    made = reference(model, frames, split, similarity(), next_r1=12.5)  # type: ignore[arg-type]
    queries = [caption for sample in split.test for caption in sample.captions]
    words = model.words[0, [int(query) for query in queries]]
    torch.testing.assert_close(made.text, normalize(words.mean(dim=1), dim=-1))
    torch.testing.assert_close(made.video, normalize(frames.mean(dim=1), dim=-1))
    assert made.next_r1 == 12.5
    expected = metrics.ranks(made.text @ made.video.T, target)
    assert zero_shot_ranks(made.text, made.video, target).tolist() == expected.tolist()


@pytest.mark.parametrize("block", [1, 40, 2**24])
def test_zero_shot_ranks_do_not_depend_on_how_queries_are_split(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("structalign.evaluation.reference.BLOCK", block)
    source = torch.Generator().manual_seed(0)
    text, video = torch.randn(7, 5, generator=source), torch.randn(11, 5, generator=source)
    target = torch.randint(11, (7,), generator=source)
    assert zero_shot_ranks(text, video, target).tolist() == metrics.ranks(text @ video.T, target).tolist()
