"""Start the processes that train one task together, through PyTorch's elastic launcher.

Every rank is a child of the stage's process, which takes part in no collective: it waits, ends all ranks when one
fails, and reports the first failure. Rank 0 alone writes what the stage leaves.

Several machines
----------------
The stage reads the variables of `torchrun`. Run it on every machine with the same parameters, each in its own copy of
the project's folder, because a stage runs once at a time in a folder:

    PET_NNODES=2 PET_NODE_RANK=0 PET_MASTER_ADDR=first PET_MASTER_PORT=29500 python -m stages.train --task 1

`train.devices` counts the devices of one machine. What the stage leaves is in the folder of the machine with
`PET_NODE_RANK=0`: evaluate there, and copy its `models/`, and for stablefusion `data/gallery/`, to the others before
the next task.
"""

from __future__ import annotations

import os
import signal
import socket
import time
import uuid
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from structalign.util.command import describe_error
from structalign.util.distributed import CollectiveError, collective_errors
from structalign.util.errors import UserError
from structalign.util.log import configure, log, without_logging
from structalign.util.machine import keep_freed_memory
from structalign.util.workers import end_with_parent, exit_reason

_TIMEOUT = timedelta(hours=1)
"""How long a rank waits for another that is alive, such as rank 0 while it ranks test queries."""

_GRACE = 20.0
"""Seconds for which a rank with a broken collective waits, so that the rank that broke it is seen to fail first."""


def run(count: int, device: torch.device, function: Callable[..., None], *args: Any) -> None:
    """Call a function once in each rank; with one rank, in this process.

    Parameters
    ----------
    count : int
        Ranks on this machine.
    device : device
        A GPU: rank r works on the r-th visible one. Otherwise all work on the CPU.
    function : callable
        A module's function.
    *args
        What it is called with; they are pickled.

    Raises
    ------
    UserError
        If a rank fails: its number and its error.
    """
    nodes = _number("PET_NNODES", os.environ.get("PET_NNODES", "1"))
    if count * nodes == 1:
        if device.type == "cuda" and device.index is not None:
            torch.cuda.set_device(device)  # CUDA graphs record on the present GPU, whatever its tensors are on
        function(*args)
        return
    config = _one_machine(count) if nodes == 1 else _several_machines(nodes, count)
    try:
        with without_logging():
            elastic_launch(config, _run_rank)(device.type, nodes == 1, log.level, function, args)
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        log.debug(error.format_msg())
        raise UserError(f"train.devices = {count}: rank {rank} failed: {_reason(failure)}") from None
    except SignalException as error:
        if error.sigval == signal.SIGINT:
            raise KeyboardInterrupt from None
        raise SystemExit(128 + error.sigval) from None


def _number(variable: str, text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise UserError(f"{variable} = {text}: must be a whole number; a run cannot gain or lose machines") from None


def _one_machine(count: int) -> LaunchConfig:
    return LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=count,
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",  # any free port
        local_addr="127.0.0.1",  # whatever the machine's own name resolves to
        max_restarts=0,
    )


def _several_machines(nodes: int, count: int) -> LaunchConfig:
    try:
        address, port = os.environ["PET_MASTER_ADDR"], os.environ["PET_MASTER_PORT"]
        node = _number("PET_NODE_RANK", os.environ["PET_NODE_RANK"])
    except KeyError as error:
        missing = f"PET_NNODES = {nodes}, but {error.args[0]} is not set; see structalign/training/launch.py"
        raise UserError(missing) from None
    return LaunchConfig(
        min_nodes=nodes,
        max_nodes=nodes,
        nproc_per_node=count,
        run_id=os.environ.get("PET_RDZV_ID", "structalign"),
        rdzv_backend="static",
        rdzv_endpoint=f"{address}:{port}",
        rdzv_configs={"rank": node, "timeout": int(_TIMEOUT.total_seconds())},
        max_restarts=0,
    )


def _reason(failure: ProcessFailure) -> str:
    """Say in one line how a rank failed."""
    if isinstance(failure.message, dict):  # from the error file of the rank
        return " ".join(failure.message["message"].removeprefix("UserError: ").split())
    return exit_reason(failure.exitcode)


def _run_rank(device: str, alone: bool, log_level: int, function: Callable[..., None], args: tuple[Any, ...]) -> None:
    """Run as one rank; only rank 0 logs and shows progress."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C reaches all; the stage's process says so
    end_with_parent()
    keep_freed_memory()
    rank, local_rank = int(os.environ["RANK"]), int(os.environ["LOCAL_RANK"])
    if rank > 0:
        os.environ["STRUCTALIGN_PROGRESS"] = "0"
    configure(log_level if rank == 0 else "CRITICAL")
    if device == "cuda":
        torch.cuda.set_device(local_rank)
    elif alone:
        _use_loopback()
    try:
        with collective_errors():
            dist.init_process_group("nccl" if device == "cuda" else "gloo", timeout=_TIMEOUT)
        function(*args)
        dist.destroy_process_group()
    except (OSError, MemoryError, RuntimeError) as error:
        if isinstance(error, CollectiveError):
            time.sleep(_GRACE)
        raise UserError(describe_error(error)) from error


def _use_loopback() -> None:
    """Let processes on the CPU talk over the loopback interface, whatever the machine's name resolves to."""
    loopback = [name for _, name in socket.if_nameindex() if name.startswith("lo")]
    if loopback:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", loopback[0])
