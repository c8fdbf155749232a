"""The page of a run: what stands on it, that it needs nothing from elsewhere, and that captions cannot break out."""

from __future__ import annotations

import base64
import re
from html.parser import HTMLParser
from typing import Any

import pytest

from structalign.report.page import FIGURES, render
from structalign.report.run import Run

PICTURE = base64.b64encode(b"\xff\xd8 a picture").decode()
HOSTILE = "\"><script>alert(1)</script><img src=x onerror='alert(2)'>{{ 7 * 7 }}</q><!--"
VOID = {"meta", "img", "br"}


class Page(HTMLParser):
    """Collects elements and text, and notices what is not closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data

    def of_class(self, name: str) -> list[tuple[str, dict[str, str | None]]]:
        return [element for element in self.elements if name in (element[1].get("class") or "").split()]


def run_with(shown: dict[str, Any], **changes: Any) -> Run:
    row = {"after": 1, "r1": 12.345, "r5": 20.0, "r10": 30.0, "medr": 4.0, "meanr": 5.0, "bwf": 6.789, "A": [12.3]}
    task = {"task": 1, "categories": 2, "queries": 10, "videos": 10, "missing": 0}
    facts = {"method": "structalign", "variant": "method", "data": "creatures", "num_tasks": 1, "seed": 3}
    facts |= {"select": "last", "protocol": "fewshot", "data_fingerprint": "ab" * 8, "tasks": [task], "rows": [row]}
    return Run(**{**facts, **changes}, shown=shown)


def examples(caption: str = "a caption", category: str = "a category", clip: str = "clip") -> dict[str, Any]:
    """One query: its own video is 3, video 4 is of its category, video 5 of another."""
    history = [
        {"after": 1, "rank": 2, "of": 10, "top": [4, 3]},
        {"after": 2, "rank": 17, "of": 20, "top": [4, 5]},
    ]
    video = {"clip": clip, "task": 1, "category": category, "caption": caption, "pictures": [PICTURE]}
    own = {**video, "pictures": [PICTURE] * 3}
    videos = {"3": own, "4": video, "5": {**video, "category": "another"}}
    return {
        "top": 2,
        "queries": [{"kind": "lost", "task": 1, "query": caption, "video": 3, "history": history}],
        "videos": videos,
    }


def test_a_ceiling_below_100_is_said_and_geometry_is_explained() -> None:
    row = {"after": 1, "r1": 12.0, "r5": 20.0, "r10": 30.0, "medr": 4.0, "meanr": 5.0, "bwf": 0.0, "A": [12.0]}
    plain = Page(render(run_with({}, rows=[{**row, "r1_ceiling": 100.0}]), {"loss": b"png"}))
    assert "share captions" not in plain.text
    assert "measures of geometry" not in plain.text
    told = {"r1_ceiling": 97.3, "geometry": {"text": {"alignment": 0.5}}}
    page = Page(render(run_with({}, rows=[{**row, **told}]), {"loss": b"png"}))
    assert page.open == []
    assert "no model can exceed R@1 = 97.3%" in page.text
    assert "alignment (-1 to 1; ideal 1, ↑ higher is better)" in page.text


def test_a_metric_that_applies_after_later_tasks_alone_has_an_empty_cell_before() -> None:
    row = {"r1": 12.0, "r5": 20.0, "r10": 30.0, "medr": 4.0, "meanr": 5.0, "bwf": 0.0, "A": [12.0]}
    rows = [{**row, "after": 1}, {**row, "after": 2, "rare_r1": 43.25}]
    page = Page(render(run_with({}, rows=rows), {}))
    assert page.open == []
    assert "43.2" in page.text


def test_results_are_marked_by_sign_and_word_and_ranks_are_given() -> None:
    page = Page(render(run_with(examples()), {}))
    assert page.open == []
    labels = [attributes["aria-label"] for _, attributes in page.of_class("mark") if "aria-label" in attributes]
    near, hit, miss = "another video of its category", "the right video", "another category"
    assert labels == [near, hit, near, miss]
    kinds = [(attributes["class"] or "").split()[-1] for _, attributes in page.of_class("result")]
    assert kinds == ["near", "hit", "near", "miss"]
    assert "✓ rank 2" in page.text
    assert "✗ rank 17" in page.text
    assert len([attributes for tag, attributes in page.elements if tag == "img"]) == 3 + 4


def test_header_says_which_run_it_is() -> None:
    text = Page(render(run_with(examples()), {})).text
    for part in ("structalign on creatures", "12.35", "6.79", "K (tasks)1", "seed3", "Found when learnt, lost since"):
        assert part in re.sub(r"\s*\n\s*", "", text), part
    assert "Warning" not in text


def test_warnings_about_the_numbers_are_shown() -> None:
    task = {"task": 1, "categories": 2, "queries": 10, "videos": 10, "missing": 4}
    page = Page(render(run_with(examples(), select="best_on_test", tasks=[task]), {}))
    assert len(page.of_class("warning")) == 2
    assert "epoch picked on the test set" in page.text
    assert "4 videos could not be decoded" in page.text


def test_captions_names_and_ids_cannot_break_out() -> None:
    plain = Page(render(run_with(examples()), {}))
    shown = examples(HOSTILE, HOSTILE, HOSTILE)
    shown["videos"]["4"]["pictures"] = [HOSTILE]
    hostile = Page(render(run_with(shown, data=HOSTILE), {}))
    assert hostile.open == []
    # the same elements with the same attributes, whatever their values
    assert [(tag, list(attributes)) for tag, attributes in hostile.elements] == [
        (tag, list(attributes)) for tag, attributes in plain.elements
    ]
    assert HOSTILE in hostile.text


def test_nothing_comes_from_elsewhere() -> None:
    text = render(run_with(examples()), dict.fromkeys(FIGURES, b"\x89PNG"))
    page = Page(text)
    assert {tag for tag, _ in page.elements}.isdisjoint({"script", "link", "iframe", "object", "embed", "a"})
    assert not re.search(r"https?:|url\(|@import|//[a-z]", text)
    policy = next(attributes for tag, attributes in page.elements if "http-equiv" in attributes)
    assert "default-src 'none'" in (policy["content"] or "")
    assert not any(name.startswith("on") for _, attributes in page.elements for name in attributes)


def test_figures_are_listed_in_order_and_missing_ones_left_out() -> None:
    page = Page(render(run_with(examples()), {"drift": b"2", "recall_by_task": b"1", "unknown": b"3"}))
    sources = [attributes["src"] for tag, attributes in page.elements if tag == "img"][-2:]
    assert sources == ["data:image/png;base64,MQ==", "data:image/png;base64,Mg=="]


@pytest.mark.parametrize("shown", [{}, {"top": 0, "queries": [], "videos": {}}])
def test_a_run_without_examples_has_a_page(shown: dict[str, Any]) -> None:
    page = Page(render(run_with(shown), {}))
    assert page.open == []
    assert "What queries find" not in page.text
    assert "12.35" in page.text
