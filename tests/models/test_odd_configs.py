"""Configs that released models could have and the table's own checkpoints have not.

Fields that disagree, are null, say nothing or count past the end, patterns that are irregular or
of another period: `transformers` judges, by logits, generation and what it builds for each layer.
"""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import family_check
import pytest
import torch
from family_check import run
from family_zoo import Tensors, Zoo, make_checkpoint, mtp_layer
from zoo_dense import WINDOW
from zoo_mixture import EXPERTS, MLA, QWEN2, ROUTED
from zoo_multimodal import SIGLIP
from zoo_recurrent import DELTA, LOCAL, MAMBA

import blockexpand
from blockexpand.errors import UnsupportedModelError

FULL, SLIDING = "full_attention", "sliding_attention"
DEEPSEEK: dict[str, Any] = {**MLA, **ROUTED}
QWEN = {"use_sliding_window": True, "sliding_window": 6}
LLAMA4 = {
    **{"num_local_experts": 4, "head_dim": 8, "attention_chunk_size": 6},
    **{"intermediate_size_mlp": 40},
}
NEO = {
    **{"hidden_size": 32, "num_layers": 6, "num_heads": 4, "vocab_size": 96},
    **{"max_position_embeddings": 128, "window_size": 6},
}
JAMBA = {"mamba_d_state": 8, "mamba_dt_rank": 4, "num_experts": 1}
HYBRID = ["mamba", "attention", "mamba"] * 2
ABSENT = object()


def two_mtp_layers(tensors: Tensors) -> Tensors:
    first = mtp_layer(tensors)
    return first | {n.replace("layers.6.", "layers.7."): t + 1 for n, t in first.items()}


# The checkpoint as transformers saves it, and what its config.json says in place of that.
ODD: dict[str, tuple[Zoo, dict[str, Any]]] = {}


def odd(name: str, model_type: str, config: Any, disk: Any = None, **more: Any) -> None:
    ODD[name] = Zoo(name=name, model_type=model_type, config=config, **more), disk or {}


odd("a null in place of a list", "gemma2", {"sliding_window": 6}, {"layer_types": None})
odd(
    "another period",
    "gemma3_text",
    {"sliding_window": 6, "sliding_window_pattern": 2},
    {"layer_types": ABSENT, "sliding_window_pattern": 2},
)
odd(
    "a period of one",
    "cohere2",
    {"sliding_window": 6, "sliding_window_pattern": 1},
    {"layer_types": ABSENT, "sliding_window_pattern": 1},
)
odd(
    "a list that is not of the period beside it",
    "gemma3_text",
    {"sliding_window": 6, "layer_types": [FULL, FULL, SLIDING, FULL, SLIDING, SLIDING]},
    {"sliding_window_pattern": 6},
)
odd(
    "a list that is not of the letters beside it",
    "exaone4",
    {"sliding_window": 6, "layer_types": [SLIDING, FULL, FULL, SLIDING, SLIDING, FULL]},
    {"sliding_window_pattern": "LLLG"},
)
odd(
    "a list that disagrees with a number of layers",
    "qwen2",
    {**QWEN, "max_window_layers": 2, "layer_types": [SLIDING, FULL] * 3},
)
odd("no layer without a window", "qwen2", {**QWEN, "max_window_layers": 0}, {"layer_types": ABSENT})
odd("no layer has one", "qwen3", {**QWEN, "max_window_layers": 70}, {"layer_types": ABSENT})
odd("no dense layer", "deepseek_v3", {**DEEPSEEK, "first_k_dense_replace": 0})
odd("dense layers only", "deepseek_v3", {**DEEPSEEK, "first_k_dense_replace": 6})
odd("a step that nobody reads", "deepseek_v3", {**DEEPSEEK, "moe_layer_freq": 2})
odd(
    "two layers for multi-token prediction",
    "deepseek_v3",
    {**DEEPSEEK, "first_k_dense_replace": 1},
    {"num_nextn_predict_layers": 2},
    extra=two_mtp_layers,
)
odd(
    "a step of three and an exception",
    "qwen3_moe",
    {**EXPERTS, "decoder_sparse_step": 3, "mlp_only_layers": [5]},
)
odd(
    "a number past the end",
    "qwen3_moe",
    {**EXPERTS, "mlp_only_layers": [1]},
    {"mlp_only_layers": [1, 9]},
)
odd(
    "numbers twice and out of order",
    "qwen3_moe",
    {**EXPERTS, "mlp_only_layers": [1, 4]},
    {"mlp_only_layers": [4, 1, 4]},
)
odd(
    "experts in every third layer",
    "llama4_text",
    {**LLAMA4, "interleave_moe_layer_step": 3},
    {"moe_layers": ABSENT},
)
odd(
    "rotary positions here and there",
    "llama4_text",
    {**LLAMA4, "no_rope_layers": [1, 0, 1, 0, 0, 1]},
    {"layer_types": ABSENT},
)
odd("no rotary positions in the first", "smollm3", {"no_rope_layers": [0, 1, 1, 0, 0, 1]})
odd(
    "groups of layers",
    "gpt_neo",
    {**NEO, "attention_types": [[["global"], 2], [["local"], 4]]},
    base=False,
)
odd(
    "two names of one list",
    "granitemoehybrid",
    {**MAMBA, **LOCAL, "shared_intermediate_size": 24, "layer_types": HYBRID},
    {"layers_block_type": HYBRID},
)
odd("indices that a list overrides", "lfm2", {"full_attn_idxs": [1, 3, 4]}, {"full_attn_idxs": [0]})
odd(
    "another interval",
    "qwen3_next",
    {**QWEN2, **DELTA, "full_attention_interval": 2},
    {"layer_types": ABSENT, "full_attention_interval": 2},
)
odd(
    "keys and values that a reader would share",
    "hunyuan_v1_dense",
    {"head_dim": 8},
    {"use_cla": False, "cla_share_factor": 2},
)
odd(
    "the number of layers in two places",
    "gemma3",
    {"vision_config": SIGLIP, "mm_tokens_per_image": 4, "image_token_index": 91},
    {"num_hidden_layers": 6},
    text={**WINDOW, "sliding_window_pattern": 3},
)
odd("no experts, and a period for them", "jamba", {**JAMBA, "attn_layer_period": 6})
odd(
    "as many factors as layers",
    "falcon_h1",
    {
        **{**MAMBA, "mamba_d_ssm": 64, "head_dim": 8, "num_hidden_layers": 5},
        "ssm_multipliers": [1.0, 0.5, 0.7, 0.9, 1.1],
    },
    depth=5,
)


@pytest.mark.parametrize("name", ODD)
def test_an_odd_config_is_exact(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    past_the_end = r"\.attn\.bias$|inv_freq$|^model\.layers\.(6|7|8|9)\."
    monkeypatch.setattr(family_check, "UNUSED", re.compile(past_the_end))
    recipe, disk = ODD[name]
    source = make_odd(recipe, disk, tmp_path / "source")
    expected = run(source, recipe.depth)
    for position in ("end", "interleaved"):
        out = tmp_path / position
        made = blockexpand.expand(source, out, new_layers=2, position=position, dtype="source")
        found = run(out, recipe.depth + 2)
        for dtype, logits in expected.logits.items():
            assert torch.equal(logits, found.logits[dtype]), (position, dtype)
        assert torch.equal(expected.tokens, found.tokens), position
        for index, entry in enumerate(made.plan.layer_map):
            assert found.layers[index] == expected.layers[entry.source], (position, index)


def make_odd(recipe: Zoo, disk: dict[str, Any], folder: Path) -> Path:
    make_checkpoint(recipe, folder)
    path = folder / "config.json"
    config = {**json.loads(path.read_text()), **disk}
    config = {key: value for key, value in config.items() if value is not ABSENT}
    path.write_text(json.dumps(config, indent=2))
    return folder


@pytest.mark.parametrize(
    ("name", "disk", "reason"),
    [
        ("no dense layer", {"moe_layer_freq": [0, 1, 1, 1, 1, 1]}, "'moe_layer_freq' seems to"),
        ("no layer has one", {"per_layer_hint": [1] * 6}, "'per_layer_hint' seems to hold one"),
        ("no dense layer", {"num_hidden_layers": 5}, "'num_hidden_layers' is 5, but the tensors"),
    ],
)
def test_what_no_rule_covers_is_refused(
    name: str, disk: dict[str, Any], reason: str, tmp_path: Path
) -> None:
    recipe, usual = ODD[name]
    recipe = replace(recipe, extra=mtp_layer if "num_hidden_layers" in disk else None)
    source = make_odd(recipe, {**usual, **disk}, tmp_path / "source")
    with pytest.raises((UnsupportedModelError, blockexpand.CheckpointError), match=reason):
        blockexpand.expand(source, tmp_path / "out", new_layers=2)
    assert not (tmp_path / "out").exists()
