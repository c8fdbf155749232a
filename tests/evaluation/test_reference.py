"""References for recall and forward transfer: the untouched model, and the next task before it is learnt."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import normalize

from structalign.evaluation import metrics
from structalign.evaluation.reference import reference, zero_shot_ranks
from structalign.losses.similarity import fuse
from tests.retrieval.test_ranker import plain, similarity, stored


def test_a_task_is_ranked_within_its_own_gallery_as_the_method_scores() -> None:
    model, galleries = stored(sizes=(30,))
    (gallery,), target = galleries, torch.tensor(galleries[0].target)
    scores = fuse(*plain(model, galleries, gallery.queries), 0.5)
    expected = metrics.recall(scores, target)["r1"]
    assert reference(model, gallery, similarity(), None).untouched_r1 == expected  # type: ignore[arg-type]
    assert 0 < expected < 100


def test_the_reference_keeps_global_features_of_unit_length_in_the_order_of_queries_and_videos() -> None:
    model, (gallery,) = stored(sizes=(30,))
    made = reference(model, gallery, similarity(), next_r1=12.5)  # type: ignore[arg-type]
    words = model.words[0, [int(query) for query in gallery.queries]]
    torch.testing.assert_close(made.text, normalize(words.mean(dim=1), dim=-1))
    torch.testing.assert_close(made.video, normalize(gallery.frames.mean(dim=1), dim=-1))
    assert made.next_r1 == 12.5
    target = torch.tensor(gallery.target)
    expected = metrics.ranks(made.text @ made.video.T, target)
    assert zero_shot_ranks(made.text, made.video, target).tolist() == expected.tolist()


@pytest.mark.parametrize("block", [1, 40, 2**24])
def test_zero_shot_ranks_do_not_depend_on_how_queries_are_split(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("structalign.evaluation.reference.BLOCK", block)
    source = torch.Generator().manual_seed(0)
    text, video = torch.randn(7, 5, generator=source), torch.randn(11, 5, generator=source)
    target = torch.randint(11, (7,), generator=source)
    assert zero_shot_ranks(text, video, target).tolist() == metrics.ranks(text @ video.T, target).tolist()
