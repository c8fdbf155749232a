"""What this process may use of the machine, and what it did use."""

from __future__ import annotations

import ctypes
import mmap
import os
import platform
import re
import resource
import sys
from pathlib import Path

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4
"""Numbers of glibc's parameters, from malloc.h."""


def available_cores() -> int:
    """Cores that this process may run on; all of the machine's if the system does not say."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def peak_memory_mb() -> float:
    """Most memory that this process has held at a time, in megabytes (2^20 bytes).

    On Linux the kernel's own figure of this process is read: `getrusage` starts from that of the process which
    started this one, so that a stage under a large parent would be charged with its memory.
    """
    status = Path("/proc/self/status")
    found = re.search(r"^VmHWM:\s*(\d+) kB", status.read_text(), re.MULTILINE) if status.exists() else None
    if found:
        return int(found[1]) / 2**10
    unit = 2**20 if sys.platform == "darwin" else 2**10  # macOS counts bytes, others kilobytes
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


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
    """Tell the system that memory mapped from a file is read here and there, so that it reads nothing ahead.

    It only saves reading: if the system knows no such advice, nothing changes.
    """
    if hasattr(mmap, "MADV_RANDOM") and size:
        start = address // mmap.PAGESIZE * mmap.PAGESIZE
        advise = ctypes.CDLL(None).madvise
        advise(ctypes.c_void_p(start), ctypes.c_size_t(address + size - start), mmap.MADV_RANDOM)
