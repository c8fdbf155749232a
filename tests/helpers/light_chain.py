"""A project whose chain takes seconds: this checkout's parameters and programs, and stages that only do sums.

What starts, is killed, and goes on is the same as with the real chain: git, DVC, clones, processes. The stages'
source is the text `STAGE` because it must be a file of the project.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[2]

STAGE = """
import csv, json, os, random, sys, time
from pathlib import Path
import yaml

params = yaml.safe_load(Path("params.yaml").read_text())
project = Path(os.environ.get("STRUCTALIGN_PROJECT", "."))
stage = sys.argv[1]
with (project / "calls").open("a") as calls:
    calls.write(stage + "\\n")
if stage == "split":
    if params["etf"]["num_classes"] == 2:
        sys.exit("12:00:00 ERROR   etf.num_classes = 2: too few")
    Path("data/split").mkdir(parents=True)
    Path("data/split/task-01.json").write_text(json.dumps(params["seed"]))
elif stage == "train":
    (project / f"training-{os.getpid()}").touch()
    while (project / "hold").exists():
        time.sleep(0.05)
    Path("models/task-01").mkdir(parents=True)
    number = random.Random(json.dumps([params[key] for key in ("seed", "loss", "method")])).random()
    Path("models/task-01/number").write_text(str(number))
else:
    number = 100 * float(Path("models/task-01/number").read_text())
    summary = {"r1": number, "r5": number, "r10": number, "medr": 2.0, "bwf": 1.0, "val_r1": number}
    summary |= {"method": params["method"]["name"], "trained_parameters": 3, "train_seconds": 0.1}
    summary |= {"peak_memory_mb": 10.0, "data_fingerprint": "d"}
    Path("metrics").mkdir(exist_ok=True)
    Path("metrics/summary.json").write_text(json.dumps(summary))
    Path("plots").mkdir(exist_ok=True)
    with Path("plots/recall_by_task.csv").open("w") as stream:
        csv.writer(stream).writerows([["after", "r1", "bwf"], [1, number, 0.0], [2, number / 2, 1.0]])
"""

TRIAL = """
import json, time
from pathlib import Path
import yaml

weight = yaml.safe_load(Path("params.yaml").read_text())["loss"]["etf_weight"]
for task in range(1, 5):
    Path("metrics").mkdir(exist_ok=True)
    Path("metrics/draft").write_text(json.dumps([100 * weight / n for n in range(1, task + 1)]))
    Path("metrics/draft").rename("metrics/trial.json")
    time.sleep(1.5)
"""

QUICK = """
import subprocess, sys

for stage in ("train", "report"):
    subprocess.run([sys.executable, "-m", "stages.light", stage], check=True)
"""

CHAIN = {
    "split": {"params": ["K", "seed", "data", "split", "etf"], "outs": ["data/split"]},
    "train": {"deps": ["data/split"], "params": ["seed", "method", "loss"], "outs": ["models/task-01"]},
    "report": {
        "deps": ["models/task-01"],
        "params": ["K", "method"],
        "metrics": [{"metrics/summary.json": {"cache": False}}],
        "outs": ["plots/recall_by_task.csv"],
    },
}

KEPT = ("structalign", "conf", ".dvc/config", ".dvcignore", ".gitignore")
STUDY = {"full": [], "finetune": ["method=finetune"], "without CRP": ["loss.crp_weight=0"]}


def _heed_interrupts() -> None:
    """A shell starts programs in the background deaf to SIGINT, and what they start inherits that."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


class LightProject:
    """A repository of its own, in which commands run as a user would call them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        listed = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z", "--", *KEPT]
        for name in subprocess.run(listed, cwd=ROOT, capture_output=True, check=True).stdout.decode().split("\0"):
            if name and (ROOT / name).is_file():
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(ROOT / name, folder / name)
        stages = {name: {"cmd": f"python -m stages.light {name}", **stage} for name, stage in CHAIN.items()}
        # The runner prepares what is before training by these names.
        stages["backbone"] = {"cmd": "mkdir -p models && echo > models/clip", "outs": ["models/clip"]}
        stages["train"] = {"foreach": ["01"], "do": stages["train"]}
        self.write("dvc.yaml", yaml.safe_dump({"stages": stages}, sort_keys=False))
        self.write("stages/light.py", STAGE)
        self.write("stages/trial.py", TRIAL)
        self.write("stages/quick.py", QUICK)
        self.write("conf/study/light.yaml", yaml.safe_dump(STUDY, sort_keys=False))
        self.write(".gitignore", (folder / ".gitignore").read_text() + "/calls\n/hold\n/training-*\n")
        status, printed = self.call("params")
        assert status == 0, printed
        self.git("init", "--quiet")
        self.git("add", "--all")
        self.commit("start")

    def write(self, name: str, text: str) -> None:
        (self.folder / name).parent.mkdir(parents=True, exist_ok=True)
        (self.folder / name).write_text(text)

    def git(self, *arguments: str) -> str:
        command = ["git", "-c", "user.name=tests", "-c", "user.email=tests@example.org", *arguments]
        return subprocess.run(command, cwd=self.folder, check=True, text=True, capture_output=True).stdout

    def commit(self, message: str) -> None:
        self.git("commit", "--quiet", "--all", "--message", message)

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        """Start `structalign ...` in the project."""
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        environment = {**os.environ, "PATH": path, "DVC_NO_ANALYTICS": "1", "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-m", "structalign", *arguments]
        pipe = subprocess.PIPE
        return subprocess.Popen(
            command,
            cwd=self.folder,
            env=environment,
            stdout=pipe,
            stderr=subprocess.STDOUT,
            text=True,
            preexec_fn=_heed_interrupts,
        )

    def call(self, *arguments: str) -> tuple[int, str]:
        """Run `structalign ...`; return its exit status and what it printed."""
        process = self.start(*arguments)
        printed, _ = process.communicate(timeout=500)
        return process.returncode, printed

    def calls(self, stage: str) -> int:
        """How often a stage has run, in whatever clone."""
        path = self.folder / "calls"
        return path.read_text().split().count(stage) if path.exists() else 0

    def trainings(self) -> list[int]:
        """Processes that are or were in training."""
        return [int(path.name.partition("-")[2]) for path in self.folder.glob("training-*")]


def wait_until(condition: Callable[[], bool], seconds: float = 240) -> None:
    """Wait for a condition; fail if it does not come true."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.1)
