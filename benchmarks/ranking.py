"""Ranking as the gallery grows: time per query, memory above the features, and what two stages find.

    python -m benchmarks.ranking growth     1,000 to 1,000,000 videos, in full and in two stages, with a figure
    python -m benchmarks.ranking recall     two stages against the full ranking, as M grows
    python -m benchmarks.ranking target     5,000 queries against 5,000 videos of 24 frames
    python -m benchmarks.ranking search     `structalign search` with a trained model, among 1,000,000 videos (--run)

Galleries are made up: videos cluster around topics, frames around their video, and a query's words around the frames
of one video, with noise that makes finding it hard. They lie as half-precision safetensors in a folder (--folder,
12 KB a video; removed at the end) and are mapped from there. Every measurement has a process of its own; in `growth`,
queries come one at a time, as a search has them. Encoding queries is not part of it. `search` takes single precision
(24 KB a video), as galleries are stored, and encodes its queries.
Seconds are processor time, as the machine may be doing other work; waiting for a disk that does not hold its files in
memory would come on top.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any, BinaryIO, Literal, get_args

import matplotlib.pyplot as plt
import pandas as pd
import seaborn as sns
import torch
import yaml
from torch import Tensor, nn

from benchmarks.measure import PeakMemory, machine
from structalign import paths
from structalign.config.schema import Config, EvaluateConfig, SimilarityConfig
from structalign.evaluation import metrics
from structalign.evaluation.evaluate import rank, recall_within_task
from structalign.evaluation.metric_table import recall_at
from structalign.retrieval.gallery import TaskGallery, load_galleries, save_index
from structalign.retrieval.index import FaissIndex
from structalign.retrieval.ranker import Ranker
from structalign.search import GallerySearch
from structalign.util.checkpoint import load_tensors
from structalign.util.files import atomic_write_json

WIDTH, WORDS, FRAMES = 512, 14, 12
QUERIES = 100
"""Of `growth` and `search`."""

CANDIDATES = 100
Index = Literal["flat", "faiss"]
TOPIC_SIZE = 50
"""Videos that share a topic."""

MOST = {(None, "flat"): 100_000, (CANDIDATES, "flat"): 1_000_000, (CANDIDATES, "faiss"): 1_000_000}
"""Up to how many videos each way of ranking is measured: in full, a million take minutes a query."""

GROWTH = Path("docs/figures/growth.png")


class StoredWords(nn.Module):
    """Stands in for a retriever: its `tokenize` takes query numbers, its `encode_text` looks their words up."""

    reads_by_task = False
    text_pooling = None

    def __init__(self, words: Tensor) -> None:
        super().__init__()
        self.words = nn.Parameter(words, requires_grad=False)  # [Q,L,D]
        self.device = words.device

    def tokenize(self, texts: list[str]) -> Tensor:  # noqa: D102
        return torch.tensor([[int(text)] for text in texts])

    def encode_text(self, tokens: Tensor, task: int) -> tuple[Tensor, Tensor, Tensor]:  # noqa: D102
        words = self.words[tokens[:, 0]]  # [q,L,D]
        return words, torch.ones(words.shape[:2], dtype=torch.bool), words.mean(dim=1)


@contextmanager
def frames_file(path: Path, shape: tuple[int, int, int], dtype: Literal["F16", "F32"]) -> Iterator[BinaryIO]:
    """Open a safetensors file of frame features (V, N, D), to be written part by part."""
    size = math.prod(shape) * int(dtype[1:]) // 8
    header = {"frames": {"dtype": dtype, "shape": shape, "data_offsets": [0, size]}}
    encoded = json.dumps(header).encode()
    with path.open("wb") as stream:
        stream.write(len(encoded).to_bytes(8, "little") + encoded)
        yield stream


def write_gallery(path: Path, videos: int, frames: int, queries: int) -> None:
    """Write a gallery of half-precision frame features (V, N, D), part by part, and the words of its queries."""
    source = torch.Generator().manual_seed(0)
    common = 2 * _vectors(source, 1)
    topics = _vectors(source, max(1, videos // TOPIC_SIZE))
    noise = _vectors(source, 2**15)  # drawn from a pool: a million videos take a minute, not ten
    target = torch.arange(queries) * videos // queries
    words = torch.empty(queries, WORDS, WIDTH)
    with frames_file(path, (videos, frames, WIDTH), "F16") as stream:
        for start in range(0, videos, 10_000):
            count = min(10_000, videos - start)
            topic = torch.randint(len(topics), (count,), generator=source)
            own = common + topics[topic] + 0.5 * _vectors(source, count)  # [v,D]
            part = own[:, None] + noise[torch.randint(len(noise), (count, frames), generator=source)]  # [v,N,D]
            stream.write(part.half().numpy().tobytes())
            for query in ((target >= start) & (target < start + count)).nonzero().flatten().tolist():
                seen = part[int(target[query]) - start, torch.randint(frames, (WORDS,), generator=source)]
                words[query] = seen + 6 * _vectors(source, 1) + 6 * _vectors(source, WORDS)
    torch.save({"words": words, "target": target}, path.with_suffix(".queries"))


def _vectors(source: torch.Generator, count: int) -> Tensor:
    return torch.randn(count, WIDTH, generator=source) / WIDTH**0.5


def load(path: Path) -> tuple[StoredWords, TaskGallery]:
    """A gallery, mapped from its file, and its queries."""
    stored = torch.load(path.with_suffix(".queries"), weights_only=True)
    frames = load_tensors(path)["frames"]
    numbers = [str(number) for number in range(len(frames))]
    target = stored["target"].tolist()
    gallery = TaskGallery(1, numbers, [0] * len(frames), numbers[: len(target)], target, frames)
    return StoredWords(stored["words"]), gallery


def evaluation(rerank: int | None, index: Index) -> EvaluateConfig:
    return EvaluateConfig(batch_size=1, drift_videos=0, rerank=rerank, index=index)


SIMILARITY = SimilarityConfig(pooling="max", alpha=0.5)


def build_index(path: Path) -> dict[str, Any]:
    """Time, memory and bytes of the index that is stored beside a gallery."""
    _, gallery = load(path)
    with PeakMemory() as memory:
        start = time.process_time()
        gallery.faiss_index().save(path.with_suffix(".faiss"))
        seconds = time.process_time() - start
    return {"seconds": seconds, "memory": memory.above, "bytes": path.with_suffix(".faiss").stat().st_size}


def measure_growth(path: Path, rerank: int | None, index: Index) -> dict[str, Any]:
    """Loading, time of a single query (median) and memory of one way of ranking."""
    with PeakMemory() as memory:
        start = time.process_time()
        retriever, gallery = load(path)
        if index == "faiss":
            gallery.index = FaissIndex.load(path.with_suffix(".faiss"))
        ranker = Ranker(retriever, [gallery], SIMILARITY, evaluation(rerank, index))  # type: ignore[arg-type]
        loaded = time.process_time() - start
        seconds, ranks = [], []
        for query, own in zip(gallery.queries, gallery.target, strict=True):
            start = time.process_time()
            scores = ranker.scores([query])
            seconds.append(time.process_time() - start)
            ranks.append(metrics.ranks(scores, torch.tensor([own])))
    recall = {f"r{cutoff}": recall_at(torch.cat(ranks).numpy(), cutoff) for cutoff in (1, 10)}
    return {"loaded": loaded, "seconds": median(seconds), "memory": memory.above, **recall}


def measure_recall(path: Path) -> list[dict[str, Any]]:
    """How much of the full ranking's best ten the two stages find, for growing M."""
    retriever, gallery = load(path)
    target = torch.tensor(gallery.target)
    full = Ranker(retriever, [gallery], SIMILARITY).scores(gallery.queries)  # type: ignore[arg-type]
    best = full.topk(10, dim=1).indices
    rows: list[dict[str, Any]] = [{"way": "full", "same": 100.0, **metrics.recall(full, target)}]
    for index in get_args(Index):
        ranker = Ranker(retriever, [gallery], SIMILARITY, evaluation(1, index))  # type: ignore[arg-type]
        for candidates in (10, 30, 100, 300):
            ranker.candidates = candidates
            scores = ranker.scores(gallery.queries)
            pairs = zip(best, scores.topk(10, dim=1).indices, strict=True)
            same = 100 * torch.stack([torch.isin(ours, theirs).float().mean() for ours, theirs in pairs]).mean()
            rows.append({"way": f"{index}, M = {candidates}", "same": same, **metrics.recall(scores, target)})
    return [{key: float(value) if key != "way" else value for key, value in row.items()} for row in rows]


def measure_target(path: Path) -> dict[str, Any]:
    """Time and memory of a whole evaluation, metrics included, in full."""
    retriever, gallery = load(path)
    with PeakMemory() as memory:
        start = time.process_time()
        ranking = rank(retriever, [gallery], SIMILARITY)  # type: ignore[arg-type]
        metrics.recall(ranking.scores, ranking.target)
        recall_within_task(ranking, 1)
        metrics.video_to_text_ranks(ranking.video_scores, ranking.target)
        seconds = time.process_time() - start
    return {"seconds": seconds, "memory": memory.above}


def measure_search(folder: Path) -> dict[str, Any]:
    """Loading, time of a query (median) and memory of `structalign search` in the folder of a run."""
    os.chdir(folder)
    config = Config.load("params.yaml")
    with PeakMemory() as memory:
        start = time.process_time()
        index = GallerySearch(config, config.K)
        loaded = time.process_time() - start
        seconds = []
        for query in index.galleries[0].queries[:QUERIES]:
            start = time.process_time()
            hits = index.search(query, 8)
            seconds.append(time.process_time() - start)
            assert len(hits) == 8
    return {"loaded": loaded, "seconds": median(seconds), "most": max(seconds), "memory": memory.above}


def apart(measurement: str, path: Path, *arguments: object) -> Any:
    """Run one of the functions above in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.ranking", "child", measurement, str(path), json.dumps(arguments)]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)


def growth(folder: Path, largest: int) -> None:
    rows: list[dict[str, Any]] = []
    print(f"{QUERIES} queries\nvideos     way        load s  ms/query  MB above   R@1  R@10")
    for videos in (1_000, 10_000, 100_000, 1_000_000):
        if videos > largest:
            continue
        path = folder / f"{videos}.safetensors"
        write_gallery(path, videos, FRAMES, QUERIES)
        built = apart("build_index", path)
        note = f"{built['bytes'] / 2**20:,.0f} MB, {built['memory']:,.0f} MB of memory"
        print(f"{videos:9,}  index: built in {built['seconds']:.1f} s, {note}", flush=True)
        for (rerank, index), most in MOST.items():
            if videos > most:
                continue
            row = apart("measure_growth", path, rerank, index)
            way = f"{index} {rerank}" if rerank else "full"
            rows.append({"videos": videos, "way": way, **row})
            cost = f"{row['loaded']:6.2f}  {row['seconds'] * 1000:8.1f}  {row['memory']:8.0f}"
            found = f"{row['r1']:4.0f}  {row['r10']:4.0f}"
            print(f"{videos:9,}  {way:9}  {cost}  {found}", flush=True)
        path.unlink()
    draw(pd.DataFrame(rows), GROWTH)


def draw(rows: pd.DataFrame, path: Path) -> None:
    """Draw time and memory against the number of videos."""
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    rows = rows.assign(ms=rows.seconds * 1000)
    for axis, column, label in zip(
        axes, ("ms", "memory"), ("ms per query, one core", "memory of its own (MB)"), strict=True
    ):
        sns.lineplot(rows, x="videos", y=column, hue="way", style="way", markers=True, dashes=False, ax=axis)
        axis.set(xscale="log", yscale="log", xlabel="stored videos", ylabel=label)
        axis.grid(visible=True, which="major", alpha=0.3)
    axes[0].axhline(100, color="grey", linestyle=":", linewidth=1)
    axes[1].get_legend().remove()
    figure.savefig(path, dpi=110)
    print(f"written: {path}")


def recall(folder: Path, largest: int) -> None:
    for videos, queries in ((10_000, 64), (100_000, 32)):
        if videos > largest:
            continue
        path = folder / f"{videos}.safetensors"
        write_gallery(path, videos, 12, queries)
        print(f"{videos:,} videos, {queries} queries")
        print("way              same best ten %   R@1   R@10  median rank")
        for row in apart("measure_recall", path):
            print(f"{row['way']:16} {row['same']:15.1f}  {row['r1']:4.0f}  {row['r10']:5.0f}  {row['medr']:11.1f}")
        path.unlink()


def target(folder: Path, largest: int) -> None:
    size = min(5_000, largest)
    path = folder / "target.safetensors"
    write_gallery(path, size, 24, size)
    row = apart("measure_target", path)
    print(
        f"{size:,} queries x {size:,} videos, 24 frames, {WORDS} words: {row['seconds']:.0f} s, "
        f"{row['memory']:.0f} MB above the features, {size**2 * 4 / 2**20:.0f} of them the scores"
    )


def search(folder: Path, largest: int, run: Path) -> None:
    enlarge(run, folder, largest)
    row = apart("measure_search", folder)
    print(
        f"{largest:,} videos: loaded in {row['loaded']:.1f} s, {row['seconds'] * 1000:.1f} ms a query, "
        f"{row['most'] * 1000:.1f} at most, {row['memory']:,.0f} MB"
    )


def enlarge(run: Path, folder: Path, videos: int) -> None:
    """Set up the folder of a run whose gallery is another's last one many times over, with noise on its features."""
    config = Config.load(run / "params.yaml")
    old = load_galleries(run / paths.gallery(config.K))[-1]
    for path in (Path("models"), paths.SPLIT):
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).symlink_to((run / path).resolve())
    values = yaml.safe_load((run / "params.yaml").read_text(encoding="utf-8"))
    values["evaluate"] |= {"rerank": CANDIDATES, "index": "faiss"}
    (folder / "params.yaml").write_text(yaml.safe_dump(values), encoding="utf-8")
    source = torch.Generator().manual_seed(0)
    which = torch.randint(len(old.clips), (videos,), generator=source)
    noise = old.frames.std() * torch.randn(2**12, old.frames.shape[-1], generator=source)
    into = folder / paths.gallery(config.K)
    into.mkdir(parents=True)
    path = into / "task-01.safetensors"
    _, frames, width = old.frames.shape
    shown = torch.arange(FRAMES) % frames
    with frames_file(path, (videos, FRAMES, width), "F32") as stream:
        for part in which.split(len(noise)):
            stream.write((old.frames[part][:, shown] + noise[: len(part), None]).numpy().tobytes())  # [v,N,D]
    FaissIndex.build(load_tensors(path)["frames"]).save(path.with_suffix(".faiss"))
    facts = {
        "task": 1,
        "clips": [f"video{number}" for number in range(videos)],
        "category": [old.category[place] for place in which.tolist()],
        "queries": [old.caption(place) for place in which.tolist()],
        "target": list(range(videos)),
    }
    atomic_write_json(path.with_suffix(".json"), facts)
    save_index(into, 1)


def main() -> None:
    if sys.argv[1:2] == ["child"]:
        name, path, arguments = sys.argv[2:]
        print(json.dumps(globals()[name](Path(path), *json.loads(arguments))))
        return
    parts: dict[str, Callable[..., None]] = {"growth": growth, "recall": recall, "target": target, "search": search}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=parts)
    parser.add_argument("--largest", type=int, default=1_000_000, help="leave out larger galleries")
    parser.add_argument("--folder", type=Path, default=None, help="where galleries are kept while they are measured")
    parser.add_argument("--run", type=Path, default=Path(), help="`search`: folder of a run (default: this one)")
    args = parser.parse_args()
    print(machine())
    more = {"run": args.run} if args.part == "search" else {}
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        parts[args.part](Path(folder), args.largest, **more)


if __name__ == "__main__":
    main()
