"""What a process uses of the machine."""

from __future__ import annotations

import subprocess
import sys

import pytest

PROGRAM = """
import platform, resource, sys
from structalign.util.machine import keep_freed_memory

if sys.argv[1] == "keep":
    keep_freed_memory()
for _ in range(20):
    bytearray(64 * 2**20)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    bytearray(64 * 2**20)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(*arguments: str) -> int:
    """Page faults of twenty buffers of 64 MB, each freed before the next."""
    done = subprocess.run([sys.executable, "-c", PROGRAM, *arguments], capture_output=True, text=True, check=True)
    return int(done.stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="glibc alone can be told to keep memory")
def test_freed_memory_is_kept_for_the_next_buffer() -> None:
    assert faults("free") > 10 * max(1, faults("keep"))
