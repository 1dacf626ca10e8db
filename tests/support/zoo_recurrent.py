"""Recipes of the families with state-space, recurrent, convolutional or linear mixers."""

from __future__ import annotations

from family_zoo import Zoo
from zoo_dense import MLA
from zoo_mixture import EXPERTS, LOCAL, QWEN2, ROUTED

MAMBA = {
    "mamba_n_heads": 8,
    "mamba_d_head": 8,
    "mamba_d_state": 8,
    "mamba_n_groups": 1,
    "mamba_expand": 2,
    "mamba_chunk_size": 8,
}
DELTA = {
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "head_dim": 8,
}
NEMOTRON = {
    "mamba_num_heads": 8,
    "mamba_head_dim": 8,
    "ssm_state_size": 8,
    "n_groups": 1,
    "chunk_size": 8,
    "head_dim": 8,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 24,
    "moe_shared_expert_intermediate_size": 24,
    "n_group": 1,
    "topk_group": 1,
}

RECURRENT = (
    Zoo(name="mamba", model_type="mamba", config={"state_size": 8, "use_bias": True}),
    Zoo(
        name="mamba2",
        model_type="mamba2",
        config={"state_size": 8, "num_heads": 8, "head_dim": 8, "n_groups": 1, "chunk_size": 8},
    ),
    Zoo(name="falcon_mamba", model_type="falcon_mamba", config={"state_size": 8}),
    Zoo(name="bamba", model_type="bamba", config={**MAMBA, "attn_layer_indices": [1, 4]}),
    Zoo(
        name="falcon_h1",
        model_type="falcon_h1",
        config={**MAMBA, "mamba_d_ssm": 64, "head_dim": 8},
    ),
    Zoo(
        name="granitemoehybrid",
        model_type="granitemoehybrid",
        config={
            **MAMBA,
            **LOCAL,
            "shared_intermediate_size": 24,
            "layer_types": ["mamba", "attention", "mamba"] * 2,
        },
    ),
    Zoo(
        name="granitemoehybrid_legacy",
        model_type="granitemoehybrid",
        config={
            **MAMBA,
            **LOCAL,
            "shared_intermediate_size": 24,
            "layer_types": ["mamba", "attention", "mamba"] * 2,
        },
        on_disk={
            "layer_types": None,
            "layers_block_type": ["mamba", "attention", "mamba"] * 2,
        },
    ),
    Zoo(
        name="nemotron_h",
        model_type="nemotron_h",
        config={
            **NEMOTRON,
            "layers_block_type": ["mamba", "moe", "attention", "mlp", "mamba", "mlp"],
        },
        without=("num_hidden_layers",),
    ),
    Zoo(
        name="nemotron_h_legacy",
        model_type="nemotron_h",
        config={
            **NEMOTRON,
            "layers_block_type": ["mamba", "moe", "attention", "mlp", "mamba", "mlp"],
        },
        without=("num_hidden_layers",),
        on_disk={
            "layers_block_type": None,
            "hybrid_override_pattern": "ME*-M-",
            "num_hidden_layers": 6,
        },
    ),
    Zoo(
        name="jamba",
        model_type="jamba",
        config={
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "mamba_d_state": 8,
            "mamba_dt_rank": 4,
            "attn_layer_period": 3,
            "attn_layer_offset": 1,
        },
        refused=dict.fromkeys(("end", "interleaved", "start", "list"), "--recipe that repeats"),
    ),
    Zoo(
        name="lfm2",
        model_type="lfm2",
        config={"full_attn_idxs": [1, 3, 4]},
    ),
    Zoo(
        name="lfm2_legacy",
        model_type="lfm2",
        config={"full_attn_idxs": [1, 3, 4]},
        on_disk={"layer_types": None},
    ),
    Zoo(
        name="lfm2_moe",
        model_type="lfm2_moe",
        config={
            **EXPERTS,
            "num_dense_layers": 2,
            "layer_types": ["conv", "full_attention", "conv"] * 2,
        },
    ),
    Zoo(name="lfm3", model_type="lfm3", config={"sliding_window": 6, "head_dim": 8}),
    Zoo(
        name="lfm3_legacy",
        model_type="lfm3",
        config={"sliding_window": 6, "head_dim": 8, "use_sandwich_norm": False},
        on_disk={"layer_types": None},
    ),
    Zoo(
        name="qwen3_next",
        model_type="qwen3_next",
        config={**QWEN2, **DELTA, "mlp_only_layers": [2]},
    ),
    Zoo(
        name="qwen3_next_legacy",
        model_type="qwen3_next",
        config={**QWEN2, **DELTA, "decoder_sparse_step": 2, "full_attention_interval": 3},
        on_disk={"layer_types": None, "full_attention_interval": 3},
    ),
    Zoo(name="qwen3_5_text", model_type="qwen3_5_text", config=DELTA),
    Zoo(name="qwen3_5_moe_text", model_type="qwen3_5_moe_text", config={**QWEN2, **DELTA}),
    *(  # a multimodal checkpoint that was cut down to its text model
        Zoo(
            name=f"{name}_cut",
            model_type=name,
            config=config,
            rename=lambda tensor: tensor.replace("model.", "model.language_model.", 1),
        )
        for name, config in (
            ("qwen3_5_text", DELTA),
            ("qwen3_5_moe_text", {**QWEN2, **DELTA}),
        )
    ),
    Zoo(name="olmo_hybrid", model_type="olmo_hybrid", config=DELTA),
    Zoo(
        name="olmo_hybrid_legacy",
        model_type="olmo_hybrid",
        config=DELTA,
        on_disk={"layer_types": None},
    ),
    Zoo(
        name="recurrent_gemma",
        model_type="recurrent_gemma",
        config={"attention_window_size": 6, "lru_width": 32},
    ),
    Zoo(
        name="kimi_linear",
        model_type="kimi_linear",
        config={
            **MLA,
            **ROUTED,
            "num_local_experts": 4,
            "num_experts": 4,
            "linear_attn_config": {
                "full_attn_layers": [2, 5],
                "kda_layers": [1, 3, 4, 6],
                "head_dim": 8,
                "num_heads": 4,
                "short_conv_kernel_size": 4,
            },
        },
    ),
    Zoo(
        name="bailing_hybrid",
        model_type="bailing_hybrid",
        config={**MLA, **ROUTED, "num_experts": 4, "layer_group_size": 3, "head_dim": 8},
    ),
    Zoo(
        name="rwkv",
        model_type="rwkv",
        config={"attention_hidden_size": 32, "context_length": 64, "rescale_every": 0},
        refused={"start": "layer 0 has other tensors"},
    ),
    Zoo(
        name="rwkv_rescaled",
        model_type="rwkv",
        config={"attention_hidden_size": 32, "context_length": 64, "rescale_every": 5},
        refused={
            "interleaved": "position end is possible",
            "start": "layer 0 has other tensors",
            "list": "halved",
        },
    ),
    Zoo(
        name="xlstm",
        model_type="xlstm",
        config={
            "hidden_size": 128,
            "num_heads": 4,
            "chunk_size": 8,
            "num_blocks": 6,
        },
    ),
)
