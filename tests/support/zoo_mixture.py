"""Recipes of the families with a mixture of experts in some or all layers."""

from __future__ import annotations

from family_zoo import Zoo, mtp_layer
from zoo_dense import MLA

EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
LOCAL = {"num_local_experts": 4, "num_experts_per_tok": 2}
ROUTED = {
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 24,
    "n_shared_experts": 1,
    "n_group": 1,
    "topk_group": 1,
}
WINDOW = {"use_sliding_window": True, "sliding_window": 6}
QWEN2 = {**EXPERTS, "shared_expert_intermediate_size": 24}
DSA = {"index_topk": 4, "index_n_heads": 2, "index_head_dim": 16}
SPARSE_FROM_2 = ["dense", "dense", *["sparse"] * 4]
ALTERNATE = ["sliding_attention", "full_attention", "sliding_attention"] * 2

SPARSE_ATTENTION = {
    "use_sparse_attention": True,
    "sparse_index_dim": 8,
    "sparse_num_index_heads": 2,
    "sparse_topk_blocks": 2,
    "sparse_block_size": 4,
    "sparse_attention_freq": [0, 0, 1, 1, 0, 1],
    "sparse_disable_index_value": [0, 0, 1, 1, 0, 1],
}

MIXTURE = (
    Zoo(name="mixtral", model_type="mixtral", config={**LOCAL, "sliding_window": 6}),
    Zoo(name="minimax_m2", model_type="minimax_m2", config={**LOCAL, "head_dim": 8}),
    Zoo(name="phimoe", model_type="phimoe", config={**LOCAL, "attention_bias": True}),
    Zoo(
        name="mistral4",
        model_type="mistral4",
        config={**MLA, **ROUTED, "first_k_dense_replace": 2},
    ),
    Zoo(
        name="zaya",
        model_type="zaya",
        config={
            "num_experts": 4,
            "num_experts_per_tok": 1,
            "moe_intermediate_size": 24,
            "router_hidden_size": 16,
            "head_dim": 8,
            "sliding_window": 6,
            "layer_types": ["hybrid", "hybrid_sliding", "hybrid"] * 2,
        },
        refused={
            "interleaved": "goes on from the state",
            "list": "goes on from the state",
            "start": "layer 0 has other tensors",
        },
    ),
    Zoo(name="olmoe", model_type="olmoe", config=EXPERTS),
    Zoo(
        name="hunyuan_v1_moe",
        model_type="hunyuan_v1_moe",
        config={"num_experts": 4, "moe_topk": 2, "head_dim": 8},
    ),
    Zoo(
        name="hunyuan_v1_moe_lists",
        model_type="hunyuan_v1_moe",
        config={"num_experts": 4, "moe_topk": [2, 1, 2, 3, 1, 2], "head_dim": 8},
    ),
    Zoo(name="qwen2_moe", model_type="qwen2_moe", config=QWEN2),
    Zoo(
        name="qwen2_moe_step",
        model_type="qwen2_moe",
        config={**QWEN2, "decoder_sparse_step": 2, "mlp_only_layers": [3]},
    ),
    Zoo(
        name="qwen2_moe_window_legacy",
        model_type="qwen2_moe",
        config={**QWEN2, **WINDOW, "max_window_layers": 5, "mlp_only_layers": [2]},
        on_disk={"layer_types": None},
    ),
    Zoo(name="qwen3_moe", model_type="qwen3_moe", config={**EXPERTS, "mlp_only_layers": [0, 3]}),
    Zoo(
        name="qwen3_moe_step", model_type="qwen3_moe", config={**EXPERTS, "decoder_sparse_step": 2}
    ),
    Zoo(
        name="flint",
        model_type="flint",
        config={**QWEN2, "sliding_window": 6, "head_dim": 8},
    ),
    Zoo(
        name="flint_legacy",
        model_type="flint",
        config={**QWEN2, "sliding_window": 6, "head_dim": 8},
        on_disk={"layer_types": None, "mlp_only_layers": None},
    ),
    Zoo(name="granitemoe", model_type="granitemoe", config={**LOCAL, "residual_multiplier": 0.4}),
    Zoo(
        name="granitemoeshared",
        model_type="granitemoeshared",
        config={**LOCAL, "shared_intermediate_size": 24},
    ),
    Zoo(
        name="granitemoe_swa",
        model_type="granitemoe_swa",
        config={**LOCAL, "sliding_window": 6, "shared_intermediate_size": 24},
    ),
    Zoo(
        name="deepseek_v2",
        model_type="deepseek_v2",
        config={**MLA, **ROUTED, "first_k_dense_replace": 2},
    ),
    Zoo(
        name="deepseek_v3",
        model_type="deepseek_v3",
        config={**MLA, **ROUTED, "first_k_dense_replace": 2},
        extra=mtp_layer,
    ),
    Zoo(
        name="glm4_moe",
        model_type="glm4_moe",
        config={**ROUTED, "first_k_dense_replace": 2, "head_dim": 8},
    ),
    Zoo(
        name="dots1",
        model_type="dots1",
        config={
            **ROUTED,
            "first_k_dense_replace": 2,
            "head_dim": 8,
            "sliding_window": 6,
            "max_window_layers": 3,
        },
    ),
    Zoo(
        name="dots1_legacy",
        model_type="dots1",
        config={
            **ROUTED,
            "first_k_dense_replace": 2,
            "head_dim": 8,
            "sliding_window": 6,
            "max_window_layers": 3,
        },
        on_disk={"layer_types": None},
    ),
    Zoo(name="solar_open", model_type="solar_open", config={**ROUTED, "head_dim": 8}),
    Zoo(
        name="deepseek_v32",
        model_type="deepseek_v32",
        config={**MLA, **ROUTED, **DSA, "first_k_dense_replace": 2},
    ),
    Zoo(
        name="glm_moe_dsa",
        model_type="glm_moe_dsa",
        config={**MLA, **ROUTED, **DSA, "first_k_dense_replace": 2},
    ),
    Zoo(
        name="glm_moe_dsa_shared_picks",
        model_type="glm_moe_dsa",
        config={
            **MLA,
            **ROUTED,
            **DSA,
            "first_k_dense_replace": 2,
            "indexer_types": ["full", "full", "shared", "full", "shared", "shared"],
        },
        refused={"list": "picks the tokens"},
    ),
    Zoo(
        name="glm4_moe_lite",
        model_type="glm4_moe_lite",
        config={**MLA, **ROUTED, "mlp_layer_types": SPARSE_FROM_2},
    ),
    Zoo(
        name="glm4_moe_lite_legacy",
        model_type="glm4_moe_lite",
        config={**MLA, **ROUTED},
        on_disk={"mlp_layer_types": None},
    ),
    Zoo(
        name="exaone_moe",
        model_type="exaone_moe",
        config={**EXPERTS, "num_shared_experts": 1, "sliding_window": 6, "head_dim": 8},
    ),
    Zoo(
        name="exaone_moe_legacy",
        model_type="exaone_moe",
        config={**EXPERTS, "num_shared_experts": 1, "sliding_window": 6, "head_dim": 8},
        on_disk={"layer_types": None, "mlp_layer_types": None},
    ),
    Zoo(
        name="hy_v3",
        model_type="hy_v3",
        config={**EXPERTS, "num_shared_experts": 1, "head_dim": 8},
    ),
    Zoo(
        name="mimo_v2_flash",
        model_type="mimo_v2_flash",
        config={**ROUTED, "sliding_window": 6, "head_dim": 8, "v_head_dim": 8},
    ),
    Zoo(
        name="cohere2_moe",
        model_type="cohere2_moe",
        config={
            **EXPERTS,
            "num_shared_experts": 1,
            "sliding_window": 6,
            "head_dim": 8,
            "first_k_dense_replace": 2,
            "prefix_dense_intermediate_size": 40,
        },
    ),
    Zoo(
        name="mellum",
        model_type="mellum",
        config={
            **EXPERTS,
            "sliding_window": 6,
            "head_dim": 8,
            "layer_types": ALTERNATE,
            "mlp_layer_types": SPARSE_FROM_2,
        },
    ),
    Zoo(
        name="laguna",
        model_type="laguna",
        config={
            **EXPERTS,
            "shared_expert_intermediate_size": 24,
            "sliding_window": 6,
            "head_dim": 8,
            "layer_types": ALTERNATE,
            "num_attention_heads_per_layer": [4, 2, 4, 4, 2, 4],
        },
    ),
    Zoo(
        name="kolibri1",
        model_type="kolibri1",
        config={
            **EXPERTS,
            "shared_expert_intermediate_size": 24,
            "sliding_window": 6,
            "head_dim": 8,
        },
    ),
    Zoo(
        name="flex_olmo",
        model_type="flex_olmo",
        config={"num_experts": 4, "num_experts_per_tok": 2},
    ),
    Zoo(
        name="afmoe",
        model_type="afmoe",
        config={
            **EXPERTS,
            "num_shared_experts": 1,
            "num_dense_layers": 2,
            "sliding_window": 6,
            "head_dim": 8,
        },
    ),
    Zoo(
        name="afmoe_legacy",
        model_type="afmoe",
        config={
            **EXPERTS,
            "num_shared_experts": 1,
            "num_dense_layers": 1,
            "sliding_window": 6,
            "head_dim": 8,
        },
        on_disk={"layer_types": None},
    ),
    Zoo(name="axk1", model_type="axk1", config={**MLA, **ROUTED}),
    Zoo(name="axk2", model_type="axk2", config={**MLA, **ROUTED, **DSA}),
    Zoo(
        name="ernie4_5_moe",
        model_type="ernie4_5_moe",
        config={"moe_num_experts": 4, "moe_k": 2, "moe_intermediate_size": 24},
    ),
    Zoo(
        name="ernie4_5_moe_until",
        model_type="ernie4_5_moe",
        config={
            "moe_num_experts": 4,
            "moe_k": 2,
            "moe_intermediate_size": 24,
            "moe_layer_start_index": 2,
            "moe_layer_end_index": 3,
        },
    ),
    Zoo(
        name="aria_text",
        model_type="aria_text",
        config={"moe_num_experts": 4, "moe_topk": 2, "head_dim": 8},
    ),
    Zoo(
        name="jetmoe",
        model_type="jetmoe",
        config={"num_local_experts": 4, "num_experts_per_tok": 2, "kv_channels": 8},
    ),
    Zoo(
        name="gpt_oss",
        model_type="gpt_oss",
        config={**LOCAL, "sliding_window": 6, "head_dim": 8},
    ),
    Zoo(
        name="gpt_oss_legacy",
        model_type="gpt_oss",
        config={**LOCAL, "sliding_window": 6, "head_dim": 8},
        on_disk={"layer_types": None},
    ),
    Zoo(
        name="llama4_text",
        model_type="llama4_text",
        config={
            "num_local_experts": 4,
            "head_dim": 8,
            "attention_chunk_size": 6,
            "intermediate_size_mlp": 40,
            "interleave_moe_layer_step": 2,
        },
    ),
    Zoo(
        name="llama4_text_legacy",
        model_type="llama4_text",
        config={
            "num_local_experts": 4,
            "head_dim": 8,
            "attention_chunk_size": 6,
            "intermediate_size_mlp": 40,
            "interleave_moe_layer_step": 2,
        },
        on_disk={"layer_types": None, "no_rope_layers": [], "moe_layers": None},
    ),
    Zoo(
        name="minimax_m3_vl_text",
        model_type="minimax_m3_vl_text",
        config={
            **LOCAL,
            "head_dim": 8,
            "dense_intermediate_size": 48,
            "shared_intermediate_size": 24,
            "index_n_heads": 2,
            "index_head_dim": 8,
            "index_block_size": 4,
            "mlp_layer_types": SPARSE_FROM_2,
            "layer_types": [
                "full_attention",
                *["minimax_m3_sparse"] * 3,
                "full_attention",
                "minimax_m3_sparse",
            ],
        },
    ),
    Zoo(
        name="minimax_m3_vl_released",
        model_type="minimax_m3_vl",
        config={
            "vision_config": {
                "hidden_size": 32,
                "intermediate_size": 48,
                "num_hidden_layers": 2,
                "num_attention_heads": 2,
            },
            "projector_hidden_size": 32,
        },
        text={
            **LOCAL,
            "head_dim": 8,
            "rotary_dim": 4,
            "dense_intermediate_size": 48,
            "shared_intermediate_size": 24,
            "moe_layer_freq": [0, 0, 1, 1, 1, 1],
            "sparse_attention_config": SPARSE_ATTENTION,
        },
        # In place of what transformers makes of them.
        on_disk={
            "text_config.layer_types": None,
            "text_config.mlp_layer_types": None,
            "text_config.moe_layer_freq": [0, 0, 1, 1, 1, 1],
            "text_config.sparse_attention_config": SPARSE_ATTENTION,
        },
    ),
    Zoo(
        name="dbrx",
        model_type="dbrx",
        base=False,
        config={
            "d_model": 32,
            "n_heads": 4,
            "n_layers": 6,
            "max_seq_len": 128,
            "vocab_size": 96,
            "attn_config": {"kv_n_heads": 2, "clip_qkv": 8.0, "rope_theta": 10000.0},
            "ffn_config": {
                "ffn_hidden_size": 24,
                "moe_num_experts": 4,
                "moe_top_k": 2,
                "hidden_size": 32,
            },
        },
    ),
    Zoo(
        name="hy_v4",
        model_type="hy_v4",
        config={**MLA, **ROUTED, **DSA, "num_experts": 4, "num_shared_experts": 1},
        refused={"list": "picks the tokens"},
    ),
)
