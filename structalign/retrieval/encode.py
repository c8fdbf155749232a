"""Encode videos and captions in batches, without gradients, as at test time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor

from structalign.losses.contrastive import pool_words
from structalign.model.clip import cut_padding, end_positions
from structalign.model.retriever import Retriever

QUERY_BATCH, BATCH_TOKENS = 256, 2**11
"""Queries encoded at a time, and their tokens with padding, so fewer if they are long. Memory grows with both."""


@torch.inference_mode()
def encode_videos(retriever: Retriever, batches: Iterable[Tensor], task: int | None = None) -> Tensor:
    """Encode batches of pixels (B, N, 3, H, W) into frame features (V, N, D) on the CPU, in full precision.

    `task` is as for `Retriever.encode_video`.
    """
    retriever.eval()
    device = retriever.device
    features = [retriever.encode_video(pixels.to(device), task)[0].float().cpu() for pixels in batches]
    return torch.cat(features)  # [V,N,D]


@torch.inference_mode()
def encode_texts(
    retriever: Retriever, captions: Sequence[str], task: int
) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
    """Encode captions with one task's prototype, batch by batch, as `token_batches` orders them.

    Yields
    ------
    places : Tensor, shape (b,)
        Positions of the batch's captions among all.
    words, mask : Tensor, shapes (b, L, D) and (b, L)
    global_ : Tensor, shape (b, D)
    """
    retriever.eval()
    device = retriever.device
    for places, tokens in token_batches(retriever, captions):
        yield places, *retriever.encode_text(tokens.to(device), task)


def token_batches(
    retriever: Retriever, captions: Sequence[str], size: int = QUERY_BATCH
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield captions as tokens (b, L), up to `size` of them at a time, after their positions (b,) among all.

    The shortest come first, because a batch is padded to its longest caption.
    """
    tokens = retriever.tokenize(captions)  # [T,L]
    ends = end_positions(tokens)
    order = ends.argsort(stable=True)
    for places in order.split(_batch_sizes((ends[order] + 1).tolist(), size)):
        yield places, cut_padding(tokens[places])


def _batch_sizes(lengths: list[int], size: int) -> list[int]:
    """Divide captions whose lengths ascend into batches of up to `size` captions and `BATCH_TOKENS` tokens."""
    sizes = [0]
    for length in lengths:
        if sizes[-1] and (sizes[-1] == size or (sizes[-1] + 1) * length > BATCH_TOKENS):
            sizes.append(0)
        sizes[-1] += 1
    return sizes


def pooled_texts(retriever: Retriever, captions: Sequence[str], task: int) -> Tensor:
    """Encode captions with one task's prototype and pool their words: (T, D), on the CPU."""
    with torch.inference_mode():
        batches = encode_texts(retriever, captions, task)
        return restore_order((places, pool_words(words.float(), mask).cpu()) for places, words, mask, _ in batches)


def restore_order(batches: Iterable[tuple[Tensor, Tensor]]) -> Tensor:
    """Put parts (b, D) of a whole (T, D) where their positions (b,) say."""
    places, parts = zip(*batches, strict=True)
    rows = torch.cat(parts)
    whole = torch.empty_like(rows)
    whole[torch.cat(places)] = rows
    return whole
