"""From stored frames and captions to batches.

A task's training videos are few (32 to 320, in joint training up to 3,200), so their decoded frames stay in memory.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import psutil
import torch
from torch import Tensor

from structalign.config.schema import TrainConfig
from structalign.data.store import FrameStore
from structalign.data.tasks import Sample
from structalign.methods.base import Batch
from structalign.model.clip import cut_padding
from structalign.model.retriever import Retriever
from structalign.training.views import augment, center_crop, draw_augmentation
from structalign.util import distributed
from structalign.util.errors import UserError
from structalign.util.log import progress
from structalign.util.workers import in_order

AHEAD = 4
"""Clips per thread that are decoded ahead of their use."""

ON_DEVICE = 0.25
"""Share of a GPU's free memory that a task's frames may fill."""


def load_clips(store: FrameStore, clips: Sequence[str], workers: int) -> Iterator[Tensor]:
    """Decode stored clips in threads, in order.

    Parameters
    ----------
    store : FrameStore
    clips : sequence of str
        Ids.
    workers : int
        Threads; decoding JPEG lets other threads run.

    Yields
    ------
    Tensor, shape (N, 3, H, W), uint8
        Sizes may differ from clip to clip. Pixels stay together (channels last): on a CPU, resizing them is five
        times as fast.
    """
    with ThreadPoolExecutor(workers) as pool:
        reads = (pool.submit(store.read, clip) for clip in clips)
        for frames in in_order(reads, AHEAD * workers):  # bounds memory if the reader is slower
            yield _channels_first(frames)


def _channels_first(frames: np.ndarray) -> Tensor:
    return torch.from_numpy(frames).permute(0, 3, 1, 2)


def eval_batches(
    store: FrameStore, clips: Sequence[str], size: int, batch_size: int, workers: int
) -> Iterator[Tensor]:
    """Yield stored clips in batches as at test time: uint8 (b, N, 3, size, size)."""
    pending: list[Tensor] = []
    for frames in progress(load_clips(store, clips, workers), len(clips), "encode", "video"):
        pending.append(center_crop(frames, size))
        if len(pending) == batch_size:
            yield torch.stack(pending)
            pending = []
    if pending:
        yield torch.stack(pending)


def _draw(items: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Draw `count` items at random, none twice before all have come up equally often."""
    rounds = [items[torch.randperm(len(items), generator=generator)] for _ in range(-(-count // len(items)))]
    return torch.cat([*rounds, items[:0]])[:count]


def _check_memory(needed: int) -> None:
    """Refuse frames that the machine has no memory for, before hours of training end in the out-of-memory killer."""
    ranks, free = distributed.local_world_size(), psutil.virtual_memory().available
    if needed * ranks > free:
        raise UserError(
            f"the task's frames take {needed / 1e9:.1f} GB of memory in each of {ranks} processes, and "
            f"{free / 1e9:.1f} GB are free: lower train.devices, frames.short_side or frames.num_frames"
        )


class TrainingSet:
    """A task's training videos and captions, in memory.

    Parameters
    ----------
    samples : list of Sample
    store : FrameStore
    retriever : Retriever
        Says how to tokenise, and the size of frames.
    workers : int
        Threads that decode.
    """

    def __init__(self, samples: list[Sample], store: FrameStore, retriever: Retriever, workers: int) -> None:
        self.samples = samples
        self.size = retriever.image_size
        names = [sample.clip for sample in samples]
        _check_memory(store.decoded_bytes(names))
        clips = load_clips(store, names, workers)
        self.frames = list(progress(clips, len(samples), "load", "video"))
        pairs = [(video, caption) for video, sample in enumerate(samples) for caption in sample.captions]
        self.video = torch.tensor([video for video, _ in pairs])  # [P]
        self.captions = [caption for _, caption in pairs]
        self.tokens = retriever.tokenize(self.captions)  # [P,L]
        self.category = torch.tensor([sample.category for sample in samples])[self.video]  # [P]

    @property
    def pairs(self) -> int:
        """Pairs of video and caption."""
        return len(self.video)

    def steps_per_epoch(self, batch_size: int) -> int:
        """Batches per epoch; a last batch of a single pair, which has nothing to contrast, does not count."""
        full, rest = divmod(len(self.video), batch_size)
        return full + (rest > 1)

    def batches(self, train: TrainConfig, generator: torch.Generator, device: torch.device) -> Iterator[Batch]:
        """Yield one epoch of augmented batches; order and augmentation follow from the generator alone.

        If several devices train, all of them draw the same for the whole batch, and augment their own share.
        """
        order = self._order(train.balanced, generator)
        self._move_to(device)
        for step in range(self.steps_per_epoch(train.batch_size)):
            pairs = order[step * train.batch_size : (step + 1) * train.batch_size]
            videos = self.video[pairs]
            encoded, row = videos.unique(return_inverse=True) if train.share_videos else (videos, None)
            pixels = self._augmented(encoded.tolist(), train, generator, device)
            tensors = (pixels, cut_padding(self.tokens[pairs]), self.category[pairs], videos)
            pixels, tokens, category, videos = (tensor.to(device, non_blocking=True) for tensor in tensors)
            row = None if row is None else row.to(device, non_blocking=True)
            yield Batch(pixels, tokens, category, videos, row)

    def _augmented(
        self, videos: list[int], train: TrainConfig, generator: torch.Generator, device: torch.device
    ) -> Tensor:
        """Draw a view of each of the batch's videos, and show this rank's share of them: (V, N, 3, size, size)."""
        views = [draw_augmentation(self.frames[video], generator, train.crop_scale, train.flip) for video in videos]
        own = distributed.shard_indices(len(videos))
        return augment([self.frames[videos[place]].to(device) for place in own], [views[p] for p in own], self.size)

    def _move_to(self, device: torch.device) -> None:
        """Keep the frames on the device that augments them, if there is room; otherwise copy them batch by batch."""
        if self.frames[0].device == device:
            return
        if device.type == "cuda":
            free, _ = torch.cuda.mem_get_info(device)
            if sum(frames.nbytes for frames in self.frames) > ON_DEVICE * free:
                return
        self.frames = [frames.to(device) for frames in self.frames]

    def _order(self, balanced: bool, generator: torch.Generator) -> Tensor:
        """Order of pairs in an epoch: each once; balanced: as many in all, the same number from every category."""
        total = len(self.video)
        if not balanced:
            return torch.randperm(total, generator=generator)
        categories = self.category.unique()
        share, rest = divmod(total, len(categories))
        extra = torch.randperm(len(categories), generator=generator) < rest  # these get one more
        drawn = [
            _draw(torch.nonzero(self.category == category).flatten(), share + int(more), generator)
            for category, more in zip(categories, extra, strict=True)
        ]
        return torch.cat(drawn)[torch.randperm(total, generator=generator)]

    def eval_batches(self, batch_size: int) -> Iterator[Tensor]:
        """Yield the videos in batches as at test time, without augmentation."""
        for start in range(0, len(self.frames), batch_size):
            yield torch.stack([center_crop(frames, self.size) for frames in self.frames[start : start + batch_size]])
