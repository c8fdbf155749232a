"""Ranking: chunks change nothing, two stages become the full ranking, and memory and work stay within bounds."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.functional import cosine_similarity, normalize

from structalign.config.schema import EvaluateConfig, SimilarityConfig
from structalign.evaluation import metrics
from structalign.evaluation.evaluate import rank, recall_at_1, recall_within_task
from structalign.losses.similarity import fuse, word_frame_similarity
from structalign.model.text_pooling import TextPooling
from structalign.retrieval import index
from structalign.retrieval import ranker as ranking
from structalign.retrieval.gallery import TaskGallery, load_galleries, save_index
from structalign.retrieval.index import FaissIndex
from structalign.retrieval.ranker import Ranker
from structalign.search import GallerySearch
from structalign.util.errors import UserError

FRAMES, WORDS, WIDTH = 3, 4, 16
INDEXES = pytest.mark.parametrize("kind", ["flat", "faiss"])


class Stored(nn.Module):
    """Stands in for a retriever: features of queries are drawn beforehand, for each task its own."""

    def __init__(self, words: Tensor, by_task: bool = True) -> None:
        super().__init__()
        self.words = nn.Parameter(words, requires_grad=False)  # [T,Q,L,D]
        self.reads_by_task = by_task
        self.tokenised, self.encoded = 0, 0
        self.text_pooling: TextPooling | None = None

    @property
    def device(self) -> torch.device:
        return self.words.device

    def tokenize(self, texts: list[str]) -> Tensor:
        """The number of each query, and a second token for odd ones: they are longer, and come later in a batch."""
        self.tokenised += len(texts)
        return torch.tensor([[int(text), 1000 * (int(text) % 2)] for text in texts])

    def encode_text(self, tokens: Tensor, task: int) -> tuple[Tensor, Tensor, Tensor]:
        self.encoded += len(tokens)
        words = self.words[task - 1 if self.reads_by_task else 0, tokens[:, 0]]  # [q,L,D]
        mask = (
            torch.arange(words.shape[1], device=words.device) <= tokens[:, :1] % words.shape[1]
        )  # [q,L], captions of 1 to L words
        return words, mask, words.mean(dim=1)


def stored(sizes: tuple[int, ...] = (30, 50), queries: int = 20, seed: int = 0) -> tuple[Stored, list[TaskGallery]]:
    """Galleries of `sizes` videos each, and queries that are noisy views of some of them."""
    source = torch.Generator().manual_seed(seed)
    frames = [
        torch.randn(size, 1, WIDTH, generator=source) + 0.7 * torch.randn(size, FRAMES, WIDTH, generator=source)
        for size in sizes
    ]
    target = torch.randint(sum(sizes), (queries,), generator=source)
    seen = torch.cat(frames)[target].mean(dim=1)[:, None]  # [Q,1,D]
    words = seen + 1.5 * torch.randn(len(sizes), queries, WORDS, WIDTH, generator=source)
    galleries = []
    start = 0
    for task, part in enumerate(frames, 1):
        own = [q for q in range(queries) if start <= target[q] < start + len(part)]
        clips = [f"clip-{start + number}" for number in range(len(part))]
        places = [int(target[q]) - start for q in own]
        galleries.append(TaskGallery(task, clips, [task] * len(part), [str(q) for q in own], places, part))
        start += len(part)
    return Stored(words), galleries


@pytest.mark.parametrize("pools", [False, True])
@pytest.mark.parametrize("alpha", [0.0, 0.7])
def test_a_ranking_on_a_gpu_ends_on_the_cpu(monkeypatch: pytest.MonkeyPatch, alpha: float, pools: bool) -> None:
    """With tensors that have a device and no data; in two stages, what is read depends on the data."""
    retriever, galleries = stored()
    retriever.text_pooling = TextPooling(WIDTH) if pools else None
    monkeypatch.setattr(ranking, "token_batches", lambda model, texts, _: [(torch.arange(20), model.tokenize(texts))])
    monkeypatch.setattr(ranking, "frame_chunks", lambda frames, device: [frames.to(device)])
    monkeypatch.setattr(index, "frame_chunks", lambda frames, device: [frames.to(device)])
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    try:
        with FakeTensorMode(allow_non_fake_inputs=True) as fake:
            retriever._apply(lambda tensor: fake.from_tensor(tensor.detach()).to("cuda:0"))
            for gallery in galleries:
                gallery.frames = fake.from_tensor(gallery.frames)
            ranker = Ranker(retriever, galleries, SimilarityConfig(alpha=alpha, pooling="max"))
            assert ranker.device.type == "cuda"
            scores = ranker.scores_both_ways([str(number) for number in range(20)])
    finally:
        torch.__future__.set_overwrite_module_params_on_conversion(False)
    assert [(part.device.type, tuple(part.shape)) for part in scores] == [("cpu", (20, 80))] * 2


@pytest.mark.parametrize("texts", [1, 3, 64])
def test_texts_that_pool_frames_rank_by_what_they_make_of_them(monkeypatch: pytest.MonkeyPatch, texts: int) -> None:
    monkeypatch.setattr(ranking, "_POOLED_TEXTS", texts)
    retriever, galleries = stored()
    retriever.text_pooling = pooling = TextPooling(WIDTH)
    with torch.no_grad():
        for weight in pooling.parameters():
            weight.add_(0.3 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(weight.numel())))
    queries = [str(number) for number in range(20)]
    full = Ranker(retriever, galleries, similarity(1.0)).scores(queries)
    for query in range(20):
        cosines = []
        for task, gallery in enumerate(galleries):
            text = retriever.words[task, query].mean(dim=0)  # [D]
            with torch.no_grad():
                cosines += [pooling.cosines(text[None], frames[None]).item() for frames in gallery.frames]
        expected = torch.tensor(cosines)
        torch.testing.assert_close(full[query], (expected - expected.mean()) / expected.std(correction=0))
    all_candidates = Ranker(retriever, galleries, similarity(1.0), evaluation(rerank=79)).scores(queries)
    assert (all_candidates.argmax(dim=1) == full.argmax(dim=1)).float().mean() > 0.9


def similarity(alpha: float = 0.5) -> SimilarityConfig:
    return SimilarityConfig(pooling="max", alpha=alpha)


def evaluation(rerank: int | None = None, kind: str = "flat") -> EvaluateConfig:
    return EvaluateConfig(batch_size=1, drift_videos=0, rerank=rerank, index=kind)


def plain(retriever: Stored, galleries: list[TaskGallery], queries: list[str]) -> tuple[Tensor, Tensor]:
    """All word-frame scores and all global cosines (Q, V), in one piece."""
    word_frame, global_ = [], []
    for gallery in galleries:
        words, mask, text = retriever.encode_text(retriever.tokenize(queries), gallery.task)
        word_frame.append(word_frame_similarity(gallery.frames, words, mask).T)
        global_.append(normalize(text, dim=-1) @ normalize(gallery.frames.mean(dim=1), dim=-1).T)
    return torch.cat(word_frame, dim=1), torch.cat(global_, dim=1)


def queries_of(galleries: list[TaskGallery]) -> list[str]:
    return [query for gallery in galleries for query in gallery.queries]


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
@pytest.mark.parametrize(("chunk", "block"), [(2**23, 2**22), (2 * FRAMES * WIDTH, 240), (1, 1)])
def test_chunks_of_videos_and_queries_change_no_score(
    monkeypatch: pytest.MonkeyPatch, alpha: float, chunk: int, block: int
) -> None:
    monkeypatch.setattr(index, "CHUNK", chunk)
    monkeypatch.setattr(ranking, "_BLOCK", block)
    monkeypatch.setattr(ranking, "_COLUMNS", 7)
    retriever, galleries = stored()
    queries = queries_of(galleries)
    expected = fuse(*plain(retriever, galleries, queries), alpha)
    ranked = rank(retriever, galleries, similarity(alpha))  # type: ignore[arg-type]
    torch.testing.assert_close(ranked.scores, expected, rtol=0, atol=1e-5)
    recall = metrics.recall(expected, ranked.target)
    assert metrics.recall(ranked.scores, ranked.target) == recall
    assert recall_at_1(retriever, galleries, similarity(alpha)) == recall["r1"]  # type: ignore[arg-type]
    word_frame, global_ = plain(retriever, galleries, queries)
    of_videos = fuse(word_frame.T, global_.T, alpha).T if alpha else global_
    torch.testing.assert_close(ranked.video_scores, of_videos, rtol=0, atol=1e-5)


@pytest.mark.parametrize("rerank", [None, 12])
def test_videos_find_texts_by_the_plain_cosine_where_nothing_else_counts(rerank: int | None) -> None:
    # Of scores standardised per text, as they rank videos, each caption's would have a shift and a scale of its own.
    retriever, galleries = stored(queries=60)
    ranked = rank(retriever, galleries, similarity(0.5 if rerank else 0.0), evaluation(rerank))  # type: ignore[arg-type]
    _, cosine = plain(retriever, galleries, queries_of(galleries))
    by_video, by_cosine, by_text = (
        metrics.video_to_text_ranks(scores, ranked.target).tolist()
        for scores in (ranked.video_scores, cosine, ranked.scores)
    )
    assert by_video == by_cosine != by_text


def test_recall_within_a_task_sees_its_own_queries_and_videos_alone() -> None:
    retriever, galleries = stored()
    ranked = rank(retriever, galleries, similarity())  # type: ignore[arg-type]
    first = len(galleries[0].queries)
    own = ranked.scores[first:, len(galleries[0].clips) :]
    assert recall_within_task(ranked, 2) == metrics.recall(own, torch.tensor(galleries[1].target))


def test_no_piece_exceeds_its_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index, "CHUNK", 7 * FRAMES * WIDTH)
    monkeypatch.setattr(ranking, "_BLOCK", 400)
    seen: list[tuple[int, int]] = []

    def note(frames: Tensor, words: Tensor, mask: Tensor, pooling: Any) -> Tensor:
        seen.append((len(frames), len(words)))
        return word_frame_similarity(frames, words, mask, pooling)

    monkeypatch.setattr(ranking, "word_frame_similarity", note)
    retriever, galleries = stored()
    Ranker(retriever, galleries, similarity()).scores(queries_of(galleries))  # type: ignore[arg-type]
    assert max(videos for videos, _ in seen) == 7
    assert max(texts for _, texts in seen) == 400 // 80


def test_queries_are_tokenised_once_and_encoded_once_per_way_of_reading() -> None:
    retriever, galleries = stored(sizes=(10, 10, 10))
    queries = queries_of(galleries)
    Ranker(retriever, galleries, similarity()).scores(queries)  # type: ignore[arg-type]
    assert (retriever.tokenised, retriever.encoded) == (len(queries), 3 * len(queries))
    alike = Stored(retriever.words.data, by_task=False)
    Ranker(alike, galleries, similarity()).scores(queries)  # type: ignore[arg-type]
    assert (alike.tokenised, alike.encoded) == (len(queries), len(queries))


@INDEXES
@pytest.mark.parametrize("rerank", [80, 1000])
def test_reranking_the_whole_gallery_is_the_full_ranking_to_the_bit(kind: str, rerank: int) -> None:
    retriever, galleries = stored()
    queries = queries_of(galleries)
    full = Ranker(retriever, galleries, similarity()).scores(queries)  # type: ignore[arg-type]
    both = Ranker(retriever, galleries, similarity(), evaluation(rerank, kind))  # type: ignore[arg-type]
    assert torch.equal(both.scores(queries), full)


@INDEXES
@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
def test_two_stages_whose_candidates_are_all_videos_give_the_full_scores(
    monkeypatch: pytest.MonkeyPatch, kind: str, alpha: float
) -> None:
    monkeypatch.setattr(index, "_VISITED", 1)
    retriever, galleries = stored()
    queries = queries_of(galleries)
    two = Ranker(retriever, galleries, similarity(alpha), evaluation(79, kind))  # type: ignore[arg-type]
    two.candidates = 80  # the last step, which the switch to the full ranking would hide
    expected = fuse(*plain(retriever, galleries, queries), alpha)
    torch.testing.assert_close(two.scores(queries), expected, rtol=0, atol=1e-5)


def test_candidates_lead_with_the_full_scores_and_others_follow_by_global_cosine() -> None:
    retriever, galleries = stored()
    queries = queries_of(galleries)
    word_frame, cosine = plain(retriever, galleries, queries)
    full = fuse(word_frame, cosine, 0.5)
    ours = Ranker(retriever, galleries, similarity(), evaluation(rerank=12)).scores(queries)  # type: ignore[arg-type]
    for query, row in enumerate(ours):
        by_cosine = cosine[query].argsort(descending=True)
        candidates, others = by_cosine[:12], by_cosine[12:]
        # The sample covers this small gallery, so that candidates have the scores of the full ranking.
        torch.testing.assert_close(row[candidates], full[query][candidates], rtol=0, atol=1e-5)
        assert row[candidates].min() > row[others].max()
        assert row[others].tolist() == sorted(row[others].tolist(), reverse=True)
        assert row[others].unique().numel() == len(others)


def test_word_frame_scores_of_candidates_and_sample_alone_are_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranking, "SAMPLE", 10)
    pairs = []

    def count(frames: Tensor, words: Tensor, mask: Tensor, pooling: Any) -> Tensor:
        pairs.append(len(frames) * len(words))
        return word_frame_similarity(frames, words, mask, pooling)

    monkeypatch.setattr(ranking, "word_frame_similarity", count)
    retriever, galleries = stored()
    queries = queries_of(galleries)
    Ranker(retriever, galleries, similarity(), evaluation(rerank=5)).scores(queries)  # type: ignore[arg-type]
    assert sum(pairs) == len(queries) * (5 + 10)


@pytest.mark.parametrize("rerank", [None, 5])
def test_word_frame_scores_without_weight_are_left_out(monkeypatch: pytest.MonkeyPatch, rerank: int | None) -> None:
    retriever, galleries = stored()
    monkeypatch.setattr(ranking, "word_frame_similarity", lambda *_: pytest.fail("computed for nothing"))
    queries = queries_of(galleries)
    Ranker(retriever, galleries, similarity(alpha=0.0), evaluation(rerank=rerank)).scores(queries)  # type: ignore[arg-type]


@INDEXES
def test_the_statistics_of_a_sample_come_close_to_those_of_all(kind: str) -> None:
    retriever, galleries = stored(sizes=(1500, 1500), queries=40)
    queries = queries_of(galleries)
    full = Ranker(retriever, galleries, similarity()).scores(queries)  # type: ignore[arg-type]
    ours = Ranker(retriever, galleries, similarity(), evaluation(200, kind)).scores(queries)  # type: ignore[arg-type]
    best = full.topk(5, dim=1).indices
    found = torch.stack([torch.isin(a, b).float().mean() for a, b in zip(best, ours.topk(5).indices, strict=True)])
    assert found.mean() > 0.85


def test_what_faiss_does_not_return_ties_for_the_last_rank() -> None:
    retriever, galleries = stored(sizes=(400, 400), queries=5)
    queries = queries_of(galleries)
    ours = Ranker(retriever, galleries, similarity(), evaluation(20, "faiss")).scores(queries)  # type: ignore[arg-type]
    returned = (~ours.isneginf()).sum(dim=1)
    assert (returned >= 20).all()
    assert (returned <= 2 * 20).all()  # each of the two galleries is asked for 20
    missed = ours.argmin(dim=1)
    assert (metrics.ranks(ours, missed) == 800).all()


def test_a_stored_index_ranks_as_the_one_it_was_and_is_not_built_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    retriever, galleries = stored(sizes=(400, 400), queries=5)
    queries = queries_of(galleries)
    before = Ranker(retriever, galleries, similarity(), evaluation(20, "faiss")).scores(queries)  # type: ignore[arg-type]
    for gallery in galleries:
        gallery.save(tmp_path)
    save_index(tmp_path, 2)
    monkeypatch.setattr(FaissIndex, "build", None)
    after = Ranker(retriever, load_galleries(tmp_path), similarity(), evaluation(20, "faiss"))  # type: ignore[arg-type]
    assert torch.equal(after.scores(queries), before)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:200]), "damaged index"),
        (lambda path: shutil.copyfile(path.with_stem("task-02"), path), "holds 50 videos, the gallery 30"),
    ],
)
def test_an_index_that_is_not_the_gallerys_is_refused(
    tmp_path: Path, change: Callable[[Path], object], message: str
) -> None:
    _, galleries = stored()
    for gallery in galleries:
        gallery.faiss_index()
        gallery.save(tmp_path)
    save_index(tmp_path, 2)
    change(tmp_path / "task-01.faiss")
    with pytest.raises(UserError, match=message):
        load_galleries(tmp_path)


def test_without_faiss_one_line_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "faiss", None)
    retriever, galleries = stored()
    with pytest.raises(UserError, match="pip install faiss-cpu"):
        Ranker(retriever, galleries, similarity(), evaluation(5, "faiss"))  # type: ignore[arg-type]


@pytest.mark.parametrize("where", ["query", "gallery"])
@pytest.mark.parametrize(("kind", "message"), [("flat", "NaN for query"), ("faiss", "not all are finite")])
def test_a_broken_feature_is_never_ranked(where: str, kind: str, message: str) -> None:
    retriever, galleries = stored()
    if where == "query":
        retriever.words[1, int(galleries[0].queries[0])] = torch.nan
    else:
        galleries[1].frames[3, 0, 0] = torch.nan
    with pytest.raises(UserError, match=message):
        ranked = rank(retriever, galleries, similarity(), evaluation(5, kind))  # type: ignore[arg-type]
        metrics.recall(ranked.scores, ranked.target)


def test_half_precision_galleries_are_ranked_in_single_precision() -> None:
    retriever, galleries = stored()
    queries = queries_of(galleries)
    for gallery in galleries:
        gallery.frames = gallery.frames.half().float()  # so that nothing is lost below, where they become half again
    full = Ranker(retriever, galleries, similarity()).scores(queries)  # type: ignore[arg-type]
    for gallery in galleries:
        gallery.frames = gallery.frames.half()
    ours = Ranker(retriever, galleries, similarity()).scores(queries)  # type: ignore[arg-type]
    assert ours.dtype == torch.float32
    torch.testing.assert_close(ours, full, rtol=0, atol=1e-6)


@pytest.mark.parametrize(("rerank", "kind", "hits"), [(None, "flat", 80), (3, "flat", 80), (3, "faiss", 6)])
def test_search_returns_the_best_videos_that_were_found(rerank: int | None, kind: str, hits: int) -> None:
    retriever, galleries = stored()
    retriever.word_pieces = lambda query: [(f"word {number}", [number]) for number in range(WORDS)]
    search = GallerySearch.__new__(GallerySearch)  # without the files of a run
    search.galleries, search.categories = galleries, ["", "one", "two"]
    for gallery in galleries:  # two captions a video
        gallery.queries = [f"{caption} of {clip}" for clip in gallery.clips for caption in ("first", "second")]
        gallery.target = [place for place in range(len(gallery.clips)) for _ in range(2)]
    search.learner = SimpleNamespace(retriever=retriever)  # type: ignore[assignment]
    search.ranker = Ranker(retriever, galleries, similarity(), evaluation(rerank, kind))  # type: ignore[arg-type]
    found = search.search("7", top=1000)
    scores = search.ranker.scores(["7"])[0]
    order = scores.argsort(descending=True, stable=True)[: len(found)].tolist()
    assert [hit.clip for hit in found] == [f"clip-{place}" for place in order]
    assert [hit.task for hit in found] == [1 if place < 30 else 2 for place in order]
    assert [hit.caption for hit in found] == [f"first of clip-{place}" for place in order]
    words = retriever.words[:, 7]  # [2,L,D], as each task reads them
    for hit, place in zip(found, order, strict=True):
        frames = torch.cat([gallery.frames for gallery in galleries])[place]
        nearest = cosine_similarity(words[hit.task - 1][:, None], frames, dim=-1).argmax(dim=1)  # [L,N] -> [L]
        assert hit.matches == [(f"word {number}", int(frame)) for number, frame in enumerate(nearest)]
    assert 3 <= len(found) <= hits
    assert kind == "faiss" or len(found) == hits


@pytest.mark.parametrize(("rerank", "kind"), [(None, "flat"), (3, "flat"), (3, "faiss")])
def test_a_single_query_scores_as_one_of_many(rerank: int | None, kind: str) -> None:
    retriever, galleries = stored()
    ranker = Ranker(retriever, galleries, similarity(), evaluation(rerank, kind))  # type: ignore[arg-type]
    scores, places, words = ranker.search("7")
    of_many = ranker.scores([str(number) for number in range(20)])[7]
    assert torch.equal(places, (~of_many.isneginf()).nonzero().flatten())
    torch.testing.assert_close(scores, of_many[places], rtol=0, atol=1e-6)
    assert torch.equal(torch.stack(words), retriever.words[:, 7])
    before = retriever.encoded
    ranker.search("7")
    assert retriever.encoded - before == len(galleries)
