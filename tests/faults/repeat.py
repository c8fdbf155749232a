"""Run a small chain with `dvc repro --force` three times and compare what it writes, byte for byte.

    python -m tests.faults.repeat --output docs/repeat.md      # or: make repeat

The first two runs are alike; the third decodes and loads with one worker instead of two. Exit status 1 if a file that
has to be the same differs.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

from structalign.util.files import atomic_write_text
from tests.faults.chain import Project, machine

RUNS = {"first": "machine.workers=2", "again": "machine.workers=2", "one worker": "machine.workers=1"}


def forced(project: Project, override: str) -> dict[str, str]:
    """Run every stage anew; return the hashes of what came out."""
    project.compose(override)
    run = project.repro("--force")
    if run.wait(3600):
        raise RuntimeError(f"the chain failed:\n{run.output()[-4000:]}")
    run.end()
    return project.results()


def table(hashes: dict[str, dict[str, str]]) -> str:
    """The hashes of all runs side by side, as Markdown."""
    names = sorted(set().union(*hashes.values()))
    lines = [f"| file | {' | '.join(hashes)} | |", f"|---{'|---' * len(hashes)}|---|"]
    for name in names:
        cells = [found.get(name, "absent")[:12] for found in hashes.values()]
        lines.append(f"| {name} | {' | '.join(f'`{cell}`' for cell in cells)} | {verdict(name, hashes)} |")
    return "\n".join(lines)


def verdict(name: str, hashes: dict[str, dict[str, str]]) -> str:
    """Whether a file is the same in all runs."""
    return "same" if len({found.get(name) for found in hashes.values()}) == 1 else "DIFFERENT"


def main() -> None:
    """Parse the command line, run, compare, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, help="Markdown file for the table")
    args = parser.parse_args()
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="repeat-") as temporary:
        project = Project.create(Path(temporary) / "project")
        hashes = {name: forced(project, override) for name, override in RUNS.items()}
    names = set().union(*hashes.values())
    different = [name for name in names if verdict(name, hashes) != "same"]
    seconds = time.monotonic() - began
    text = f"""# Repeated runs

`make repeat` on {machine()}, {seconds:.0f} s: `dvc repro --force` of a small
chain (K = 2), three times, the third with one worker instead of two. SHA-256, first 12 digits:
**{len(names) - len(different)} of {len(names)}** files are the same.

{table(hashes)}

Seconds and memory are in none of them: they lie in `.cache/cost`.
"""
    print(text)
    if args.output:
        atomic_write_text(args.output, text)
    sys.exit(1 if different else 0)


if __name__ == "__main__":
    main()
