"""Toy widths: what is narrowed, and what must stay because it tells what a layer is."""

from __future__ import annotations

import copy

from blockexpand.verification.toy_config import (
    Narrowing,
    apply_toy_fields,
    make_toy_fields,
    token_numbers,
)

TOY = Narrowing(heads=2, head_dim=16)
MISTRAL = {
    "model_type": "mistral",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "num_hidden_layers": 32,
    "vocab_size": 32002,
    "sliding_window": 4096,
    "max_position_embeddings": 32768,
    "rms_norm_eps": 1e-05,
    "pad_token_id": 32000,
    "bos_token_id": 1,
}


def test_widths_are_narrowed_and_the_rest_is_kept() -> None:
    before = copy.deepcopy(MISTRAL)
    toy = apply_toy_fields(MISTRAL, make_toy_fields(MISTRAL, MISTRAL, TOY))
    assert toy == {
        "model_type": "mistral",
        "hidden_size": 32,
        "intermediate_size": 128,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "num_hidden_layers": 32,
        "vocab_size": 128,
        "sliding_window": 8,
        "max_position_embeddings": 32768,
        "rms_norm_eps": 1e-05,
        "pad_token_id": 0,
        "bos_token_id": 1,
    }
    assert before == MISTRAL


def test_fields_per_layer_are_kept() -> None:
    config = MISTRAL | {
        "layer_types": ["sliding_attention", "full_attention"] * 16,
        "mlp_only_layers": [0, 31],
        "max_window_layers": 28,
        "first_k_dense_replace": 3,
        "no_rope_layers": [1, 1, 1, 0] * 8,
        "decoder_sparse_step": 2,
    }
    fields = make_toy_fields(config, config, TOY)[()]
    assert fields.keys() == make_toy_fields(MISTRAL, MISTRAL, TOY)[()].keys()


def test_a_list_of_widths_is_narrowed_at_any_depth() -> None:
    config = {"num_attention_heads_per_layer": [48, 64, 48], "num_attention_heads": 48}
    fields = make_toy_fields(config, config, TOY)
    deeper = {"num_attention_heads_per_layer": [48, 64, 64, 48], "num_attention_heads": 48}
    assert apply_toy_fields(deeper, fields) == {
        "num_attention_heads_per_layer": [2, 4, 4, 2],
        "num_attention_heads": 2,
    }


def test_heads_that_rotary_lists_are_bound_to_keep_their_size() -> None:
    config = MISTRAL | {"rope_scaling": {"type": "longrope", "short_factor": [1.0] * 64}}
    fields = make_toy_fields(config, config, TOY)[()]
    assert (fields["num_attention_heads"], fields["hidden_size"]) == (2, 2 * 128)


def test_groups_of_experts_stay_whole() -> None:
    config = MISTRAL | {"n_routed_experts": 256, "n_group": 8, "num_experts_per_tok": 8}
    fields = make_toy_fields(config, config, TOY)[()]
    assert fields["n_routed_experts"] == 16 and fields["num_experts_per_tok"] == 2


def test_a_tower_leads_to_the_width_of_the_text_model() -> None:
    vision = {
        "depth": 32,
        "hidden_size": 1280,
        "num_heads": 16,
        "intermediate_size": 3420,
        "out_hidden_size": 4096,
        "window_size": 112,
        "patch_size": 14,
    }
    config = {"text_config": MISTRAL, "vision_config": vision, "image_token_id": 31}
    toy = apply_toy_fields(config, make_toy_fields(config, config, TOY))
    assert toy["text_config"]["hidden_size"] == 32
    assert toy["vision_config"] == {
        "depth": 32,
        "hidden_size": 32,
        "num_heads": 2,
        "intermediate_size": 96,
        "out_hidden_size": 32,
        "window_size": 112,
        "patch_size": 14,
    }
    assert token_numbers(config) == {31, 32000, 1}


def test_a_default_that_the_file_does_not_state_is_narrowed_too() -> None:
    config = {"model_type": "mistral", "num_hidden_layers": 3}
    toy = apply_toy_fields(config, make_toy_fields(config, MISTRAL, TOY))
    assert toy["hidden_size"] == 32 and toy["num_hidden_layers"] == 3


def test_a_small_model_may_keep_its_widths() -> None:
    fields = make_toy_fields(MISTRAL, MISTRAL, Narrowing(heads=0))
    assert fields == {(): {"vocab_size": 128, "sliding_window": 8, "pad_token_id": 0}}
