"""The card says what a placement costs, where it was measured."""

from __future__ import annotations

from pathlib import Path

import pytest

import blockexpand


@pytest.mark.parametrize(
    ("position", "new_layers", "is_said"),
    [("end", 2, True), ("interleaved", 4, False), ("interleaved", 2, False), ("start", 1, False)],
)
def test_the_card_of_blocks_at_the_end_says_that_they_train_worse(
    position: str, new_layers: int, is_said: bool, tiny_mistral: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    blockexpand.expand(tiny_mistral, out, new_layers=new_layers, position=position)
    card = " ".join((out / "README.md").read_text().split())
    assert ("Blocks at the end train worse" in card) is is_said
