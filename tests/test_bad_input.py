"""Every row of the table of bad input, and what a table does not reach.

`pytest tests/test_bad_input.py --bad-input docs/bad-input.md` writes down what each row said.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from structalign.config.schema import ModelConfig
from structalign.model.retriever import Retriever
from structalign.util.errors import UserError
from tests.helpers.bad_cases import CASES, INFO, Case, small_clip

ALLOWED = {"data/missing-videos.txt", "file.bin.lock", "file.bin.part", "file.bin.part.validator"}
"""What a refused input may leave: the list of videos to add, and what the next download goes on with."""

said: dict[str, str] = {}


def name_of(case: Case) -> str:
    return f"{case.area}: {case.wrong}"


@pytest.fixture(scope="module", autouse=True)
def _written_down(request: pytest.FixtureRequest) -> Iterator[None]:
    yield
    if target := request.config.getoption("--bad-input"):
        Path(target).write_text(document())


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder, and published splits as small as those of the cases."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        "structalign.data.datasets.published_splits.PUBLISHED_SIZES", {"msrvtt": (8, 4), "actnet": (8, 4)}
    )
    monkeypatch.setattr("structalign.data.download.BACKOFF", 0.0)
    return tmp_path


@pytest.fixture(scope="module")
def retriever() -> Retriever:
    none = {"vision_adapter": "none", "adapter_layers": 0, "vision_rank": 1, "text_adapter": "none", "experts": 1}
    model = ModelConfig(**none, top_k=1, rank=1, lora_alpha=1, dropout=0)
    return Retriever(small_clip(), INFO, model, num_tasks=1, seed=0)


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("case", CASES, ids=name_of)
def test_row(case: Case, here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    act = case.prepare(here)
    before = files(here)
    if case.refused:
        with pytest.raises(UserError, match=case.refused) as caught:
            act()
        message = str(caught.value)
        assert "\n" not in message
        assert len(message) < 2000
        assert files(here) - before <= ALLOWED
        assert "Traceback" not in capfd.readouterr().err
        said[name_of(case)] = message.replace(f"{here}/", "")
    else:
        assert case.check(act())
        said[name_of(case)] = f"accepted: {case.accepted}"


def cell(text: str) -> str:
    """Text for a cell of a Markdown table."""
    shown = "".join(character if character.isprintable() else repr(character)[1:-1] for character in text)
    return shown.replace("|", "\\|")[:300]


def document() -> str:
    lines = [
        "# Bad input",
        "",
        f"{len(CASES)} cases of `tests/bad_cases.py`, and what each said when `tests/test_bad_input.py` tried it.",
        "Each error is one line, and nothing half-written is left behind.",
        "`pytest tests/test_bad_input.py --bad-input docs/bad-input.md` wrote this.",
    ]
    area = ""
    for case in CASES:
        if case.area != area:
            area = case.area
            lines += ["", f"## {area}", "", "| what is wrong | what comes of it |", "|---|---|"]
        lines.append(f"| {cell(case.wrong)} | {cell(said.get(name_of(case), 'not tried'))} |")
    return "\n".join(lines) + "\n"


def test_rows_have_names_of_their_own() -> None:
    names = [name_of(case) for case in CASES]
    assert len(set(names)) == len(names) >= 60
    assert all(bool(case.refused) != bool(case.accepted) for case in CASES)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.text(max_size=200), min_size=1, max_size=4))
def test_any_caption_becomes_words_between_start_and_end(retriever: Retriever, captions: list[str]) -> None:
    tokens = retriever.tokenize(captions)  # [T,L]
    start, end = 49406, 49407
    assert tokens.shape[0] == len(captions)
    assert 2 <= tokens.shape[1] <= INFO.context_length
    assert (tokens[:, 0] == start).all()
    for row, mask in zip(tokens, retriever.word_mask(tokens), strict=True):
        words = row[mask]
        assert row[len(words) + 1] == end
        assert ((words != start) & (words != end)).all()
