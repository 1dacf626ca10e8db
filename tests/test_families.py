"""Every row of the table of families: exact at every position, or refused with the reason."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from family_check import POSITIONS, check_position, run
from family_zoo import Zoo, make_checkpoint
from zoo_dense import DENSE
from zoo_mixture import MIXTURE
from zoo_multimodal import MULTIMODAL
from zoo_recurrent import RECURRENT

from blockexpand import families
from blockexpand.families.layer_vocabulary import COPIED
from blockexpand.families.refused import REFUSED

ZOO = (*DENSE, *MIXTURE, *RECURRENT, *MULTIMODAL)
# Rows of which no checkpoint is made here, because another recipe builds the same classes.
SAME_CLASSES = {
    "gpt-sw3": "gpt2",
    "qwen2_vl_text": "qwen2_vl",
    "qwen2_5_vl_text": "qwen2_5_vl",
    "qwen3_vl_text": "qwen3_vl",
    "qwen3_vl_moe_text": "qwen3_vl_moe",
    "mllama_text_model": "mllama",
}


@pytest.mark.filterwarnings("ignore:Casting complex values to real")  # a vision tower's buffer
@pytest.mark.parametrize("recipe", ZOO, ids=lambda recipe: recipe.name)
def test_an_expansion_is_exact_and_can_learn_or_is_refused(
    recipe: Zoo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "fsync", lambda file: None)  # half of the time, and not the subject
    folder = tmp_path / "source"
    make_checkpoint(recipe, folder)
    source = run(folder, recipe.depth)
    for position in POSITIONS:
        check_position(recipe, source, folder, position, tmp_path / position)


def test_every_row_has_a_recipe() -> None:
    built = {recipe.model_type for recipe in ZOO}
    rows = {SAME_CLASSES.get(model_type, model_type) for model_type in families.FAMILIES}
    assert rows - built == set()


def test_no_model_type_is_in_two_rows() -> None:
    rows = (*families.DENSE, *families.MIXTURE, *families.RECURRENT)
    names = [model_type for row in rows for model_type in row.model_types]
    names += [model_type for row in families.WRAPPERS for model_type in row.model_types]
    names += REFUSED
    assert sorted(names) == sorted(set(names))


def test_no_output_is_copied() -> None:
    """An output of a row may be an input elsewhere only where a layer cannot be both."""
    outputs = {
        output
        for row in families.FAMILIES.values()
        for branch in row.branches
        for form in branch
        for output in form.outputs
    }
    assert outputs & COPIED == set()
