"""What a terminal, a log file and a user see: bars, lines, errors and help."""

from __future__ import annotations

import fnmatch
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from tqdm import tqdm

from stages.run import describe_io
from structalign.util import log

ROOT = Path(__file__).resolve().parents[2]


def test_off_a_terminal_a_short_bar_says_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    assert list(log.progress(range(20_000), desc="short")) == list(range(20_000))
    assert capfd.readouterr().err == ""


def test_off_a_terminal_a_long_bar_writes_whole_lines(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log, "_SECONDS", 0.02)
    bar = log.progress_bar(1000, "long", "step")
    start = bar._time()
    clock = iter(range(1, 10_000))
    bar._time = lambda: start + 0.005 * next(clock)  # each step takes 5 ms, so every fourth may be written
    for _ in range(1000):
        bar.set_postfix(loss="1.0", refresh=False)
        bar.update()
    bar.close()
    written = capfd.readouterr().err
    lines = written.splitlines()
    assert 2 <= len(lines) <= 250
    assert "\r" not in written
    assert all("long:" in line and "/1000" in line and "loss=1.0" in line for line in lines)


def test_on_a_terminal_there_is_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    with log.progress_bar(3) as bar:
        assert type(bar) is tqdm


def run(*command: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", *command], cwd=cwd, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["structalign", "params", "K=0"], "K"),
        (["structalign", "params", "nonsense.key=1"], "nonsense"),
        (["stages.split", "--params", "absent.yaml"], "absent.yaml"),
    ],
)
def test_an_error_is_one_line_and_a_traceback_on_demand(arguments: list[str], says: str, tmp_path: Path) -> None:
    output = ["--output", str(tmp_path / "params.yaml")] if "params" in arguments else []
    plain = run(*arguments, *output)
    assert plain.returncode == 1
    assert len(plain.stderr.splitlines()) == 1
    assert says in plain.stderr
    detailed = run(*arguments, *output, "--debug")
    assert detailed.returncode == 1
    assert "Traceback" in detailed.stderr


@pytest.mark.parametrize("name", yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"])
def test_help_names_what_dvc_declares(name: str) -> None:
    text = describe_io(name)
    assert "${" not in text
    assert all(word in text for word in ("reads", "parameters", "writes"))
    assert "stages/" not in text
    rows = [line.split(maxsplit=1) for line in text.splitlines()[1:]]
    shown = {label: items.split(", ") for label, items in rows}
    stage = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"][name]
    stage = stage.get("do", stage)
    declared = {
        "reads": [item for item in stage["deps"] if not item.startswith(("stages/", "structalign/"))],
        "parameters": stage["params"],
        "writes": [*stage["outs"], *(path for item in stage.get("metrics", []) for path in item)],
    }
    for label, items in declared.items():
        for item in items:
            assert fnmatch.filter(shown[label], re.sub(r"\$\{.*?\}", "*", item)), item


def test_help_of_other_commands_is_unchanged() -> None:
    assert describe_io("search") == ""
