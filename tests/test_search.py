"""What a search prints: which tasks answer, and captions as they are."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from structalign.cli.search import hits_table, parse_tasks
from structalign.search import GallerySearch, Hit, highest
from structalign.util.errors import UserError


def test_which_tasks_answer() -> None:
    assert parse_tasks(None, None, 5) == [5]
    assert parse_tasks(2, None, 5) == [2]
    assert parse_tasks(None, "1,5", 5) == [1, 5]


@pytest.mark.parametrize(
    ("after", "compare", "says"),
    [(0, None, "--after 0: tasks go from 1 to 5"), (None, "1,9", "--compare 1,9"), (None, "1,x", "such as 1,5")],
)
def test_an_unknown_task_is_named(after: int | None, compare: str | None, says: str) -> None:
    with pytest.raises(UserError, match=says):
        parse_tasks(after, compare, 5)


def test_brackets_are_not_markup() -> None:
    hit = Hit(1, "clip[/]", 1.0, "[red]category", 1, "a [bold]caption[/bold] [/]", [("a", 0)])
    console = Console(width=200)
    with console.capture() as capture:
        console.print(hits_table("[link]query[/link]", 1, [hit]))
    for text in ("clip[/]", "[red]category", "a [bold]caption[/bold] [/]", "[link]query[/link]"):
        assert text in capture.get()


@given(st.lists(st.integers(-3, 3), min_size=1, max_size=30), st.integers(0, 30))
def test_the_highest_scores_in_order_and_ties_by_position(values: list[int], count: int) -> None:
    count = min(count, len(values))
    expected = sorted(range(len(values)), key=lambda place: -values[place])[:count]
    assert highest(torch.tensor(values, dtype=torch.float32), count) == expected


def test_scores_that_are_no_numbers_are_refused() -> None:
    search = GallerySearch.__new__(GallerySearch)  # without the files of a run
    search.ranker = SimpleNamespace(search=lambda _: (torch.tensor([1.0, torch.nan]), torch.arange(2), []))  # type: ignore[assignment]
    with pytest.raises(UserError, match="NaN for this query"):
        search.search("a dog", top=1)
