"""Finding the decoder of a checkpoint, planning the surgery, and refusing what is not understood.

No file is read: configs and tensor catalogues are written by hand.
"""

from __future__ import annotations

from typing import Any

import pytest

from blockexpand.errors import CheckpointError, UnsupportedModelError
from blockexpand.formats.tensor_spec import TensorSpec
from blockexpand.models.decoder import (
    find_decoder,
    find_text_model,
    keeps_float32,
    layer_suffix,
    output_name,
)
from blockexpand.models.families.layer_places import rescaling
from blockexpand.models.layer_map import LayerEntry, LayerMap, map_position
from blockexpand.models.surgery import plan_surgery

LAYER = {
    **dict.fromkeys(("input_layernorm.weight", "post_attention_layernorm.weight"), (8,)),
    **{f"self_attn.{name}_proj.weight": (8, 8) for name in "qkvo"},
    **{f"mlp.{name}_proj.weight": (16, 8) for name in ("gate", "up")},
    "mlp.down_proj.weight": (8, 16),
}
OUTPUTS = {"self_attn.o_proj.weight": 0.0, "mlp.down_proj.weight": 0.0}


def spec(shape: tuple[int, ...], dtype: str = "BF16") -> TensorSpec:
    nbytes = 2
    for size in shape:
        nbytes *= size
    return TensorSpec(dtype=dtype, shape=shape, nbytes=nbytes)


def catalogue(layers: int = 4, prefix: str = "model.layers.") -> dict[str, TensorSpec]:
    tensors = {"model.embed_tokens.weight": spec((32, 8)), "model.norm.weight": spec((8,))}
    for layer in range(layers):
        tensors |= {f"{prefix}{layer}.{suffix}": spec(shape) for suffix, shape in LAYER.items()}
    return tensors


def config(**fields: Any) -> dict[str, Any]:
    return {"model_type": "mistral", "num_hidden_layers": 4, **fields}


def edits(settings: dict[str, Any], layer_map: LayerMap, **tensors: TensorSpec) -> dict[str, Any]:
    decoder = find_decoder(settings, catalogue() | tensors)
    surgery = plan_surgery(decoder, settings, layer_map)
    return {".".join(edit.path): edit.value for edit in surgery.config_edits}


END = map_position(4, "end", 2)
INTERLEAVED = map_position(4, "interleaved", 2)


def test_a_decoder_is_found() -> None:
    decoder = find_decoder(config(), catalogue())
    assert (decoder.layers, decoder.tail_layers, decoder.prefix) == (4, 0, "model.layers.")
    assert "model.norm.weight" not in decoder.placed
    name = "model.layers.3.self_attn.o_proj.weight"
    assert decoder.placed[name] == 3
    assert layer_suffix(decoder, name) == "self_attn.o_proj.weight"
    assert output_name(decoder, name, 5) == "model.layers.5.self_attn.o_proj.weight"


def test_the_surgery_zeroes_the_outputs_and_counts_the_layers() -> None:
    decoder = find_decoder(config(), catalogue())
    surgery = plan_surgery(decoder, config(), INTERLEAVED)
    assert surgery.neutral == {1: OUTPUTS, 3: OUTPUTS}
    assert [(edit.path, edit.value) for edit in surgery.config_edits] == [
        (("num_hidden_layers",), 6)
    ]
    assert surgery.notes == ()


def test_every_count_that_is_there_is_rewritten() -> None:
    assert edits(config(n_layer=4, num_layers=9), END) == {"num_hidden_layers": 6, "n_layer": 6}


def test_an_absent_count_is_written() -> None:
    assert edits({"model_type": "llama"}, END) == {"num_hidden_layers": 6}


def test_a_list_that_the_family_ignores_is_kept_in_step() -> None:
    """transformers refuses to load any config whose layer_types has another length."""
    kinds = ["full_attention"] * 3 + ["sliding_attention"]
    assert edits(config(layer_types=kinds), END)["layer_types"] == kinds + kinds[-1:] * 2


def test_originals_may_be_repeated_and_dropped() -> None:
    """The general layer map, as a recipe of slices writes it."""
    layer_map = tuple(LayerEntry(source=source) for source in (0, 1, 1, 3, 3))
    settings = config(model_type="qwen3", layer_types=["a", "b", "c", "d"])
    surgery = plan_surgery(find_decoder(settings, catalogue()), settings, layer_map)
    assert surgery.neutral == {}
    found = {edit.path[0]: edit.value for edit in surgery.config_edits}
    assert found == {"num_hidden_layers": 5, "layer_types": ["a", "b", "b", "d", "d"]}


def test_layers_past_the_end_are_found_and_noted() -> None:
    settings = config(model_type="glm4_moe", first_k_dense_replace=4)
    tensors = catalogue(5) | {"model.layers.4.eh_proj.weight": spec((8, 16))}
    decoder = find_decoder(settings, tensors)
    assert (decoder.layers, decoder.tail_layers) == (4, 1)
    surgery = plan_surgery(decoder, settings, END)
    assert any("multi-token-prediction" in note for note in surgery.notes)


@pytest.mark.parametrize(
    "prefix", ["model.language_model.layers.", "language_model.model.layers.", "model.layers."]
)
def test_only_the_text_decoder_of_a_multimodal_model_is_placed(prefix: str) -> None:
    tower = {f"vision_tower.encoder.layers.{i}.mlp.fc2.weight": spec((8, 8)) for i in range(4)}
    settings = {
        "model_type": "mistral3",
        "num_hidden_layers": 4,
        "text_config": {"model_type": "mistral", "num_hidden_layers": 4},
        "vision_config": {"num_hidden_layers": 4, "layer_types": ["x"] * 4},
    }
    decoder = find_decoder(settings, catalogue(prefix=prefix) | tower)
    assert decoder.prefix == prefix
    assert not set(tower) & set(decoder.placed)
    surgery = plan_surgery(decoder, settings, END)
    assert {".".join(edit.path): edit.value for edit in surgery.config_edits} == {
        "text_config.num_hidden_layers": 6,
        "num_hidden_layers": 6,
    }


def omni(**parts: Any) -> dict[str, Any]:
    text = {"num_hidden_layers": 4, "mlp_only_layers": [0, 1, 2, 3]}
    return {
        "model_type": "qwen3_omni_moe",
        "thinker_config": {"text_config": text, **parts},
        "talker_config": {"accept_hidden_layer": 4, "text_config": {"num_hidden_layers": 4}},
    }


def test_of_a_model_that_talks_the_thinker_is_expanded() -> None:
    talker = {f"talker.model.layers.{i}.mlp.down_proj.weight": spec((8, 8)) for i in range(4)}
    settings = omni(vision_config={"deepstack_visual_indexes": [1]})
    decoder = find_decoder(settings, catalogue(prefix="thinker.model.layers.") | talker)
    assert not set(talker) & set(decoder.placed)
    edited = {
        ".".join(edit.path): edit.value
        for edit in plan_surgery(decoder, settings, END).config_edits
    }
    assert edited == {
        "thinker_config.text_config.num_hidden_layers": 6,
        "thinker_config.text_config.mlp_only_layers": [0, 1, 2, 3, 4, 5],
    }
    with pytest.raises(UnsupportedModelError, match="the talker listens to what layer 3 puts out"):
        plan_surgery(decoder, settings, INTERLEAVED)


@pytest.mark.parametrize(("talker", "reason"), [({}, "layer 17 puts out"), (None, None)])
def test_where_no_config_says_it_a_talker_listens_to_layer_17(
    talker: dict[str, Any] | None, reason: str | None
) -> None:
    settings = omni(vision_config={"deepstack_visual_indexes": []}) | {"talker_config": talker}
    decoder = find_decoder(settings, catalogue(prefix="thinker.model.layers."))
    plan_surgery(decoder, settings, END)
    if reason is None:
        plan_surgery(decoder, settings, INTERLEAVED)
    else:
        with pytest.raises(UnsupportedModelError, match=reason):
            plan_surgery(decoder, settings, INTERLEAVED)


def test_a_layer_that_a_talker_listens_to_is_a_number() -> None:
    settings = omni(vision_config={"deepstack_visual_indexes": []})
    settings["talker_config"]["accept_hidden_layer"] = "4"
    decoder = find_decoder(settings, catalogue(prefix="thinker.model.layers."))
    with pytest.raises(CheckpointError, match=r"'talker_config\.accept_hidden_layer' must be"):
        plan_surgery(decoder, settings, END)


def test_layers_that_a_vision_tower_feeds_by_default_keep_their_numbers() -> None:
    settings = omni() | {"talker_config": None}
    decoder = find_decoder(settings, catalogue(prefix="thinker.model.layers."))
    with pytest.raises(UnsupportedModelError, match="each of the first 3 layers"):
        plan_surgery(decoder, settings, INTERLEAVED)


@pytest.mark.parametrize(
    "name", ["self_attn.rotary_emb.inv_freq", "self_attn.q_norm.weight", "self_attn.k_proj.bias"]
)
def test_buffers_and_inputs_are_copied(name: str) -> None:
    extra = {f"model.layers.{i}.{name}": spec((4,)) for i in range(4)}
    decoder = find_decoder(config(), catalogue() | extra)
    assert name not in plan_surgery(decoder, config(), END).neutral[3]


def test_a_bias_of_an_output_is_zeroed() -> None:
    extra = {f"model.layers.{i}.self_attn.o_proj.bias": spec((8,)) for i in range(4)}
    decoder = find_decoder(config(), catalogue() | extra)
    expected = OUTPUTS | {"self_attn.o_proj.bias": 0.0}
    assert plan_surgery(decoder, config(), END).neutral == {3: expected}


def test_routers_biases_keep_float32() -> None:
    settings = config(model_type="deepseek_v3", first_k_dense_replace=0)
    bias = "mlp.gate.e_score_correction_bias"
    tensors = {n: s for n, s in catalogue().items() if "mlp" not in n}
    for layer in range(4):
        tensors[f"model.layers.{layer}.{bias}"] = spec((2,), "F32")
        tensors[f"model.layers.{layer}.mlp.experts.0.down_proj.weight"] = spec((8, 16))
    decoder = find_decoder(settings, tensors)
    assert keeps_float32(decoder, f"model.layers.2.{bias}")
    assert not keeps_float32(decoder, "model.layers.2.self_attn.o_proj.weight")
    assert not keeps_float32(decoder, "model.norm.weight")


UNSUPPORTED = {
    "unknown model type": ({"model_type": "newformer"}, "'newformer' is not in the table"),
    "no model type": ({"model_type": None}, "'model_type' is missing"),
    "custom code": ({"model_type": "new", "auto_map": {"a": "b"}}, "runs custom code"),
    "post-norm": ({"model_type": "bert"}, "ends in a norm of the whole residual stream"),
    "encoder-decoder": ({"model_type": "bart"}, "encoder with a decoder"),
    "depth-scaled": ({"model_type": "beam"}, "scaled by the depth"),
    "quantized": ({"quantization_config": {"bits": 4}}, "names no 'quant_method'"),
    "unknown list": ({"layer_gains": [1, 2, 3, 4]}, "'layer_gains' seems to hold one value"),
    "unknown nested list": ({"extra": {"gains": [1, 2, 3, 4]}}, "'extra.gains' seems to hold"),
    "keyed by number": ({"gains": {"2": 0.5}}, "'gains' seems to hold one value"),
    "norm after the residual": (
        {"model_type": "opt", "do_layer_norm_before": False},
        "end in a norm of the whole stream",
    ),
    "residual after a norm": (
        {"model_type": "bloom", "apply_residual_connection_post_layernorm": True},
        "residual is taken after a norm",
    ),
}


@pytest.mark.parametrize(("fields", "reason"), UNSUPPORTED.values(), ids=UNSUPPORTED)
def test_a_model_is_refused_with_the_reason(fields: dict[str, Any], reason: str) -> None:
    with pytest.raises(UnsupportedModelError, match=reason):
        find_decoder(config(**fields), catalogue())


def test_an_unknown_model_type_is_refused_with_the_closest_names_alone() -> None:
    with pytest.raises(UnsupportedModelError) as caught:
        find_decoder(config(model_type="qwen3_next_text"), catalogue())
    assert "'qwen3_next'" in str(caught.value)
    assert "`blockexpand families`" in str(caught.value)
    assert len(str(caught.value)) < 300


def test_a_message_names_the_model_type_of_the_checkpoint() -> None:
    with pytest.raises(UnsupportedModelError, match="in a layer of a 'mistral' model"):
        find_decoder(config(), catalogue() | {"model.layers.0.adapter.weight": spec((8,))})
    tensors = {name: s for name, s in catalogue().items() if "mlp.down_proj" not in name}
    with pytest.raises(CheckpointError, match="every layer of a 'mistral' model"):
        find_decoder(config(), tensors)


@pytest.mark.parametrize(
    ("model_type", "text_type", "family"),
    [
        ("kimi_k25", "kimi_k2", "deepseek_v3"),
        ("exaone4_5", "exaone4_5_text", "exaone4"),
        ("gemma3", "gemma3", "gemma3_text"),  # transformers has one class for it
        ("llava", "mistral", "mistral"),
    ],
)
def test_a_text_model_is_what_transformers_takes_it_for(
    model_type: str, text_type: str, family: str
) -> None:
    found = find_text_model({"text_config": {"model_type": text_type}}, model_type)
    assert found[:2] == (("text_config",), family)


def test_a_position_list_of_the_vision_tower_that_is_none_is_refused() -> None:
    settings = {
        "model_type": "qwen3_vl",
        "text_config": {"model_type": "mistral", "num_hidden_layers": 4},
        "vision_config": {"deepstack_visual_indexes": 3.0},
    }
    decoder = find_decoder(settings, catalogue(prefix="model.language_model.layers."))
    with pytest.raises(CheckpointError, match=r"'vision_config\.deepstack_visual_indexes' must be"):
        plan_surgery(decoder, settings, END)


def test_a_step_of_rescaling_that_is_none_is_refused() -> None:
    with pytest.raises(CheckpointError, match="'rescale_every' must be a number of layers"):
        rescaling({"rescale_every": "6"}, END)


@pytest.mark.parametrize("count", ["4", -1, 0, 10**9, 4.0, True, [4]])
def test_a_count_that_is_none_is_refused(count: Any) -> None:
    with pytest.raises(CheckpointError, match="'num_hidden_layers' must be the number of layers"):
        find_decoder(config(num_hidden_layers=count), catalogue())


@pytest.mark.parametrize("count", [3, 5])
def test_a_count_that_the_tensors_contradict_is_refused(count: int) -> None:
    with pytest.raises(CheckpointError, match=f"'num_hidden_layers' is {count}.*expected 4"):
        find_decoder(config(num_hidden_layers=count), catalogue())


def test_two_counts_that_differ_are_refused() -> None:
    settings = {"model_type": "gpt2", "n_layer": 4, "num_hidden_layers": 3}
    tensors = {
        f"h.{i}.{name}": spec((8, 8))
        for i in range(4)
        for name in ("attn.c_proj.weight", "mlp.c_proj.weight")
    }
    with pytest.raises(CheckpointError, match="'num_hidden_layers' is 3"):
        find_decoder(settings, tensors)


def test_a_gap_in_the_layers_is_refused() -> None:
    tensors = {n: s for n, s in catalogue().items() if "layers.2." not in n}
    with pytest.raises(CheckpointError, match="layer 2 has no tensor"):
        find_decoder(config(), tensors)


@pytest.mark.parametrize("suffix", LAYER)
def test_an_incomplete_layer_is_refused(suffix: str) -> None:
    tensors = catalogue()
    del tensors[f"model.layers.2.{suffix}"]
    with pytest.raises(CheckpointError, match=r"model\.layers\.2\."):
        find_decoder(config(), tensors)


def test_a_checkpoint_without_layers_is_refused() -> None:
    with pytest.raises(CheckpointError, match="no tensor of a decoder layer"):
        find_decoder(config(), {"model.norm.weight": spec((8,))})
    towers = {"lm_head.weight": spec((8,)), "model.visual.blocks.0.norm.weight": spec((8,))}
    with pytest.raises(CheckpointError, match=r"found e\.g\. 'model\.text\.layers"):
        find_decoder(config(), towers | {"model.text.layers.0.norm.weight": spec((8,))})


def test_layers_under_two_prefixes_are_refused() -> None:
    with pytest.raises(CheckpointError, match="under several prefixes"):
        find_decoder(config(), catalogue() | catalogue(prefix="layers."))


@pytest.mark.parametrize("number", ["x", "01", "", "-1"])
def test_a_layer_without_a_number_is_refused(number: str) -> None:
    with pytest.raises(CheckpointError, match="no layer number"):
        find_decoder(config(), catalogue() | {f"model.layers.{number}.norm.weight": spec((8,))})


@pytest.mark.parametrize(
    "suffix",
    [
        "self_attn.q_proj.lora_A.weight",
        "adapter.up.weight",
        "residual_mlp.w2.weight",
        "mlp.shared_expert.down_proj.weight",
        "cross_attn.o_proj.weight",
    ],
)
def test_a_tensor_of_an_unknown_branch_is_refused(suffix: str) -> None:
    extra = {f"model.layers.{i}.{suffix}": spec((8, 8)) for i in range(4)}
    with pytest.raises(UnsupportedModelError, match="is unknown in a layer"):
        find_decoder(config(), catalogue() | extra)


@pytest.mark.parametrize(
    ("suffix", "dtype"),
    [
        ("self_attn.q_proj.qweight", "I32"),
        ("self_attn.q_proj.weight_scale_inv", "F32"),
        ("mlp.down_proj.weight_scale", "F32"),
        ("self_attn.q_proj.weight.absmax", "U8"),
    ],
)
def test_quantized_tensors_are_refused(suffix: str, dtype: str) -> None:
    extra = {f"model.layers.{i}.{suffix}": spec((8, 8), dtype) for i in range(4)}
    with pytest.raises(UnsupportedModelError, match="quantized weights"):
        find_decoder(config(), catalogue() | extra)


@pytest.mark.parametrize("dtype", ["I8", "F8_E4M3", "U8", "I32"])
@pytest.mark.parametrize("name", ["weight", "bias"])
def test_packed_weights_are_refused(name: str, dtype: str) -> None:
    extra = {f"model.layers.{i}.self_attn.q_proj.{name}": spec((8, 8), dtype) for i in range(4)}
    with pytest.raises(UnsupportedModelError, match=f"has dtype {dtype}"):
        find_decoder(config(), catalogue() | extra)


def test_layers_of_one_kind_with_other_shapes_are_refused() -> None:
    extra = {"model.layers.1.mlp.up_proj.weight": spec((24, 8))}
    with pytest.raises(UnsupportedModelError, match="layers of the same kind differ in shape"):
        find_decoder(config(), catalogue() | extra)


def test_layers_past_the_end_are_refused_where_the_family_has_none() -> None:
    with pytest.raises(CheckpointError, match="expected 5"):
        find_decoder(config(), catalogue(5))


def test_more_layers_past_the_end_than_the_config_has_are_refused() -> None:
    settings = config(model_type="glm4_moe", first_k_dense_replace=4, num_nextn_predict_layers=2)
    assert find_decoder(settings, catalogue(6)).tail_layers == 2
    with pytest.raises(CheckpointError, match=r"is 4, but .*expected 7"):
        find_decoder(settings, catalogue(7))


def test_a_refused_position_says_whether_the_end_is_possible() -> None:
    settings = config(model_type="diffllama")
    decoder = find_decoder(settings, catalogue())
    with pytest.raises(UnsupportedModelError, match=r"number.*; --position end is possible"):
        plan_surgery(decoder, settings, INTERLEAVED)
    assert plan_surgery(decoder, settings, END).notes


def test_many_experts_are_read_in_seconds() -> None:
    import time

    settings = config(model_type="qwen3_moe")
    tensors = {n: s for n, s in catalogue().items() if ".mlp." not in n}
    for layer in range(4):
        for expert in range(4000):
            for name in ("gate", "up", "down"):
                suffix = f"mlp.experts.{expert}.{name}_proj.weight"
                tensors[f"model.layers.{layer}.{suffix}"] = spec((8, 8))
    start = time.process_time()
    decoder = find_decoder(settings, tensors)
    surgery = plan_surgery(decoder, settings, END)
    assert len(surgery.neutral[3]) == 4001
    assert time.process_time() - start < 5
