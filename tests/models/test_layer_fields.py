"""Rules of per-layer config fields, against hand-written configs."""

from __future__ import annotations

import math
import re
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from blockexpand.errors import CheckpointError, UnsupportedModelError
from blockexpand.models.families.layer_fields import (
    FieldRule,
    apply_edits,
    indexed,
    leading,
    listed,
    numbered,
    read_kinds,
    rewrite_fields,
)
from blockexpand.models.families.layer_patterns import every, window_after
from blockexpand.models.families.special_fields import (
    attention_types,
    cycled,
    periodic,
    root_of_depth,
    sparse_range,
    sparse_step,
)

INTERLEAVED = (0, 1, 2, 2, 3, 4, 5, 5)  # 6 layers, a clone after layers 2 and 5
END = (0, 1, 2, 3, 4, 5, 5, 5)


def rewrite(rule: FieldRule, config: dict[str, Any], origins: tuple[int, ...]) -> dict[str, Any]:
    before = dict(config)
    edits = rewrite_fields((rule,), config, 6, origins)
    assert config == before
    return {".".join(path): value for path, value in edits.items()}


def test_a_list_follows_its_layers() -> None:
    config = {"layer_types": ["a", "b", "c", "d", "e", "f"]}
    assert rewrite(listed("layer_types"), config, INTERLEAVED) == {
        "layer_types": ["a", "b", "c", "c", "d", "e", "f", "f"]
    }


def test_every_spelling_of_a_list_is_rewritten_in_its_own_words() -> None:
    config = {"layers_block_type": ["x", "y"] * 3, "pattern": "M*M*M*"}
    assert rewrite(listed("layers_block_type", "pattern"), config, END) == {
        "layers_block_type": ["x", "y", "x", "y", "x", "y", "y", "y"],
        "pattern": "M*M*M***",
    }


@pytest.mark.parametrize("value", [["a"] * 5, ["a"] * 7, "abc", 6, {"0": "a"}])
def test_a_list_of_another_length_is_refused(value: Any) -> None:
    with pytest.raises(CheckpointError, match="'layer_types' must have one entry per layer"):
        rewrite(listed("layer_types"), {"layer_types": value}, END)


def test_a_pattern_that_the_new_depth_breaks_is_written_out() -> None:
    rule = listed("layer_types", derive=every(2, last="full", other="window"))
    w, f = "window", "full"
    assert rewrite(rule, {}, INTERLEAVED) == {"layer_types": [w, f, w, w, f, w, f, f]}


def test_a_pattern_that_goes_on_by_itself_stays() -> None:
    rule = listed("layer_types", derive=every(2, last="full", other="window"))
    assert rewrite(rule, {}, (0, 1, 2, 3, 4, 5, 4, 5)) == {}


def test_an_empty_list_counts_as_absent_where_there_is_a_formula() -> None:
    rule = listed("no_rope_layers", derive=every(3, last=0, other=1))
    assert rewrite(rule, {"no_rope_layers": []}, END) == {
        "no_rope_layers": [1, 1, 0, 1, 1, 0, 0, 0]
    }


def test_what_the_library_makes_of_the_last_layer_is_written_out() -> None:
    rule = listed("layer_types", last="full")
    config = {"layer_types": ["window"] * 6}
    assert rewrite(rule, config, END) == {"layer_types": ["window"] * 5 + ["full"] * 3}


def test_one_value_for_all_layers_stays() -> None:
    assert rewrite(listed("moe_topk", or_scalar=True), {"moe_topk": 2}, END) == {}


def test_an_object_keyed_by_layer_is_renumbered() -> None:
    config = {"per_layer_config": {"2": {"head_dim": 8}, "5": {"head_dim": 9}}}
    assert rewrite(numbered("per_layer_config"), config, INTERLEAVED) == {
        "per_layer_config": {
            "2": {"head_dim": 8},
            "3": {"head_dim": 8},
            "6": {"head_dim": 9},
            "7": {"head_dim": 9},
        }
    }


@pytest.mark.parametrize(
    ("first", "old", "new"), [(0, [0, 2], [0, 2, 3]), (1, [1, 3, 6], [1, 3, 4, 7, 8]), (0, [], [])]
)
def test_layer_numbers_follow_their_layers(first: int, old: list[int], new: list[int]) -> None:
    found = rewrite(indexed("attn", first=first), {"attn": old}, INTERLEAVED)
    assert found.get("attn", old) == new


def test_nested_layer_numbers_are_rewritten_in_place() -> None:
    config = {"linear": {"full": [2], "size": 8}}
    edits = rewrite_fields((indexed("linear.full"),), config, 6, INTERLEAVED)
    assert edits == {("linear", "full"): [2, 3]}
    assert apply_edits(config, edits) == {"linear": {"full": [2, 3], "size": 8}}


@pytest.mark.parametrize(("old", "new"), [(0, 0), (2, 2), (3, 4), (5, 6), (6, 8), (7, 8), (28, 28)])
def test_a_count_of_leading_layers_grows_with_them(old: int, new: int) -> None:
    """A count of all layers stays one of all layers; one far past the end stays as it is."""
    found = rewrite(leading("first_k"), {"first_k": old}, INTERLEAVED)
    assert found.get("first_k", old) == new


def test_a_count_whose_block_leads_no_longer_is_refused() -> None:
    origins = (0, 1, 2, 3, 4, 5, 0)
    with pytest.raises(UnsupportedModelError, match="'first_k' cannot express"):
        rewrite(leading("first_k"), {"first_k": 2}, origins)
    assert rewrite(leading("first_k", advisory=True), {"first_k": 2}, origins) == {}


def test_a_count_is_kept_in_step_with_the_list_that_overrides_it() -> None:
    rules = (
        leading("max_window_layers", default=28, advisory=True),
        listed("layer_types", derive=window_after(28, switch=True)),
    )
    config = {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 3}
    assert rewrite_fields(rules, config, 6, INTERLEAVED) == {("max_window_layers",): 4}
    assert rewrite_fields(rules, config, 6, (0, 1, 2, 3, 4, 5, 0)) == {
        ("layer_types",): ["full_attention"] * 3 + ["sliding_attention"] * 3 + ["full_attention"]
    }


def test_a_step_that_the_new_depth_breaks_becomes_a_list_of_dense_layers() -> None:
    config = {"decoder_sparse_step": 2, "mlp_only_layers": [3]}
    # Layers 1 and 5 have experts: every second one from 1, but not 3.
    assert rewrite(sparse_step(), config, INTERLEAVED) == {
        "decoder_sparse_step": 1,
        "mlp_only_layers": [0, 2, 3, 4, 5],
    }


def test_dense_layers_follow_where_the_step_is_1() -> None:
    assert rewrite(sparse_step(), {"mlp_only_layers": [2]}, INTERLEAVED) == {
        "mlp_only_layers": [2, 3]
    }
    assert rewrite(sparse_step(), {}, INTERLEAVED) == {}


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ({"moe_layer_start_index": 1, "moe_layer_end_index": -1}, (1, -1)),
        ({"moe_layer_start_index": 1, "moe_layer_end_index": 5}, (1, 7)),
        ({"moe_layer_start_index": 3, "moe_layer_end_index": 4}, (4, 5)),
        ({}, (1, -1)),
    ],
)
def test_a_range_of_layers_with_experts_grows(old: dict[str, int], new: tuple[int, int]) -> None:
    found = old | rewrite(sparse_range(), old, INTERLEAVED)
    assert found.get("moe_layer_start_index", 1) == new[0]
    assert found.get("moe_layer_end_index", -1) == new[1]


def test_an_interval_that_the_new_depth_breaks_is_refused() -> None:
    with pytest.raises(UnsupportedModelError, match="moe_layer_interval"):
        rewrite(sparse_range(), {"moe_layer_interval": 2}, INTERLEAVED)


def test_a_period_is_searched_for() -> None:
    rule = periodic("period", "offset", default=(8, 4))
    assert rewrite(rule, {"period": 8, "offset": 4}, (0, 1, 2, 3, 4, 5, 5)) == {}
    assert rewrite(rule, {"period": 8, "offset": 3}, INTERLEAVED) == {"period": 5, "offset": 4}
    with pytest.raises(UnsupportedModelError, match="'period', 'offset' cannot express"):
        rewrite(rule, {"period": 2, "offset": 1}, INTERLEAVED)


def test_a_cycle_is_written_out() -> None:
    rule = cycled("block_types", default=("r", "r", "a"))
    assert rewrite(rule, {"block_types": ["r", "a"]}, END) == {
        "block_types": ["r", "a", "r", "a", "r", "a", "a", "a"]
    }
    assert rewrite(rule, {}, (0, 1, 2, 3, 4, 5, 3)) == {}


def test_attention_types_are_expanded() -> None:
    config = {"attention_types": [[["g", "l"], 3]], "attention_layers": ["g", "l"] * 3}
    kinds = ["g", "l", "g", "g", "l", "g", "l", "l"]
    assert rewrite(attention_types(), config, INTERLEAVED) == {
        "attention_types": [[[kind], 1] for kind in kinds],
        "attention_layers": kinds,
    }


@given(
    scale=st.floats(0.01, 100, allow_nan=False),
    layers=st.integers(1, 200),
    new=st.integers(1, 100),
)
def test_a_residual_scale_stays_the_same_number(scale: float, layers: int, new: int) -> None:
    origins = tuple(range(layers)) + (layers - 1,) * new
    edits = rewrite_fields((root_of_depth("s", 1.4),), {"s": scale}, layers, origins)
    found, expected = edits[("s",)] / math.sqrt(layers + new), scale / math.sqrt(layers)
    assert torch.tensor(found, dtype=torch.float32) == torch.tensor(expected, dtype=torch.float32)


@given(st.data())
def test_every_rewriting_reads_back_as_the_layers_that_were_wanted(data: st.DataObject) -> None:
    layers = data.draw(st.integers(1, 12))
    origins = tuple(data.draw(st.lists(st.integers(0, layers - 1), min_size=1, max_size=20)))
    config = {
        "list": data.draw(st.lists(st.integers(0, 2), min_size=layers, max_size=layers)),
        "set": data.draw(st.lists(st.integers(0, layers - 1), unique=True)),
        "mlp_only_layers": data.draw(st.lists(st.integers(0, layers - 1), unique=True)),
        "decoder_sparse_step": data.draw(st.integers(1, 4)),
    }
    rules = (listed("list"), indexed("set"), sparse_step())
    edited = apply_edits(config, rewrite_fields(rules, config, layers, origins))
    assert edited["list"] == [config["list"][origin] for origin in origins]
    for new, origin in enumerate(origins):
        assert (new in edited["set"]) == (origin in config["set"])
        assert _has_experts(edited, new) == _has_experts(config, origin)


def _has_experts(config: dict[str, Any], layer: int) -> bool:
    dense = layer in config["mlp_only_layers"]
    return not dense and (layer + 1) % config["decoder_sparse_step"] == 0


@pytest.mark.parametrize(
    ("rule", "config", "found"),
    [
        (indexed("moe_layers"), {"moe_layers": True}, "'moe_layers' is true"),
        (leading("max_window_layers"), {"max_window_layers": []}, "'max_window_layers' is []"),
        (leading("dense", default=1), {"dense": {"a": 1}}, "'dense' is an object"),
        (numbered("per_layer"), {"per_layer": [1]}, "'per_layer' is [1]"),
        (sparse_step(), {"decoder_sparse_step": 0}, "'decoder_sparse_step' is 0"),
        (sparse_range(), {"moe_layer_end_index": "x"}, "'moe_layer_end_index' is 'x'"),
        (periodic("period", "offset", default=(8, 4)), {"period": 0}, "'period' is 0"),
        (cycled("pattern"), {"pattern": 7}, "'pattern' is 7"),
        (attention_types(), {"attention_types": [1]}, "'attention_types' is [1]"),
        (attention_types(), {"attention_layers": ["local"] * 5}, "5 entries"),
        (root_of_depth("scale", 1.0), {"scale": "big"}, "'scale' is 'big'"),
        (
            listed("layer_types", derive=window_after(28, switch=False)),
            {"sliding_window": 4, "max_window_layers": "all"},
            "'max_window_layers' is 'all'",
        ),
    ],
)
def test_a_value_that_no_model_can_be_built_from_is_refused(
    rule: FieldRule, config: dict[str, Any], found: str
) -> None:
    with pytest.raises(CheckpointError, match=f"config.json: .*{re.escape(found)}"):
        read_kinds(rule, config, 6)
