"""Readers that tell a layer's kind from its number: what they see of a layer map, and `keep_phase`.

The expected kinds are computed here from the readers' own formulas, written out once more.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from family_zoo import make_checkpoint
from zoo_dense import DENSE

import blockexpand
from blockexpand.errors import RecipeError
from blockexpand.models.families import FAMILIES
from blockexpand.models.layer_map import LayerMap, map_position
from blockexpand.models.readers import NUMBER_RULES, describe_views, keep_phase, view_layers


def sources(layer_map: LayerMap) -> list[int]:
    return [entry.source for entry in layer_map]


def new(layer_map: LayerMap) -> list[int]:
    return [index for index, entry in enumerate(layer_map) if entry.is_new]


def test_every_rule_is_of_a_family_of_the_table() -> None:
    assert set(NUMBER_RULES) <= set(FAMILIES)


def test_an_interleaved_gemma_2_is_another_function_to_llama_cpp() -> None:
    layer_map = map_position(4, "interleaved", 2)  # 0 1 1* 2 3 3*
    views = view_layers("gemma2", {}, layer_map)
    assert {view.reader for view in views} == {"llama.cpp", "transformers"}
    for view in views:
        # By number 0 2 4 have a window: the originals 2 and 3 are now layers 3 and 4.
        assert (view.moved, view.untrue) == ((3, 4), (2,))
        assert not view.same_function
    (text,) = describe_views(views, layer_map)
    assert "llama.cpp b11549 and transformers before 4.53" in text
    assert "2 of the 4 original layers" in text
    assert "--phase keep" in text


def test_new_layers_at_the_end_are_named_where_they_would_be_another_kind_once_trained() -> None:
    layer_map = map_position(4, "end", 2)
    views = view_layers("gpt_oss", {}, layer_map)
    assert all(view.same_function and view.untrue == (4,) for view in views)
    (text,) = describe_views(views, layer_map)
    assert "once it is trained, new layer 4 would run there as another kind" in text


def test_layers_of_other_tensors_do_not_load_there() -> None:
    layer_map = map_position(8, "end", 1)  # layer 7 attends, 8 would be linear by its number
    views = view_layers("qwen3_next", {}, layer_map)
    assert not any(view.same_function for view in views)
    assert "the model does not load" in describe_views(views, layer_map)[0]


def test_a_family_that_all_readers_read_from_lists_has_no_views() -> None:
    layer_map = map_position(4, "interleaved", 2)
    assert view_layers("olmo3", {}, layer_map) == ()
    assert describe_views((), layer_map) == ()


@pytest.mark.parametrize(
    ("config", "periods"),
    [
        ({}, {"llama.cpp": 6, "mlx-lm": 6, "transformers": 6}),
        ({"sliding_window_pattern": 3}, {"llama.cpp": 6, "mlx-lm": 3, "transformers": 3}),
        # One kind of layers only: no rule can go wrong.
        ({"sliding_window_pattern": 1}, {"llama.cpp": 6}),
    ],
)
def test_a_period_is_what_the_reader_takes_it_from(
    config: dict[str, Any], periods: dict[str, int]
) -> None:
    views = view_layers("gemma3_text", config, map_position(12, "end", 1))
    assert {view.reader: view.period for view in views} == periods


def test_a_pattern_of_letters_is_a_period() -> None:
    layer_map = map_position(8, "interleaved", 2)
    (view,) = view_layers("exaone4", {"sliding_window_pattern": "LLLG"}, layer_map)
    letters = ["LLLG"[index % 4] for index in range(10)]
    assert view.moved == tuple(
        index
        for index, entry in enumerate(layer_map)
        if not entry.is_new and letters[index] != letters[entry.source]
    )
    assert view_layers("exaone4", {"sliding_window_pattern": None}, layer_map) == ()


FAMILY_CONFIGS = [
    ("gemma2", {}),
    ("gemma3_text", {"sliding_window_pattern": 4}),
    ("gpt_oss", {}),
    ("smollm3", {}),
    ("llama4_text", {"interleave_moe_layer_step": 2}),
    ("cohere2", {"sliding_window_pattern": 3}),
    ("qwen3_5_text", {"full_attention_interval": 5}),
    ("llama", {}),
]


@pytest.mark.parametrize(("text_type", "config"), FAMILY_CONFIGS)
@pytest.mark.parametrize("position", ["end", "interleaved", "start"])
@pytest.mark.parametrize("layers", [12, 26, 61])
@pytest.mark.parametrize("count", [1, 2, 5, 8, 24])
def test_keeping_the_phase_leaves_every_layer_its_kind_in_every_reader(
    text_type: str, config: dict[str, Any], position: str, layers: int, count: int
) -> None:
    layer_map = keep_phase(text_type, config, layers, position, count)
    originals = [entry.source for entry in layer_map if not entry.is_new]
    assert originals == list(range(layers))
    for view in view_layers(text_type, config, layer_map):
        assert (view.moved, view.untrue) == ((), ())
    assert new(layer_map)
    # The same arguments with the count that came of it give the same map: `verify` plans again.
    assert keep_phase(text_type, config, layers, position, len(new(layer_map))) == layer_map
    if text_type == "llama":
        assert layer_map == map_position(layers, position, count)


def test_interleaved_blocks_are_whole_periods_at_the_ends_of_even_groups() -> None:
    layer_map = keep_phase("gpt_oss", {}, 12, "interleaved", 4)
    assert new(layer_map) == [6, 7, 14, 15]
    assert sources(layer_map) == [*range(6), 4, 5, *range(6, 12), 10, 11]


def test_a_list_that_breaks_the_phase_is_refused_with_the_nearest_that_does_not() -> None:
    with pytest.raises(RecipeError, match=r"the nearest list is 3,3,3,3,7$"):
        keep_phase("gpt_oss", {}, 8, [3, 3, 3, 7], None)
    with pytest.raises(RecipeError, match=r"the nearest list is 2,2,2,2$"):
        keep_phase("smollm3", {}, 8, [2], None)
    for right in ([3, 3, 7], [2, 2, 2, 2], [7]):
        family = "gpt_oss" if len(right) == 3 else "smollm3"
        assert keep_phase(family, {}, 8, right, None) == map_position(8, right, None)


def test_a_model_shorter_than_a_period_is_refused() -> None:
    with pytest.raises(RecipeError, match="fewer than one period of 6"):
        keep_phase("gemma3_text", {}, 5, "end", 1)


def test_an_expansion_that_keeps_the_phase_is_proven_and_verified(tmp_path: Path) -> None:
    gemma2 = next(recipe for recipe in DENSE if recipe.name == "gemma2")
    make_checkpoint(gemma2, tmp_path / "source")
    made = blockexpand.expand(
        tmp_path / "source",
        tmp_path / "out",
        new_layers=3,
        position="interleaved",
        phase="keep",
        dtype="source",
        check=True,
        verify_after="logits",
    )
    assert len(made.plan.new_layers) == 4
    assert all(view.same_function for view in made.plan.readers)
    assert any("with each new layer in the place of its source" in note for note in made.notes)
    verified, _ = blockexpand.verify(tmp_path / "source", tmp_path / "out")
    assert verified.findings == ()
    assert "--phase keep" in (tmp_path / "out" / "README.md").read_text()
