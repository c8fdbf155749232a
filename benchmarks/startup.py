"""How long each stage takes until it could begin: `python -m stages.X --help`, and which imports that time goes to.

python -m benchmarks.startup
"""

from __future__ import annotations

import argparse
import os
import re
import statistics
import subprocess
import sys
from collections import Counter
from functools import partial
from pathlib import Path

from benchmarks.measure import in_turns, machine

STAGES = Path(__file__).resolve().parent.parent / "stages"


def stages() -> list[str]:
    """Names of all modules in stages/ that are programs."""
    return sorted(path.stem for path in STAGES.glob("*.py") if "__main__" in path.read_text(encoding="utf-8"))


def start(stage: str) -> None:
    command = [sys.executable, "-m", f"stages.{stage}", "--help"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, cwd=STAGES.parent)


def children_time() -> float:
    """Processor seconds of all programs that were started and have ended."""
    times = os.times()
    return times.children_user + times.children_system


def heaviest_imports(stage: str, count: int) -> list[tuple[str, float]]:
    """Packages that importing a stage spends most on, as shares of the whole."""
    command = [sys.executable, "-X", "importtime", "-c", f"import stages.{stage}"]
    lines = subprocess.run(command, check=True, stderr=subprocess.PIPE, text=True, cwd=STAGES.parent).stderr
    spent: Counter[str] = Counter()
    for own, name in re.findall(r"import time:\s+(\d+) \|\s+\d+ \| +(\S+)", lines):
        spent[name.split(".")[0]] += int(own)
    return [(name, microseconds / spent.total()) for name, microseconds in spent.most_common(count)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    times = in_turns({stage: partial(start, stage) for stage in stages()}, args.rounds, children_time)
    print(machine())
    for stage, values in times.items():
        imports = ", ".join(f"{name} {share:.0%}" for name, share in heaviest_imports(stage, 4))
        print(f"{stage:10} median {statistics.median(values):5.2f} s, best {min(values):5.2f} s   ({imports})")


if __name__ == "__main__":
    main()
