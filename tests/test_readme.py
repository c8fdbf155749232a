"""Every command of the README is real: its overrides compose, its modules, targets, files and options exist."""

from __future__ import annotations

import argparse
import re
import shlex
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
import yaml
from dvc.cli import parse_args

from structalign.__main__ import command_names, main
from structalign.config.compose import compose
from tests.helpers.checkout import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")
PLACES = ("data/", "models/", "metrics/", "plots/")
"""Where outputs lie: named in the README, made by a run."""


BLOCKS = re.findall(r"^```\w*\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
CODE = re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```", "", README, flags=re.MULTILINE | re.DOTALL))


def commands() -> list[str]:
    """Commands in fenced blocks and in running text, without their comments and placeholders."""
    lines = [line for block in BLOCKS for line in block.splitlines()] + CODE
    parts = [part.split(" #")[0].strip() for line in lines for part in line.split("&&")]
    found = [part for part in dict.fromkeys(parts) if re.match(r"(make|dvc|structalign) \w", part)]
    return [re.sub(r"\bN$", "1", command) for command in found if "key=value" not in command]


def mentioned(command: str) -> bool:
    """Whether a program is only named in running text, without what it needs to run."""
    return len(command.split()) == 2 and not any(command in block for block in BLOCKS)


def starting(*words: str) -> list[str]:
    found = [command for command in commands() if command.split()[: len(words)] == list(words)]
    assert found, f"the README has no {' '.join(words)} left: this test reads nothing"
    return found


def overrides_of(command: str) -> list[str]:
    words = shlex.split(command)
    if words[:2] == ["structalign", "params"]:
        return [word for word in words if "=" in word]
    return [value for flag, value in pairwise(words) if flag == "-S"]


def composing() -> list[str]:
    """Commands that set parameters, and the overrides that the text names on their own (`-S key=value`)."""
    loose = [f"dvc exp run {_data_before(code)}{code}" for code in CODE if code.startswith("-S ")]
    own = starting("structalign", "params")
    return [command for command in [*starting("dvc", "exp"), *own, *loose] if overrides_of(command)]


def _data_before(code: str) -> str:
    """The data set that the text speaks of if it names one of its keys."""
    chosen = re.findall(r"-S (data=\w+)", README[: README.index(f"`{code}`")])
    return f"-S {chosen[-1]} " if code.startswith("-S data.") else ""


@pytest.mark.parametrize("command", composing())
def test_overrides_compose(command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    sweeps = [override for override in overrides_of(command) if "," in override]
    assert not sweeps or "--queue" in command
    # a sweep is composed once for each of its values
    chosen = [re.sub(r"=([^,]*),.*", r"=\1", override) for override in overrides_of(command)]
    compose(chosen, tmp_path / "params.yaml")
    composed = yaml.safe_load((tmp_path / "params.yaml").read_text())
    for override in chosen:
        key, value = override.split("=", 1)
        found = composed
        for part in key.split("."):
            found = found[part] if isinstance(found, dict) else found
        if not isinstance(found, dict):  # a group, such as data=msrvtt, is a section of its own
            assert found == yaml.safe_load(value), override


@pytest.mark.parametrize("command", starting("dvc"))
def test_dvc_knows_the_command(command: str) -> None:
    parse_args(shlex.split(command)[1:])


@pytest.mark.parametrize("command", starting("make"))
def test_make_has_the_target(command: str) -> None:
    targets = re.search(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert targets
    for word in shlex.split(command)[1:]:
        assert "=" in word or word in targets[1].split()
    assert (
        subprocess.run(["make", "--dry-run", *shlex.split(command)[1:]], cwd=ROOT, capture_output=True).returncode
        == 0
    )


@pytest.mark.parametrize("command", starting("structalign"))
def test_commands_take_the_options(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Parse the command line for real, and stop before anything runs."""
    words = shlex.split(command)
    assert words[1] in command_names()
    parsed: list[argparse.Namespace] = []
    real = argparse.ArgumentParser.parse_args

    def parse_only(parser: argparse.ArgumentParser, *arguments: object) -> argparse.Namespace:
        parsed.append(real(parser))
        raise SystemExit(0)

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse_only)
    monkeypatch.setattr(sys, "argv", words)
    with pytest.raises(SystemExit) as stopped:
        main()
    assert parsed or mentioned(command), stopped.value


def named_files() -> list[str]:
    links = [target for target in re.findall(r"\]\(([^)\s]+)\)", README) if "://" not in target]
    files = [word for word in CODE if re.fullmatch(r"[\w./-]+(/|\.(py|md|yaml|json|toml|txt|html))", word)]
    return sorted({*links, *files})


@pytest.mark.parametrize("name", named_files())
def test_files_and_links_exist(name: str) -> None:
    if name.startswith(PLACES):
        # Declared as a stage's output, or written by a module that is no stage.
        sources = [path for folder in ("structalign", "stages") for path in (ROOT / folder).rglob("*.py")]
        declared = "".join(path.read_text() for path in [ROOT / "dvc.yaml", *sources])
        name = "/".join(name.split("/")[:2]) if name.startswith("plots/compare/") else name
        fixed = re.split(r"<|NN", name)[0].rstrip("/").removesuffix("task-")
        assert fixed.rstrip("/") in declared
        return
    if "/" in name or (ROOT / name).exists():
        assert (ROOT / name).exists()
    else:  # a module, named without its folder
        assert any(list((ROOT / folder).rglob(name)) for folder in ("structalign", "stages", "conf", "tests"))
