"""What a process uses of the machine."""

from __future__ import annotations

import mmap
import re
import subprocess
import sys
from pathlib import Path

import torch

from structalign.util.checkpoint import load_tensors, save_tensors
from structalign.util.machine import read_at_random

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


def test_freed_memory_is_kept_for_the_next_buffer() -> None:
    assert faults("free") > 10 * max(1, faults("keep"))


def test_a_mapping_that_is_read_here_and_there_reads_nothing_ahead(tmp_path: Path) -> None:
    path = tmp_path / "stored"
    save_tensors({"frames": torch.zeros(3 * mmap.PAGESIZE)}, path)
    frames = load_tensors(path)["frames"]
    assert "rr" not in flags_of(frames.data_ptr())
    read_at_random(frames.data_ptr(), frames.nbytes)
    assert "rr" in flags_of(frames.data_ptr())
    read_at_random(frames.data_ptr(), 0)


def flags_of(address: int) -> list[str]:
    """The kernel's flags of the mapping that an address lies in."""
    inside = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if area := re.match(r"([0-9a-f]+)-([0-9a-f]+) ", line):
            inside = int(area[1], 16) <= address < int(area[2], 16)
        elif inside and line.startswith("VmFlags:"):
            return line.split()[1:]
    return []
