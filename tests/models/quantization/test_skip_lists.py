"""Lists of modules that carry layer numbers: what a source says of a layer, its output says too.

Configs are spelt as released ones spell them. The headers are made by hand, without data.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from checkpoints import write_checkpoint

from blockexpand.checkpoints.checkpoint import open_checkpoint
from blockexpand.errors import CheckpointError, UnsupportedModelError
from blockexpand.models.quantization import matchers, skip_lists
from blockexpand.planning.plan import make_plan
from blockexpand.planning.recipe import Recipe

Tensors = dict[str, tuple[str, tuple[int, ...], bytes]]

ATTENTION = tuple(f"self_attn.{p}_proj" for p in "qkvo")
MLP = ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")
MODULES = (*ATTENTION, *MLP)


def fp8(module: str) -> Tensors:
    return {
        f"{module}.weight": ("F8_E4M3", (4, 4), b"\x38" * 16),
        f"{module}.weight_scale_inv": ("F32", (1, 1), b"\0\0\x80?"),
    }


def packed(module: str) -> Tensors:
    return {
        f"{module}.weight_packed": ("I32", (4, 1), b"\x88" * 16),
        f"{module}.weight_scale": ("BF16", (4, 1), b"\x80?" * 4),
        f"{module}.weight_shape": ("I64", (2,), bytes(16)),
    }


def gptq(module: str) -> Tensors:
    return {
        f"{module}.qweight": ("I32", (1, 8), bytes(32)),
        f"{module}.qzeros": ("I32", (1, 1), bytes(4)),
        f"{module}.scales": ("F16", (1, 8), bytes(16)),
        f"{module}.g_idx": ("I32", (8,), bytes(32)),
    }


PARTS = {"fp8": fp8, "compressed-tensors": packed, "gptq": gptq}
CT = {
    "format": "pack-quantized",
    "config_groups": {
        "group_0": {"targets": ["Linear"], "weights": {"num_bits": 4, "strategy": "channel"}}
    },
}
SETTINGS: Mapping[str, Mapping[str, Any]] = {
    "fp8": {"weight_block_size": [128, 128]},
    "compressed-tensors": CT,
    "gptq": {"bits": 4, "group_size": -1},
}


def plan_settings(
    tmp_path: Path,
    method: str,
    settings: Mapping[str, Any],
    *,
    plain: tuple[str, ...] = (),
    quantized: str = "keep",
    position: tuple[int, ...] = (0, 2),
    layers: int = 4,
) -> dict[str, Any]:
    """Return the output's quantisation config; `plain` are modules that are not quantised."""
    tensors: Tensors = {"model.embed_tokens.weight": ("BF16", (4, 4), bytes(32))}
    for layer in range(layers):
        prefix = f"model.layers.{layer}."
        for module in MODULES:
            name = prefix + module
            rows, cols = {"fp8": (4, 4), "gptq": (8, 8)}.get(method, (4, 8))
            unquantized = {f"{name}.weight": ("BF16", (rows, cols), bytes(2 * rows * cols))}
            tensors |= unquantized if name in plain else PARTS[method](name)
        for norm in ("input_layernorm", "post_attention_layernorm"):
            tensors[f"{prefix}{norm}.weight"] = ("BF16", (4,), bytes(8))
    tensors |= {"model.norm.weight": ("BF16", (4,), bytes(8))}
    tensors["lm_head.weight"] = ("BF16", (4, 4), bytes(32))
    config = {"quantization_config": {"quant_method": method, **SETTINGS[method], **settings}}
    folder = write_checkpoint(tmp_path / "source", [tensors], config)
    recipe = Recipe(position=position, quantized=quantized)
    plan = make_plan(open_checkpoint(folder), recipe)
    document = next(doc for doc in plan.documents if doc.name == "config.json")
    found: dict[str, Any] = json.loads(document.data)["quantization_config"]
    return found


LAYER_2 = tuple(f"model.layers.2.{module}" for module in ATTENTION)
# With a clone after layers 0 and 2, layer 2 is layer 3 and its clone layer 4.
MOVED = [f"model.layers.{n}.{module}" for module in ATTENTION for n in (3, 4)]


def test_whole_names_move_with_their_layer_and_are_there_for_its_clone(tmp_path: Path) -> None:
    skips = ["lm_head", *LAYER_2]
    found = plan_settings(tmp_path, "fp8", {"modules_to_not_convert": skips}, plain=LAYER_2)
    assert found["modules_to_not_convert"] == ["lm_head", *MOVED]


def test_both_spellings_of_a_list_are_kept_in_step(tmp_path: Path) -> None:
    both = {
        "modules_to_not_convert": ["lm_head", *LAYER_2],
        "ignored_layers": ["lm_head", *LAYER_2],
    }
    found = plan_settings(tmp_path, "fp8", both, plain=LAYER_2)
    assert found["modules_to_not_convert"] == found["ignored_layers"] == ["lm_head", *MOVED]


def test_a_list_that_is_null_stays_null(tmp_path: Path) -> None:
    assert (
        plan_settings(tmp_path, "fp8", {"modules_to_not_convert": None})["modules_to_not_convert"]
        is None
    )
    (tmp_path / "b").mkdir()
    found = plan_settings(
        tmp_path / "b", "fp8", {"modules_to_not_convert": None}, quantized="new-blocks-full"
    )
    names = found["modules_to_not_convert"]
    # Loaders left the head out without a list; a list has to say so.
    assert names[0] == "lm_head"
    new = {f"model.layers.{n}.{module}" for n in (1, 4) for module in MODULES}
    assert {name for name in names if ".layers." in name} == new


def test_a_number_is_no_part_of_a_longer_one(tmp_path: Path) -> None:
    plain = ("model.layers.1.mlp.down_proj",)
    found = plan_settings(
        tmp_path,
        "fp8",
        {"modules_to_not_convert": list(plain)},
        plain=plain,
        position=(11,),
        layers=12,
    )
    assert found["modules_to_not_convert"] == list(plain)


@pytest.mark.parametrize(
    ("ignore", "expected"),
    [
        (
            [r"re:model\.layers\.2\.self_attn.*"],
            [r"re:model\.layers\.3\.self_attn.*", r"re:model\.layers\.4\.self_attn.*"],
        ),
        (
            [r"re:.*layers\.2\.self_attn\..*"],
            [r"re:.*layers\.3\.self_attn\..*", r"re:.*layers\.4\.self_attn\..*"],
        ),
        (list(LAYER_2), MOVED),
        # No number stands by itself: the names that the pattern means take its place.
        ([r"re:.*layers\.(2|7)\.self_attn\..*"], MOVED),
        ([r"re:.*layers\.[2-2]\.self_attn\..*"], MOVED),
    ],
)
def test_patterns_of_compressed_tensors(
    ignore: list[str], expected: list[str], tmp_path: Path
) -> None:
    found = plan_settings(
        tmp_path, "compressed-tensors", {"ignore": ["lm_head", *ignore]}, plain=LAYER_2
    )
    assert found["ignore"] == ["lm_head", *expected]


def test_patterns_without_numbers_stay(tmp_path: Path) -> None:
    ignore = ["lm_head", r"re:.*self_attn\.k_proj"]
    plain = tuple(f"model.layers.{n}.self_attn.k_proj" for n in range(4))
    found = plan_settings(tmp_path, "compressed-tensors", {"ignore": ignore}, plain=plain)
    assert found["ignore"] == ignore


def test_targets_of_groups_move_too(tmp_path: Path) -> None:
    group = {"weights": {"num_bits": 4, "strategy": "channel"}}
    groups = {
        "attention": {"targets": [r"re:model\.layers\.2\.self_attn\..*"], **group},
        "rest": {"targets": ["Linear"], **group},
    }
    found = plan_settings(tmp_path, "compressed-tensors", {"config_groups": groups})
    assert found["config_groups"]["attention"]["targets"] == [
        r"re:model\.layers\.3\.self_attn\..*",
        r"re:model\.layers\.4\.self_attn\..*",
    ]
    assert found["config_groups"]["rest"]["targets"] == ["Linear"]


def test_new_full_blocks_are_ignored_by_one_pattern_each(tmp_path: Path) -> None:
    found = plan_settings(
        tmp_path, "compressed-tensors", {"ignore": ["lm_head"]}, quantized="new-blocks-full"
    )
    assert found["ignore"] == [
        "lm_head",
        r"re:^model\.layers\.1\..*",
        r"re:^model\.layers\.4\..*",
    ]


def test_dynamic_of_gptq(tmp_path: Path) -> None:
    dynamic = {r"-:model\.layers\.2\.self_attn\..*": {}, r"-:.*layers\.(9)\..*": {}}
    found = plan_settings(tmp_path, "gptq", {"dynamic": dynamic}, plain=LAYER_2)
    assert list(found["dynamic"])[:2] == [
        r"-:model\.layers\.3\.self_attn\..*",
        r"-:model\.layers\.4\.self_attn\..*",
    ]


def test_new_full_blocks_in_gptq_are_named_for_both_of_its_readers(tmp_path: Path) -> None:
    found = plan_settings(tmp_path, "gptq", {}, quantized="new-blocks-full")
    assert list(found["dynamic"]) == [r"-:^model\.layers\.1\.", r"-:^model\.layers\.4\."]
    (names,) = found["modules_in_block_to_quantize"]
    assert len(names) == 4 * len(MODULES)
    assert {name.split(".")[2] for name in names} == {"0", "2", "3", "5"}


def test_a_pattern_that_one_loader_knows_becomes_names_that_all_know(tmp_path: Path) -> None:
    skips = {"modules_to_not_convert": [r"model\.layers\.[2-2]\.self_attn"]}
    found = plan_settings(tmp_path, "fp8", skips, plain=LAYER_2)
    assert found["modules_to_not_convert"] == MOVED


def test_what_no_list_can_say_is_refused(tmp_path: Path) -> None:
    # Named for transformers and not for vLLM, though it is quantised: names would be for both.
    skips = {"modules_to_not_convert": [r"model\.layers\.[2-2]\.self_attn"]}
    with pytest.raises(UnsupportedModelError, match="cannot say which modules"):
        plan_settings(tmp_path, "fp8", skips)


def test_dynamic_alone_says_what_is_quantised_of_what_is_new(tmp_path: Path) -> None:
    dynamic = {r"-:model\.layers\.2\.self_attn\..*": {}}
    found = plan_settings(
        tmp_path, "gptq", {"dynamic": dynamic}, plain=LAYER_2, quantized="new-blocks-full"
    )
    assert list(found["dynamic"])[:2] == [r"-:^model\.layers\.1\.", r"-:^model\.layers\.4\."]


def test_a_list_beside_a_null_one_is_written_to_both(tmp_path: Path) -> None:
    # SGLang takes the first key, even if it is null; transformers and vLLM the other.
    both = {"ignored_layers": None, "modules_to_not_convert": ["lm_head"]}
    found = plan_settings(tmp_path, "fp8", both, quantized="new-blocks-full")
    assert found["ignored_layers"] == found["modules_to_not_convert"]
    assert "model.layers.4.mlp.up_proj" in found["ignored_layers"]


def test_the_read_back_sees_numbers_that_were_left_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(skip_lists, "_renumber", lambda entry, renumbering: [entry])
    with pytest.raises(UnsupportedModelError, match=r"'model\.layers\.2\.self_attn\.q_proj'"):
        plan_settings(tmp_path, "fp8", {"modules_to_not_convert": list(LAYER_2)}, plain=LAYER_2)


@pytest.mark.parametrize("value", [5, {"a": 1}, [5], [None], [["x"]]])
def test_lists_that_are_none_are_refused_in_one_line(value: Any, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="lists of modules cannot be read"):
        plan_settings(tmp_path, "fp8", {"modules_to_not_convert": value})


MODULE = "model.layers.1.self_attn.q_proj"


def test_matchers_differ_as_their_libraries_do() -> None:
    assert matchers.transformers_skips(["model.layers.1"], MODULE)
    assert not matchers.transformers_skips(["model.layers.1"], "model.layers.10.mlp.up_proj")
    assert matchers.transformers_skips(["q_proj"], MODULE)
    assert matchers.transformers_skips(["model.layers.*.self_attn"], MODULE)
    assert not matchers.names_module(["model.layers.1"], MODULE)
    assert matchers.names_module([MODULE], MODULE)
    assert matchers.names_module(
        ["model.layers.1.mlp.experts.0.up_proj"], "model.layers.1.mlp.experts"
    )
    assert matchers.is_part(["model.layers.1"], "model.layers.10.mlp.up_proj")
    assert matchers.lies_below(["model.layers.1"], MODULE)
    assert not matchers.lies_below(["model.layers.1"], "model.layers.10.mlp.up_proj")
    assert matchers.find_target(["Linear"], MODULE)
    assert matchers.find_target([r"re:.*q_proj$"], MODULE)
    assert not matchers.find_target(["q_proj"], MODULE)
    transformers = pytest.importorskip("transformers.quantizers.quantizers_utils")
    for patterns in (["model.layers.1"], ["q_proj"], ["model.layers.*.self_attn"], ["layers.1"]):
        for name in (MODULE, "model.layers.10.mlp.up_proj", "lm_head"):
            expected = not transformers.should_convert_module(name, patterns)
            assert matchers.transformers_skips(patterns, name) == expected
