"""What this process uses of the machine."""

from __future__ import annotations

import re
import resource
import sys
from pathlib import Path


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
