"""No call in the code can run what comes from elsewhere; docs/security.md lists what is promised."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SOURCES = [path for folder in ("structalign", "stages", "conf") for path in sorted((ROOT / folder).rglob("*.py"))]

NEVER = {
    *("eval", "exec", "os.system", "os.popen", "pickle.load", "pickle.loads", "pickle.Unpickler", "marshal.loads"),
    *("yaml.load", "yaml.unsafe_load", "yaml.full_load", "joblib.load", "shelve.open", "shutil.unpack_archive"),
    *("pandas.read_pickle", "pd.read_pickle", "torch.hub.load", "subprocess.getoutput"),
}
"""Calls that run code, or a shell, or unpack without asking."""

DEMANDED = {"torch.load": ("weights_only", True), "np.load": ("allow_pickle", False)}
"""Calls that are safe with an argument alone."""


def calls(text: str) -> Iterator[tuple[str, ast.Call]]:
    """Yield every call and its dotted name; methods of values appear under their last names."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


def complaints(text: str) -> list[str]:
    found = []
    for name, call in calls(text):
        given = {word.arg: getattr(word.value, "value", None) for word in call.keywords}
        if name in NEVER or name.endswith(".extractall") or given.get("shell"):
            found.append(f"line {call.lineno}: {name}")
        if name in DEMANDED and given.get(DEMANDED[name][0]) is not DEMANDED[name][1]:
            found.append(f"line {call.lineno}: {name} without {DEMANDED[name][0]}={DEMANDED[name][1]}")
    return found


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_call_can_run_data(path: Path) -> None:
    assert complaints(path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    "text",
    [
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "np.load(path, allow_pickle=True)",
        "subprocess.run(line, shell=True)",
        "archive.extractall(folder)",
        "yaml.load(text)",
        "eval(text)",
        "pickle.load(stream)",
    ],
)
def test_the_check_finds_every_forbidden_call(text: str) -> None:
    assert complaints(text)
