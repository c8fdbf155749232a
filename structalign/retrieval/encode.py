"""Encode videos and captions in batches, without gradients, as at test time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor

from structalign.losses.contrastive import pool_words
from structalign.model.retriever import Retriever

QUERY_BATCH = 256
"""Queries encoded at a time; memory grows with it, results do not depend on it."""


@torch.inference_mode()
def encode_videos(retriever: Retriever, batches: Iterable[Tensor], task: int | None = None) -> Tensor:
    """Encode batches of pixels (B, N, 3, H, W) into frame features (V, N, D) on the CPU, in full precision.

    `task` is as for `Retriever.encode_video`.
    """
    retriever.eval()
    device = next(retriever.parameters()).device
    features = [retriever.encode_video(pixels.to(device), task)[0].float().cpu() for pixels in batches]
    return torch.cat(features)  # [V,N,D]


@torch.inference_mode()
def encode_texts(retriever: Retriever, captions: Sequence[str], task: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Encode captions with one task's prototype; yield words (b, L, D), mask (b, L) and global features (b, D)."""
    retriever.eval()
    device = next(retriever.parameters()).device
    for tokens in token_batches(retriever, captions):
        yield retriever.encode_text(tokens.to(device), task)


def token_batches(retriever: Retriever, captions: Sequence[str], size: int = QUERY_BATCH) -> Iterator[Tensor]:
    """Yield captions as tokens (b, L), `size` of them at a time."""
    for start in range(0, len(captions), size):
        yield retriever.tokenize(captions[start : start + size])


def pooled_texts(retriever: Retriever, captions: Sequence[str], task: int) -> Tensor:
    """Encode captions with one task's prototype and pool their words: (T, D), on the CPU."""
    with torch.inference_mode():
        batches = encode_texts(retriever, captions, task)
        return torch.cat([pool_words(words.float(), mask).cpu() for words, mask, _ in batches])
