"""Scores of any queries with all stored videos: exact, or in two stages, and in bounded memory.

For task s's gallery, a query is encoded with task s's prototype; z-scores are taken over the whole seen gallery
(METHOD.md, sections 2 and 3). Queries come in blocks and videos in chunks, so that memory beyond the features
and the scores that are returned depends on neither number.

Two stages (`evaluate.rerank = M`): each query's M best videos by global cosine are its candidates, and only they
get a word-frame score. A candidate's score is the fused sum of z-scores, as in the full ranking, with one difference:
mean and standard deviation of the word-frame scores come from a fixed sample of the gallery, because most are never
computed. All other videos rank below the candidates, in the order of their global cosine. If M covers the gallery,
the ranking is the full one.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import normalize

from structalign.config.schema import EvaluateConfig, SimilarityConfig
from structalign.losses.contrastive import pool_frames
from structalign.losses.similarity import fuse, standardise, word_frame_similarity
from structalign.model.retriever import Retriever
from structalign.retrieval.encode import QUERY_BATCH, token_batches
from structalign.retrieval.gallery import TaskGallery
from structalign.retrieval.index import FlatIndex, GlobalIndex, frame_chunks, spread
from structalign.util.log import progress_bar
from structalign.util.machine import read_at_random

SAMPLE = 512
"""Number of videos from which mean and standard deviation of word-frame scores are estimated (to about 3%)."""

_BLOCK = 2**24
"""Number of scores in a block of queries: 64 MB, and a few such blocks exist at a time."""

_COLUMNS = 512
"""Number of videos whose scores are standardised over the queries at a time."""

_POOLED_TEXTS = 16
"""Number of texts that pool a chunk of videos at a time: each makes a vector of each video."""

_RERANK_BATCH = 64
"""Number of queries re-ranked at a time: their words are kept once for each task."""


class _Texts(NamedTuple):
    """Queries, encoded with one task's prototype."""

    words: Tensor  # [q,L,D]
    mask: Tensor  # [q,L]
    global_: Tensor  # [q,D], of unit length
    raw: Tensor  # [q,D], as encoded

    def one(self, number: int) -> _Texts:
        """Return one query as a block."""
        return _Texts(*(part[number, None] for part in self))


class _Block(NamedTuple):
    """Scores of a block of queries with all videos."""

    fused: Tensor  # [q,V], each row standardised over the videos
    word_frame: Tensor | None  # [q,V], not standardised; None if they do not count, or not all are computed
    global_: Tensor  # [q,V], not standardised

    def cpu(self) -> _Block:
        """The same on the CPU."""
        word_frame = None if self.word_frame is None else self.word_frame.cpu()
        return _Block(self.fused.cpu(), word_frame, self.global_.cpu())


class Ranker:
    """Ranks galleries for queries; what does not depend on a query is computed once.

    Parameters
    ----------
    retriever : Retriever
        The current model; it encodes the queries.
    galleries : list of TaskGallery
        Of tasks 1..t, V videos in all.
    similarity : SimilarityConfig
        With `alpha` 0, no word-frame score is computed.
    evaluate : EvaluateConfig, optional
        `rerank` and `index`; by default the ranking is full.

    Raises
    ------
    UserError
        If faiss is asked for and not installed, or the features that it would index are not finite.
    """

    def __init__(
        self,
        retriever: Retriever,
        galleries: list[TaskGallery],
        similarity: SimilarityConfig,
        evaluate: EvaluateConfig | None = None,
    ) -> None:
        self.retriever, self.galleries, self.similarity = retriever, galleries, similarity
        self.device = retriever.device
        self.size = sum(len(gallery.clips) for gallery in galleries)
        rerank = evaluate.rerank if evaluate else None
        self.candidates = self.size if rerank is None else min(rerank, self.size)
        self.two_stages = self.candidates < self.size
        kind = evaluate.index if evaluate and self.two_stages else "flat"
        with torch.inference_mode():
            self.indexes = [self._index(kind, gallery) for gallery in galleries]
            sampled = self._read(spread(self.size, SAMPLE)) if self.two_stages else ()
            self.sample = [list(chunks) for chunks in sampled]  # by gallery, [v,N,D]

    def _index(self, kind: str, gallery: TaskGallery) -> GlobalIndex:
        if kind == "flat":
            return FlatIndex(gallery.frames, self.device)
        # Beyond memory, reading ahead would push out what other queries need.
        read_at_random(gallery.frames.data_ptr(), gallery.frames.nbytes)
        return gallery.faiss_index()

    def scores(self, queries: Sequence[str]) -> Tensor:
        """Scores (Q, V) of queries with all videos, one task after the other, on the CPU; higher is better.

        With `evaluate.index=faiss`, videos that the index does not return have -inf: they tie behind all others.
        """
        result = torch.empty(len(queries), self.size)
        for rows, block in self._blocks(queries):
            result[rows] = block.fused
        return result

    def search(self, query: str) -> tuple[Tensor, Tensor, list[Tensor]]:
        """Score all videos for one query, which is encoded once a task; of many, only those that the index returns.

        Returns
        -------
        scores : Tensor, shape (F,)
            As in `scores`, without those that are -inf.
        places : Tensor of int64, shape (F,)
            Their columns in `scores`, ascending.
        words : list of Tensor, shape (l, D)
            Features of the query's words as each gallery's task reads them, on the CPU.
        """
        if self.retriever.training:  # else it would visit every module
            self.retriever.eval()
        with torch.inference_mode():
            texts = list(self._encode(self.retriever.tokenize([query])))
            words = [part.words[0][part.mask[0]].cpu() for part in texts]
            if not self.two_stages:
                return self._in_full(texts, 1).fused[0].cpu(), torch.arange(self.size), words
            fused, _, places = self._in_two_stages(texts)
            found = places[0] >= 0
            return fused[0][found].cpu(), places[0][found].cpu(), words

    def scores_both_ways(self, queries: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Scores (Q, V) that rank videos for a query (those of `scores`), and others that rank queries for a video.

        The latter are the same sums of z-scores, but taken over the queries that each video may find. In two stages
        they are the global cosines alone: most word-frame scores are never computed.
        """
        fused, word_frame, global_ = (torch.empty(len(queries), self.size) for _ in range(3))
        by_cosine = False
        for rows, block in self._blocks(queries):
            fused[rows], global_[rows] = block.fused, block.global_
            if block.word_frame is None:
                by_cosine = True
            else:
                word_frame[rows] = block.word_frame
        if by_cosine:
            return fused, global_
        for start in range(0, self.size, _COLUMNS):  # in place, because these matrices are large
            columns = slice(start, start + _COLUMNS)
            over_texts = fuse(word_frame[:, columns].T, global_[:, columns].T, self.similarity.alpha)  # [v,Q]
            word_frame[:, columns] = over_texts.T
        return fused, word_frame

    def _blocks(self, queries: Sequence[str]) -> Iterator[tuple[Tensor, _Block]]:
        """Yield the scores of all queries on the CPU, a block of rows (q,) at a time."""
        self.retriever.eval()
        rows = min(_RERANK_BATCH if self.two_stages else QUERY_BATCH, _BLOCK // max(1, self.size))
        with progress_bar(len(queries), "rank", "query") as bar:
            for places, tokens in token_batches(self.retriever, queries, max(1, rows)):
                with torch.inference_mode():
                    block = self._score_block(self._encode(tokens), len(tokens))
                yield places, block.cpu()
                bar.update(len(places))

    def _encode(self, tokens: Tensor) -> Iterator[_Texts]:
        """Encode queries for each gallery; only once if the encoder does not depend on the task."""
        texts = None
        for gallery in self.galleries:
            if texts is None or self.retriever.reads_by_task:
                words, mask, global_ = self.retriever.encode_text(tokens.to(self.device), gallery.task)
                raw = global_.float()
                texts = _Texts(words.float(), mask, normalize(raw, dim=-1), raw)
            yield texts

    def _word_frame(self, videos: Tensor, texts: _Texts) -> Tensor:
        """Word-frame scores (q, v) with videos (v, N, D); if texts pool the frames, cosines with the result."""
        pooling = self.retriever.text_pooling
        if pooling is not None:
            return torch.cat([pooling.cosines(part, videos) for part in texts.raw.split(_POOLED_TEXTS)], dim=1).T
        return word_frame_similarity(videos, texts.words, texts.mask, self.similarity.pooling).T

    def _score_block(self, texts: Iterable[_Texts], count: int) -> _Block:
        """Score all videos for `count` queries, encoded for each gallery."""
        if not self.two_stages:
            return self._in_full(texts, count)
        fused, cosine, places = self._in_two_stages(list(texts))
        return _Block(self._all_videos(fused, places), None, self._all_videos(cosine, places))

    def _all_videos(self, scores: Tensor, places: Tensor) -> Tensor:
        """Put scores (q, F) of what was found into a row of all videos (q, V), the others at -inf."""
        if self.indexes[0].exact:
            return scores
        result = scores.new_full((len(scores), self.size + 1), -torch.inf)
        # Place -1, for one that was not found, is an extra column that is cut off.
        return result.scatter_(1, places % (self.size + 1), scores)[:, :-1]

    def _in_full(self, encoded: Iterable[_Texts], queries: int) -> _Block:
        """Score every video by its words and frames, and as a whole."""
        word_frame = torch.zeros(queries, self.size, device=self.device)
        global_ = torch.zeros_like(word_frame)
        start = 0
        for gallery, index, texts in zip(self.galleries, self.indexes, encoded, strict=True):
            count = len(gallery.clips)
            columns = slice(start, start + count)
            global_[:, columns], _ = index.best(texts.global_, count)
            if self.similarity.alpha > 0:
                chunks = frame_chunks(gallery.frames, self.device)
                word_frame[:, columns] = torch.cat([self._word_frame(videos, texts) for videos in chunks], dim=1)
            start += count
        fused = fuse(word_frame, global_, self.similarity.alpha)
        return _Block(fused, word_frame if self.similarity.alpha > 0 else None, global_)

    def _in_two_stages(self, texts: list[_Texts]) -> tuple[Tensor, Tensor, Tensor]:
        """Fused scores, global cosines and places of the videos that the index returns for each query, each (q, F).

        Columns are in the order of the places, of which -1 stands for one that was not found. Candidates have the
        highest scores.
        """
        cosine, places = self._first_stage(texts)
        best = cosine.topk(self.candidates, dim=1).indices.sort(dim=1).values  # [q,M], in the order of the galleries
        sample = self._score(self.sample, texts)  # [q,S], [q,S]
        rows = []
        for number, row in enumerate(cosine):
            columns = best[number][~row[best[number]].isneginf()]  # [m]
            candidates = self._read(places[number][columns].cpu())
            word_frame, global_ = self._score(candidates, [part.one(number) for part in texts])  # [1,m], [1,m]
            over = sample[0][number], row if self.indexes[0].exact else sample[1][number]
            fused = fuse(word_frame, global_, self.similarity.alpha, over)[0]
            rows.append(_merge(standardise(row, over[1]), columns, fused))
        return torch.stack(rows), cosine, places

    def _first_stage(self, texts: list[_Texts]) -> tuple[Tensor, Tensor]:
        """Global cosines of the best videos of each gallery, and their places among all videos, each (q, F)."""
        cosines, places, start = [], [], 0
        for gallery, index, part in zip(self.galleries, self.indexes, texts, strict=True):
            cosine, position = index.best(part.global_, self.candidates)
            cosines.append(cosine)
            places.append(torch.where(position < 0, position, position + start))
            start += len(gallery.clips)
        return torch.cat(cosines, dim=1), torch.cat(places, dim=1).expand(len(cosines[0]), -1)

    def _read(self, places: Tensor) -> Iterator[Iterator[Tensor]]:
        """Yield, for each gallery, chunks (v, N, D) of its own videos among those at `places` (m,), which ascend."""
        start = 0
        for gallery in self.galleries:
            end = start + len(gallery.clips)
            own = places[(places >= start) & (places < end)] - start
            yield frame_chunks(gallery.frames, self.device, own)
            start = end

    def _score(self, videos: Iterable[Iterable[Tensor]], texts: list[_Texts]) -> tuple[Tensor, Tensor]:
        """Word-frame scores and global cosines, each (q, m), with videos as `_read` gives them."""
        word_frame, global_ = [], []
        for chunks, part in zip(videos, texts, strict=True):
            for chunk in chunks:
                global_.append(part.global_ @ pool_frames(chunk).T)
                weighs = self.similarity.alpha > 0
                word_frame.append(self._word_frame(chunk, part) if weighs else torch.zeros_like(global_[-1]))
        return torch.cat(word_frame, dim=1), torch.cat(global_, dim=1)


def _merge(cosine: Tensor, columns: Tensor, fused: Tensor) -> Tensor:
    """Scores (F,) of one query: `fused` (m,) in the candidates' columns, and below them the others' cosines (F,)."""
    others = cosine.index_fill(0, columns, -torch.inf)
    highest = others.amax().nan_to_num(neginf=0.0)  # 0 if the index returned no others
    lowest = torch.cat([fused, fused.new_zeros(1)]).amin()
    return (others - highest + lowest - 1).index_copy(0, columns, fused)
