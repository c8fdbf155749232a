"""What this process may use of the machine, and what it did use."""

from __future__ import annotations

import ctypes
import mmap
import os
import platform
import re
import resource
from pathlib import Path

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4
"""Numbers of glibc's parameters, from malloc.h."""


def available_cores() -> int:
    """Cores that this process may run on."""
    return len(os.sched_getaffinity(0))


def peak_memory_mb() -> float:
    """Most memory that this process has held at a time, in megabytes (2^20 bytes).

    The kernel's own figure of this process is read: `getrusage` starts from that of the process which started this
    one, so that a stage under a large parent would be charged with its memory.
    """
    found = re.search(r"^VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    return (int(found[1]) if found else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss) / 2**10


def keep_freed_memory() -> None:
    """Let glibc keep the memory that is freed, for the next buffer of that size; elsewhere nothing changes.

    It would give large buffers back to the system, which fills each with zeros anew: millions of page faults a
    training step. Memory that was in use once stays with the process until it ends.
    """
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(_M_MMAP_MAX, 0)
        libc.mallopt(_M_TRIM_THRESHOLD, -1)


def read_at_random(address: int, size: int) -> None:
    """Tell the system that memory mapped from a file is read here and there, so that it reads nothing ahead."""
    if size:
        start = address // mmap.PAGESIZE * mmap.PAGESIZE
        advise = ctypes.CDLL(None).madvise
        advise(ctypes.c_void_p(start), ctypes.c_size_t(address + size - start), mmap.MADV_RANDOM)
