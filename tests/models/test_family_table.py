"""docs/families.md is generated: it must name every family that the table of families has."""

from __future__ import annotations

import re

import family_table
import list_missing_families
import pytest
from test_families import SAME_CLASSES

from blockexpand.models.families import FAMILIES, MULTIMODAL
from blockexpand.models.families.refused import REFUSED


def test_the_page_names_every_family() -> None:
    text = family_table.TARGET.read_text(encoding="utf-8")
    named = set(re.findall(r"`([^`]+)`", text))
    assert {*FAMILIES, *MULTIMODAL, *REFUSED} - set(SAME_CLASSES) - named == set()


def test_the_page_has_only_exact_results_and_refusals() -> None:
    text = family_table.TARGET.read_text(encoding="utf-8").partition("## Reasons")[0]
    rows = [line.split("|")[3:6] for line in text.splitlines() if line.startswith("| `")]
    assert rows
    for cells in rows:
        for cell in cells:
            assert re.fullmatch(r" (exact|refused \[[0-9]+\]\(#reasons\)) ", cell)


def test_a_family_is_expanded_at_every_position() -> None:
    row = family_table.measure("modernbert-decoder")
    assert row.results[:2] == ("exact", "exact")
    assert row.results[2].startswith("refused: layer 0 has other tensors")


def test_the_page_tells_results_from_refusals(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [
        family_table.Row(model_type="a", name="a", results=("exact", "refused: x", "refused: y")),
        family_table.Row(model_type="a", name="b", results=("exact", "exact", "refused: x")),
    ]
    text = family_table.render(rows)
    assert "| `a` |  | exact | refused [1](#reasons) | refused [2](#reasons) |" in text
    assert "| `a` | b | exact | exact | refused [1](#reasons) |" in text
    assert "1. x\n2. y\n" in text


def test_the_page_has_every_reader_that_goes_by_numbers() -> None:
    text = family_table.TARGET.read_text(encoding="utf-8")
    assert "\n".join(family_table.by_number()) in text


def test_every_model_type_of_the_installed_transformers_has_a_row_or_a_reason() -> None:
    types = list_missing_families.find_types()
    assert len(types) > 100
    assert list_missing_families.find_missing(types) == []
    assert list_missing_families.find_missing({"newformer": "Newformer"}) == ["newformer"]
