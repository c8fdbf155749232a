"""The fault drill: break a small chain in 33 ways under DVC, and see it end as if nothing had happened.

    python -m tests.faults.drill --output docs/drill.md        # or: make drill

Processes are killed with SIGKILL after a share of their CPU time that is drawn from `--seed`, disks fill up, outputs
and DVC's cache are damaged, workers run out of memory. After each fault `dvc repro` runs again, at most three times:
it has to end with the results of an undisturbed run, byte for byte, or to stop with one clear line, whose advice is
then followed. Full disks are small tmpfs mounts, which need root; elsewhere those drills are skipped. Exit status 1
if any drill fails.
"""

from __future__ import annotations

import argparse
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from structalign.util.files import atomic_write_text
from tests.faults.chain import STAGES, Project, Repro, machine

SPARE = 40 << 20
"""Bytes that "free some space" gives a full disk."""


@dataclass(frozen=True)
class Drill:
    """What to break, and where in the chain."""

    fault: str
    stage: str


DRILLS = (
    *(Drill("stage killed", stage) for stage in ("download", "frames", "split", "backbone", "backbone")),
    *(Drill("stage killed", stage) for stage in ("train@01", "evaluate@01", "evaluate@02", "report")),
    *(Drill("stage killed after an epoch", stage) for stage in ("train@01", "train@02", "train@02")),
    *(Drill("dvc killed", stage) for stage in ("download", "frames", "backbone", "train@01", "train@02", "report")),
    *(Drill("decoder killed", "frames") for _ in range(3)),
    *(Drill("disk full", stage) for stage in ("frames", "backbone", "train@01")),
    Drill("shard truncated", "train@01"),
    Drill("gallery truncated", "evaluate@02"),
    Drill("checkpoint truncated", "evaluate@01"),
    Drill("shard truncated, in DVC's cache too", "train@01"),
    Drill("gallery truncated, in DVC's cache too", "evaluate@02"),
    Drill("checkpoint truncated, in DVC's cache too", "train@02"),
    *(Drill("decoder out of memory", "frames") for _ in range(3)),
)

DAMAGED = {
    "shard": "data/frames/shard-0000.zip",
    "gallery": "data/gallery/after-01/task-01.safetensors",
    "checkpoint": "models/task-01/adapters.safetensors",
}


@dataclass
class Outcome:
    """How a drill went."""

    moment: str = ""
    said: list[str] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    runs: int = 0
    seconds: float = 0.0
    hashes: dict[str, str] = field(default_factory=dict)

    def line(self) -> str:
        """One cell of the table."""
        said = "".join(f"stopped: *{line}*; " for line in self.said)
        if self.failures:
            return f"{said}FAILED: {'; '.join(self.failures)}"
        return f"{said}same results after {self.runs} more `dvc repro`"


class Skipped(Exception):
    """A drill that this machine cannot do; the message says why."""


class Fault:
    """Breaks one thing in a project whose chain is done up to before a stage.

    Parameters
    ----------
    project : Project
    stage : str
    seconds : float
        CPU time of the undisturbed stage.
    rng : Random
        Draws the moment.
    """

    def __init__(self, project: Project, stage: str, seconds: float, rng: random.Random) -> None:
        self.project, self.stage, self.seconds, self.rng = project, stage, seconds, rng
        self.moment = ""
        self.mount: Path | None = None

    def inject(self, fault: str) -> Repro:
        """Run `dvc repro` and break it; return it ended, or with a child of the killed DVC still alive."""
        kind = fault.split(",")[0]
        if kind.endswith("truncated"):
            return self._truncated(DAMAGED[kind.split()[0]], in_cache="cache" in fault)
        if kind == "disk full":
            return self._disk_full()
        run = self.project.repro()
        actions: dict[str, Callable[[Repro], None]] = {
            "stage killed": self._kill_stage,
            "stage killed after an epoch": self._kill_after_epoch,
            "dvc killed": self._kill_dvc,
            "decoder killed": lambda run: self._decoder(run).kill(),
            "decoder out of memory": self._starve,
        }
        try:
            actions[kind](run)
            run.wait()
        except BaseException:
            run.end()
            raise
        return run

    def _kill_stage(self, run: Repro) -> None:
        self._moment(run).kill()

    def _kill_after_epoch(self, run: Repro) -> None:
        process = self._stage_process(run)
        _until(lambda: list((self.project.folder / ".cache/resume").glob("*.pt")), "an epoch to end")
        process.kill()
        self.moment = "resume file written"

    def _kill_dvc(self, run: Repro) -> None:
        self._moment(run)
        run.process.kill()

    def _stage_process(self, run: Repro) -> psutil.Process:
        """Wait for the stage in question."""
        return _until(
            lambda: next((process for process in _stages(run) if _name(process) == self.stage), None),
            f"{self.stage} to start",
        )

    def _moment(self, run: Repro) -> psutil.Process:
        """Wait until the stage has used a random share of its CPU time, which hardly depends on other programs."""
        process = self._stage_process(run)
        used, until = 0.0, self.rng.uniform(0, self.seconds)
        while used < until and process.is_running():
            time.sleep(0.005)
            used = cpu_seconds(process) or until
        self.moment = f"after {until:.2f} s of CPU time"
        if process.is_running():
            return process
        return _until(lambda: next(_stages(run), None), "another stage to start")  # it was faster: take the next one

    def _decoder(self, run: Repro) -> psutil.Process:
        """One of the decoding processes, as soon as it is there or a moment later."""
        process = _until(lambda: next(_decoders(run), None), "a decoder to start")
        wait = self.rng.uniform(0, 0.2)
        time.sleep(wait)
        self.moment = f"{wait:.2f} s after it started"
        return next(_decoders(run), process)

    def _starve(self, run: Repro) -> None:
        process = _until(lambda: next(_decoders(run), None), "a decoder to start")
        spare = self.rng.randrange(0, 2 << 20)
        limit = process.memory_info().vms + spare
        process.rlimit(psutil.RLIMIT_AS, (limit, limit))
        self.moment = f"{spare >> 10} KB left"

    def _truncated(self, name: str, in_cache: bool) -> Repro:
        path = self.project.folder / name
        share = self.rng.uniform(0.05, 0.95)
        if in_cache:
            self._link_to_cache(path)
        os.truncate(path, int(path.stat().st_size * share))
        self.moment = f"cut to {share:.0%}"
        run = self.project.repro()
        run.wait()
        return run

    def _link_to_cache(self, path: Path) -> None:
        """Make an output one file with its copy in DVC's cache, as `dvc checkout` does."""
        size = path.stat().st_size
        cached = self.project.folder / ".dvc/cache/files/md5"
        same = (item for item in cached.glob("*/*") if item.stat().st_size == size)
        item = next(item for item in same if item.read_bytes() == path.read_bytes())
        path.unlink()
        os.link(item, path)

    def _disk_full(self) -> Repro:
        spare = self.rng.randrange(20, 200) << 10
        used = int(subprocess.check_output(["du", "-s", "-B1", self.project.folder]).split()[0])
        self._remount(used + spare)
        self.moment = f"{spare >> 10} KB free"
        run = self.project.repro()
        run.wait()
        return run

    def _remount(self, size: int) -> None:
        subprocess.run(["mount", "-o", f"remount,size={size}", self.project.folder], check=True)

    def follow(self, advice: str) -> None:
        """Do what an error line says."""
        if process := re.search(r"still running here as process (\d+)", advice):
            _until(lambda: _ended(int(process[1])), "the process that lives on to end")
        elif re.search(r"disk (is )?full|No space left", advice):
            used = int(subprocess.check_output(["du", "-s", "-B1", self.project.folder]).split()[0])
            self._remount(used + SPARE + (60 << 20))
        elif "structalign repair" in advice:
            self.project.call(sys.executable, "-m", "structalign", "repair")


def _ended(pid: int) -> bool:
    """Whether a process is gone, or waits for nothing but being buried by its parent."""
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def cpu_seconds(process: psutil.Process) -> float:
    """CPU time that a process has used; 0 if it is gone."""
    try:
        times = process.cpu_times()
    except psutil.NoSuchProcess:
        return 0.0
    return times.user + times.system


def _until(ready: Callable[[], object], what: str, timeout: float = 300) -> psutil.Process:
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        if found := ready():
            return found  # type: ignore[return-value]
        time.sleep(0.01)
    raise RuntimeError(f"waited {timeout:.0f} s in vain for {what}")


def _command(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except (psutil.NoSuchProcess, psutil.ZombieProcess):
        return []


def _name(process: psutil.Process) -> str:
    """Name of the DVC stage that a process is, such as train@01."""
    line = _command(process)
    return "@".join([line[2].removeprefix("stages."), *line[4:5]]) if len(line) > 2 else ""


def _stages(run: Repro) -> Iterator[psutil.Process]:
    for process in run.family():
        line = _command(process)
        if line[1:2] == ["-m"] and line[2].startswith("stages."):
            yield process


def _decoders(run: Repro) -> Iterator[psutil.Process]:
    """Children of a fork server below the stage `frames`."""
    for stage in _stages(run):
        if _command(stage)[2] != "stages.frames":
            continue
        for server in stage.children():
            if "forkserver" in " ".join(_command(server)):
                yield from server.children()


def error_lines(output: str) -> list[str]:
    """Lines that say what went wrong: the stages', or DVC's own if no stage said anything."""
    lines = [line.strip() for line in output.split("\n")]
    ours = [line.split("ERROR", 1)[1].strip() for line in lines if re.match(r"\d\d:\d\d:\d\d ERROR ", line)]
    return ours or [line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR: ")]


def recover(fault: Fault, first: Repro, expected: dict[str, str]) -> Outcome:
    """Run `dvc repro` until it is through, following what it says in between."""
    outcome = Outcome()
    say(outcome, first.output(), fault)
    for _ in range(3):
        run = fault.project.repro()
        status, output = run.wait(), run.output()
        run.end()
        outcome.runs += 1
        if status == 0:
            break
        if not say(outcome, output, fault):
            outcome.failures.append(f"exit status {status} without an error line")
    else:
        outcome.failures.append("three times `dvc repro` were not enough")
    outcome.hashes = {} if outcome.failures else fault.project.results()
    different = sorted(
        name for name in expected.keys() | outcome.hashes.keys() if expected.get(name) != outcome.hashes.get(name)
    )
    if different and not outcome.failures:
        outcome.failures.append(f"other results: {', '.join(different[:5])} ({len(different)})")
    return outcome


def say(outcome: Outcome, output: str, fault: Fault) -> bool:
    """Note the one error line of a run that stopped, and do what it says; False if there was none."""
    if "Traceback" in output:
        outcome.failures.append(f"a traceback: {output.rstrip().splitlines()[-1][:200]}")
    lines = [line for line in error_lines(output) if "exited with -9" not in line]
    if len(lines) > 1:
        outcome.failures.append(f"{len(lines)} error lines: {' / '.join(lines)[:400]}")
    outcome.said += [line.replace(f"{fault.project.folder}/", "") for line in lines[:1]]
    for line in lines[:1]:
        fault.follow(line)
    return bool(lines)


@contextmanager
def place(drill: Drill, folder: Path) -> Iterator[Path]:
    """An empty folder for a drill's project: on a disk of its own if the disk is to fill up."""
    folder.mkdir()
    mounted = drill.fault == "disk full"
    if mounted:
        if os.geteuid():
            raise Skipped("a small disk can be mounted by root only")
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1g", "tmpfs", folder], capture_output=True)
        if done.returncode:
            raise Skipped(f"no tmpfs can be mounted here: {done.stderr.decode().strip()}")
    try:
        yield folder
    finally:
        if mounted:
            subprocess.run(["umount", folder], check=True)
        shutil.rmtree(folder, ignore_errors=True)


def undisturbed(folder: Path) -> tuple[Project, dict[str, float]]:
    """Run the chain once; return the project and the CPU time of each stage."""
    project = Project.create(folder)
    run = project.repro()
    used = dict.fromkeys(STAGES, 0.0)
    while run.process.poll() is None:
        for process in _stages(run):
            name = _name(process)
            if name in used:
                used[name] = max(used[name], cpu_seconds(process))
        time.sleep(0.02)
    if run.wait():
        raise RuntimeError(f"the undisturbed chain failed:\n{run.output()[-4000:]}")
    run.end()
    return project, used


def perform(drill: Drill, project: Project, folder: Path, seconds: float, rng: random.Random) -> Outcome:
    """Break a copy of the undisturbed project and let it recover."""
    began = time.monotonic()
    expected = project.results()
    with place(drill, folder):
        copy = project.copy(folder)
        copy.forget(drill.stage)
        fault = Fault(copy, drill.stage, seconds, rng)
        first = fault.inject(drill.fault)
        try:
            outcome = recover(fault, first, expected)
            if "epoch" in drill.fault:
                _require_resumed(fault, outcome)
        finally:
            first.end()
    outcome.moment, outcome.seconds = fault.moment, time.monotonic() - began
    return outcome


def _require_resumed(fault: Fault, outcome: Outcome) -> None:
    if "resuming after epoch" not in fault.project.folder.with_suffix(".log").read_text():
        outcome.failures.append("the task began anew")


def table(rows: list[tuple[Drill, Outcome | str]]) -> str:
    """The drills as Markdown."""
    lines = ["| | fault | stage | moment | outcome | seconds |", "|---|---|---|---|---|---|"]
    for number, (drill, outcome) in enumerate(rows, 1):
        if isinstance(outcome, str):
            cells = ["", f"skipped: {outcome}", ""]
        else:
            cells = [outcome.moment, outcome.line().replace("|", "/"), f"{outcome.seconds:.0f}"]
        lines.append(f"| {' | '.join([str(number), drill.fault, drill.stage, *cells])} |")
    return "\n".join(lines)


def interrupted(expected: dict[str, str], rows: list[tuple[Drill, Outcome | str]]) -> str:
    """Hashes of a training that was never interrupted beside those of one that was killed and resumed."""
    name = "train@02"
    found = [
        outcome
        for drill, outcome in rows
        if drill == Drill("stage killed after an epoch", name) and isinstance(outcome, Outcome)
    ]
    lines = ["| file | uninterrupted | killed after an epoch, then resumed |", "|---|---|---|"]
    for path, checksum in expected.items():
        if found and path.startswith(("models/task-02/", "plots/loss/task-02")):
            lines.append(f"| {path} | `{checksum[:16]}` | `{found[0].hashes.get(path, 'absent')[:16]}` |")
    return "\n".join(lines)


def report(seed: int, rows: list[tuple[Drill, Outcome | str]], expected: dict[str, str], seconds: float) -> str:
    """All that is written to the output file."""
    done = [outcome for _, outcome in rows if isinstance(outcome, Outcome)]
    good = sum(not outcome.failures for outcome in done)
    return f"""# Fault drill

`make drill` on {machine()}; seed {seed}, {seconds:.0f} s in all: **{good} of {len(done)}** drills
ended with the results of an undisturbed run, {len(rows) - len(done)} were skipped.

Each drill breaks a copy of a small chain (K = 2) that is done up to before the named stage. *Stopped* is the line
that DVC's run ended with; what it says was done before the next `dvc repro`. Compared are the bytes of
{len(expected)} files: split, frames, models, galleries, records, tables, loss curves, and the summary apart from
seconds and memory.

{table(rows)}

## Interrupted and uninterrupted training

SHA-256 (first 16 digits) of what the stage `train@02` wrote:

{interrupted(expected, rows)}
"""


def main() -> None:
    """Parse the command line, perform the drills, write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0, help="moments follow from it")
    parser.add_argument("--minutes", type=int, default=20, help="no drill starts later (default: %(default)s)")
    parser.add_argument("--only", default="", help="perform only drills whose fault or stage holds this text")
    parser.add_argument("--output", type=Path, help="Markdown file for the table")
    args = parser.parse_args()
    began = time.monotonic()
    rows: list[tuple[Drill, Outcome | str]] = []
    with tempfile.TemporaryDirectory(prefix="drill-") as temporary:
        project, seconds = undisturbed(Path(temporary) / "undisturbed")
        print(f"undisturbed: {time.monotonic() - began:.0f} s", flush=True)
        chosen = [drill for drill in DRILLS if args.only in f"{drill.fault} {drill.stage}"]
        for number, drill in enumerate(chosen, 1):
            rng = random.Random(f"{args.seed}-{number}-{drill}")
            folder = Path(temporary) / f"drill-{number:02d}"
            try:
                if time.monotonic() - began > 60 * args.minutes:
                    raise Skipped(f"{args.minutes} minutes are over")
                rows.append((drill, perform(drill, project, folder, seconds[drill.stage], rng)))
            except Skipped as reason:
                rows.append((drill, str(reason)))
            except (RuntimeError, psutil.Error, subprocess.SubprocessError) as error:
                rows.append((drill, Outcome(failures=[f"not performed: {' '.join(str(error).split())[:200]}"])))
            print(table(rows).splitlines()[-1], flush=True)
        text = report(args.seed, rows, project.results(), time.monotonic() - began)
    print(text)
    if args.output:
        atomic_write_text(args.output, text)
    failed = [outcome for _, outcome in rows if isinstance(outcome, Outcome) and outcome.failures]
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
