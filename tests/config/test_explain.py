"""Every parameter is documented, and the page of parameters is the schema's."""

from __future__ import annotations

import pytest

from structalign.cli.explain import to_markdown
from structalign.config.explain import Parameter, parameters
from tests.helpers.checkout import ROOT

ROWS = parameters()


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.key)
def test_every_parameter_has_a_meaning_and_values(row: Parameter) -> None:
    assert row.values
    assert row.meaning.partition(") ")[2] if row.meaning.startswith("(data=") else row.meaning


def test_ranges_and_choices_are_said() -> None:
    values = {row.key: row.values for row in ROWS}
    assert values["etf.construction"] == "exact, random"
    assert values["model.dropout"] == "number from 0 below 1"
    assert values["K"] == "whole number from 1 to 99"
    assert "auto" in values["train.devices"]


def test_the_page_of_parameters_is_up_to_date() -> None:
    page = (ROOT / "docs/parameters.md").read_text(encoding="utf-8")
    assert page.strip() == to_markdown(ROWS).strip(), "run: structalign explain --markdown > docs/parameters.md"
