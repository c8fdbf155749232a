"""Word-frame similarity, forward and backward, against plain loops over pairs with the same mathematics.

    python -m benchmarks.similarity                  one CPU thread, processor time
    python -m benchmarks.similarity --device cuda    wall-clock time

One loop takes each pair as it comes; a stronger one gets its features normalised once, before the loop. Both are
checked to give our scores and gradients.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import normalize

from benchmarks.measure import in_turns, machine
from structalign.losses.similarity import word_frame_similarity


def pair(video: Tensor, text: Tensor) -> Tensor:
    """Similarity of one video's frames (N, D) and one text's words (L, D), all of unit length."""
    cosine = video @ text.T  # [N,L]
    return (cosine.max(dim=0).values.mean() + cosine.max(dim=1).values.mean()) / 2


def loop(frames: Tensor, words: Tensor, mask: Tensor) -> Tensor:
    """Similarities (V, T), each pair on its own."""
    rows = []
    for video in frames:
        scores = [
            pair(normalize(video, dim=-1), normalize(text[real], dim=-1))
            for text, real in zip(words, mask, strict=True)
        ]
        rows.append(torch.stack(scores))
    return torch.stack(rows)


def prepared_loop(frames: Tensor, words: Tensor, mask: Tensor) -> Tensor:
    """Similarities (V, T), each pair on its own, features normalised once."""
    texts = [normalize(text[real], dim=-1) for text, real in zip(words, mask, strict=True)]
    rows = [torch.stack([pair(video, text) for text in texts]) for video in normalize(frames, dim=-1)]
    return torch.stack(rows)


def forward_backward(similarity: Callable[..., Tensor], frames: Tensor, words: Tensor, mask: Tensor) -> Tensor:
    """Scores of a batch; gradients of a contrastive loss end in `frames.grad` and `words.grad`."""
    frames.grad = words.grad = None
    scores = similarity(frames, words, mask)
    torch.nn.functional.cross_entropy(scores * 100, torch.arange(len(scores), device=scores.device)).backward()
    if scores.is_cuda:
        torch.cuda.synchronize()
    return scores.detach()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--frames", type=int, default=12)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--words", type=int, default=12, help="on average; captions have up to a third more or less")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    torch.set_num_threads(1)
    source = torch.Generator().manual_seed(0)
    spare = args.words // 3
    lengths = torch.randint(args.words - spare, args.words + spare + 1, (args.batch,), generator=source)
    mask = (torch.arange(args.words + spare) < lengths[:, None]).to(args.device)
    frames = torch.randn(args.batch, args.frames, args.width, generator=source).to(args.device).requires_grad_()
    words = torch.randn(*mask.shape, args.width, generator=source).to(args.device).requires_grad_()

    functions = {"loop": loop, "loop, normalised once": prepared_loop, "word_frame_similarity": word_frame_similarity}
    variants = {
        name: partial(forward_backward, function, frames, words, mask) for name, function in functions.items()
    }
    results = []
    for variant in variants.values():
        scores = variant()
        assert frames.grad is not None
        assert words.grad is not None
        results.append((scores, frames.grad.clone(), words.grad.clone()))
    for result in results[1:]:
        torch.testing.assert_close(result, results[0], rtol=1e-3, atol=1e-4)

    clock = time.perf_counter if args.device.startswith("cuda") else time.process_time
    times = in_turns(variants, args.rounds, clock)
    print(machine())
    print(f"B = {args.batch}, N = {args.frames}, D = {args.width}, {lengths.float().mean():.1f} words, {args.device}")
    ours = statistics.median(times["word_frame_similarity"])
    for name, values in times.items():
        median = statistics.median(values)
        print(f"{name:26} {median * 1000:8.1f} ms   {median / ours:6.1f} x ours")


if __name__ == "__main__":
    main()
