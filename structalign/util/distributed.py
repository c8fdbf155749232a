"""Several devices train one task together: each encodes its share of every batch, all see the features of all.

`training/launch.py` starts the processes. With only one, its share is the whole and gathering changes nothing.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

from structalign.util.errors import UserError

Value = TypeVar("Value")


class CollectiveError(RuntimeError):
    """A collective failed, as it does if another rank is gone."""


def pick_device(name: str) -> torch.device:
    """Resolve `machine.device`: auto takes a GPU if there is one.

    Raises
    ------
    UserError
        If there is no such device, or none with that number on this machine.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        device = torch.device("meta")
    if device.type not in ("cpu", "cuda"):
        raise UserError(f"machine.device = {name!r}: must be auto, cpu, cuda or cuda:N")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UserError(f"machine.device = {name!r}: this machine has no usable GPU; auto takes the CPU here")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(
            f"machine.device = {name!r}: this machine's {torch.cuda.device_count()} visible GPUs count from cuda:0"
        )
    return device


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Copy a tensor from the CPU; a GPU takes it while it is still at earlier work."""
    if device.type == "cuda" and tensor.device.type == "cpu":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def device_name(device: torch.device) -> str:
    """Name what a program computes on, such as `NVIDIA H200` or `the CPU`."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "the CPU"


def num_ranks(devices: int | Literal["auto"], device: str, batch_size: int) -> int:
    """Resolve `train.devices`: auto takes every visible GPU, and one process on the CPU or on a GPU named by number.

    Raises
    ------
    UserError
        If the machine, `machine.device` or the batch size does not allow that number.
    """
    kind = pick_device(device)
    gpus = torch.cuda.device_count() if kind.type == "cuda" else 0
    if devices == "auto":
        return min(gpus, batch_size) if gpus and kind.index is None else 1
    if devices > batch_size:
        raise UserError(f"train.devices = {devices} exceeds train.batch_size = {batch_size}: a device needs a pair")
    if devices > 1 and kind.index is not None:
        raise UserError(f"train.devices = {devices}, but machine.device = {device!r} names one; set it to auto")
    if gpus and devices > gpus:
        raise UserError(f"train.devices = {devices}: this machine has {gpus} visible GPUs; auto takes all of them")
    return devices


@contextmanager
def collective_errors() -> Iterator[None]:
    """Raise a `CollectiveError` for a collective that fails, to tell it from a rank's own errors."""
    try:
        yield
    except RuntimeError as error:
        raise CollectiveError(str(error)) from error


# Where this process stands


def world_size() -> int:
    """Number of processes that train together; 1 unless `launch.run` started more."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def local_world_size() -> int:
    """Number of these processes on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1")) if world_size() > 1 else 1


def rank() -> int:
    """Number of this process among them; 0 writes what the stage leaves."""
    return dist.get_rank() if world_size() > 1 else 0


def shard_indices(count: int) -> Sequence[int]:
    """Which of a joint batch's `count` rows this rank works on: the same number on every rank.

    If they do not divide evenly, the last row fills up the last shards; `gather`'s result then ends with
    copies of it, which the caller cuts off, so that they have no gradient.
    """
    each = -(-count // world_size())
    return [min(row, count - 1) for row in range(rank() * each, (rank() + 1) * each)]


def gather(own: Tensor) -> Tensor:
    """Put the shares of all ranks together, in order; gradients flow back to every rank's own share.

    Parameters
    ----------
    own : Tensor, shape (b, ...)
        Of the same shape on every rank.

    Returns
    -------
    Tensor, shape (world_size() * b, ...)

    Notes
    -----
    Every rank has to compute the same loss from it. Then the loss summed over ranks has `world_size()` times the
    gradient of one, and `average_gradients` gives those of a single process with the joint batch, for weights used
    before the gathering and for weights used after it alike.
    """
    return own if world_size() == 1 else _Gather.apply(own)  # type: ignore[no-any-return]


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, own: Tensor) -> Tensor:
        ctx.rows = len(own)
        shares = [torch.empty_like(own, memory_format=torch.contiguous_format) for _ in range(world_size())]
        with collective_errors():
            dist.all_gather(shares, own.contiguous())
        return torch.cat(shares)

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, *gradients: Tensor) -> Tensor:
        # What the other ranks' copies of the loss would send here equals this rank's own: no need to exchange it.
        rows = ctx.rows  # type: ignore[attr-defined]
        return gradients[0][rank() * rows : (rank() + 1) * rows] * world_size()


@torch.no_grad()
def average_gradients(weights: Sequence[Tensor]) -> None:
    """Replace the gradients of `weights` by their mean over ranks; those without one have none on any rank."""
    if world_size() == 1:
        return
    gradients = [weight.grad for weight in weights if weight.grad is not None]
    joint = torch.cat([gradient.flatten() for gradient in gradients])
    with collective_errors():
        dist.all_reduce(joint)
    parts = joint.div_(world_size()).split([gradient.numel() for gradient in gradients])
    torch._foreach_copy_(gradients, [part.view_as(old) for part, old in zip(parts, gradients, strict=True)])


def all_reduce_sum(own: Tensor) -> Tensor:
    """Sum a tensor over ranks; every rank gets the sum."""
    if world_size() > 1:
        with collective_errors():
            dist.all_reduce(own)
    return own


def broadcast_from_rank0(compute: Callable[[], Value]) -> Value:
    """Compute something that can be pickled on rank 0 and send it to all."""
    if world_size() == 1:
        return compute()
    value: list[Value | None] = [compute() if rank() == 0 else None]
    with collective_errors():
        dist.broadcast_object_list(value, src=0)
    return value[0]  # type: ignore[return-value]
