"""Recipes of the newest families, text models and those that see or hear."""

from __future__ import annotations

from family_zoo import Zoo
from zoo_mixture import ROUTED
from zoo_multimodal import CLIP, DELTA, EXPERTS, QWEN3_TOWER, ROPE, TOKENS, TOWER
from zoo_wrappers import IMAGE, VQ

SAM = {
    "hidden_size": 16,
    "output_channels": 8,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 64,
    "patch_size": 16,
    "mlp_dim": 16,
    "window_size": 2,
    "global_attn_indexes": [1],
    "downsample_channels": [8, 8],
}
MOLMO = {
    "vision_config": {**TOWER, "image_size": [28, 28]},
    "adapter_config": {
        "hidden_size": 32,
        "intermediate_size": 32,
        "text_hidden_size": 32,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "vision_feature_layer": [-1],
    },
}
STEP = {
    **EXPERTS,
    "n_routed_experts": 4,
    "head_dim": 8,
    "sliding_window": 6,
    "share_expert_dim": 24,
    "num_sliding_attention_heads": 6,
    "layer_types": ["full_attention", "sliding_attention", "sliding_attention"] * 2,
    "swiglu_limits": [0.0] * 4 + [0.5, 0.5],
    "swiglu_limits_shared": [0.0] * 5 + [0.5],
}
LATENT = {"kv_lora_rank": 8, "qk_rope_head_dim": 4, "qk_nope_head_dim": 8, "v_head_dim": 8}
PICKS = {"index_topk": 32, "index_head_dim": 8, "index_n_heads": 2}
ZAMBA = {
    "num_hidden_layers": 8,
    "layers_block_type": ["mamba", "mamba", "hybrid", "mamba", "mamba", "hybrid", "mamba", "mamba"],
    "mamba_d_state": 8,
}

FURTHER = (
    Zoo(
        name="cosmos3_edge",
        model_type="cosmos3_edge",
        config={"vision_config": TOWER, **TOKENS},
        text={"head_dim": 8, "rope_parameters": ROPE},
    ),
    Zoo(
        name="cosmos3_omni",
        model_type="cosmos3_omni",
        config={"vision_config": QWEN3_TOWER, **TOKENS},
        text={"rope_parameters": ROPE, "head_dim": 8},
        refused={"start": "no new layer can stand before layer 2"},
    ),
    Zoo(
        name="deepseek_ocr2",
        model_type="deepseek_ocr2",
        config={
            "vision_config": {
                "sam_config": SAM,
                "encoder_config": {**TOWER, "num_key_value_heads": 2},
            },
            **IMAGE,
        },
        text={**ROUTED, "mlp_layer_types": ["dense"] * 2 + ["sparse"] * 4},
    ),
    Zoo(
        name="unlimited_ocr",
        model_type="unlimited_ocr",
        config={"vision_config": {"sam_config": SAM, "encoder_config": CLIP}, **IMAGE},
        text={**ROUTED, "sliding_window": 6},
    ),
    Zoo(
        name="granite4_vision",
        model_type="granite4_vision",
        config={
            "vision_config": {**CLIP, "hidden_size": 64, "num_hidden_layers": 4},
            "qformer_config": {"model_type": "blip_2_qformer", "intermediate_size": 48},
            "downsample_rate": "1/2",
            "deepstack_layer_map": [[0, 0], [1, 3]],
            "spatial_target_layers": [2, 5],
        },
        text={"residual_multiplier": 0.5},
    ),
    Zoo(
        name="molmo2",
        model_type="molmo2",
        config=MOLMO,
        text={
            "head_dim": 8,
            "additional_vocab_size": 4,
            "rope_scaling_layers": [0, 2, 5],
            "rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0},
        },
    ),
    Zoo(
        name="molmo2_norm_after",
        model_type="molmo2",
        config=MOLMO,
        text={
            "head_dim": 8,
            "additional_vocab_size": 4,
            "norm_after": True,
            "qk_norm_type": "olmo",
        },
    ),
    Zoo(
        name="step3p7",
        model_type="step3p7",
        config={"vision_config": TOWER, **IMAGE},
        text=STEP,
    ),
    Zoo(
        name="step3p7_released",
        model_type="step3p7",
        config={"vision_config": TOWER, **IMAGE},
        text=STEP,
        on_disk={
            "text_config.mlp_layer_types": None,
            "text_config.moe_layers_enum": "3,4,5,6",
            "text_config.num_nextn_predict_layers": 1,
            "text_config.layer_types": [*STEP["layer_types"], "full_attention"],
            "text_config.swiglu_limits": [*STEP["swiglu_limits"], 0.0],
        },
    ),
    Zoo(
        name="cohere_compass",
        model_type="cohere_compass",
        config={"vision_config": QWEN3_TOWER, **TOKENS},
        text={
            "sliding_window": 6,
            "layer_types": ["sliding_attention", "full_attention"] * 3,
            "rope_parameters": {"sliding_attention": ROPE, "full_attention": ROPE},
        },
    ),
    Zoo(
        name="dots3_note_text",
        model_type="dots3_note_text",
        config={
            **ROUTED,
            **PICKS,
            **LATENT,
            "moe_shared_expert_intermediate_size": 24,
            "num_key_value_heads": 4,
            "head_dim": 12,
            "q_lora_rank": 16,
            "sliding_window_size": 6,
            **{f"swa_{name}": value for name, value in LATENT.items()},
            **{"swa_num_attention_heads": 4, "swa_num_key_value_heads": 4},
            **{"swa_q_lora_rank": 16, "swa_head_dim": 12},
        },
    ),
    Zoo(
        name="inkling_text",
        model_type="inkling_text",
        config={
            **EXPERTS,
            "n_routed_experts": 4,
            "head_dim": 8,
            "swa_head_dim": 8,
            "swa_num_attention_heads": 4,
            "swa_num_key_value_heads": 2,
            "sliding_window_size": 6,
            "rel_extent": 32,
            "d_rel": 4,
            "mlp_layer_types": ["dense"] * 2 + ["sparse"] * 4,
        },
    ),
    Zoo(
        name="mistral_large4",
        model_type="mistral_large4",
        config={"vision_config": {**TOWER, "model_type": "pixtral"}, **IMAGE},
        text={
            **ROUTED,
            **LATENT,
            **PICKS,
            "num_key_value_heads": 4,
            "kv_source_layers": [0, 0, 2, 2, 2, 5],
            "no_rope_layers": [1, 1, 0, 0, 0, 1],
        },
        refused={"start": "no clone of it can stand before it"},
    ),
    Zoo(
        name="muse_glimmer",
        model_type="muse_glimmer",
        config={"vision_config": TOWER, **IMAGE},
        text={"head_dim": 8, "sliding_window": 6},
    ),
    Zoo(
        name="muse_glimmer_legacy",
        model_type="muse_glimmer",
        config={"vision_config": TOWER, **IMAGE},
        text={"head_dim": 8, "sliding_window": 6},
        on_disk={"text_config.layer_types": None, "text_config.layer_rope_theta": None},
    ),
    Zoo(
        name="qwen4_exp_text",
        model_type="qwen4_exp_text",
        config={
            **DELTA,
            **EXPERTS,
            "shared_expert_intermediate_size": 24,
            "hc_lowrank": 8,
            "indexer_n_heads": 2,
            "indexer_kv_heads": 1,
            "indexer_head_dim": 8,
            "indexer_budget": 8,
            "indexer_compress_ratio": 4,
        },
    ),
    Zoo(
        name="chameleon_swin_norm",
        model_type="chameleon",
        config={"swin_norm": True, "vq_config": VQ, "vocabulary_map": {"<image>": 5}},
    ),
    Zoo(name="moshi", model_type="moshi", config={"ffn_dim": 96, "head_dim": 8}),
    Zoo(name="megatron-bert", model_type="megatron-bert", config={"is_decoder": True}),
    Zoo(name="xlm-roberta-xl", model_type="xlm-roberta-xl", config={"is_decoder": True}),
    Zoo(
        name="gpt_neox_japanese",
        model_type="gpt_neox_japanese",
        config={"intermediate_multiple_size": 2},
        refused={"end": "layer 5 must stay the last", "interleaved": "layer 5 must stay the last"},
    ),
    Zoo(
        name="zamba",
        model_type="zamba",
        config={**ZAMBA, "n_mamba_heads": 2, "mamba_dt_rank": 4},
        depth=8,
    ),
    Zoo(
        name="zamba2",
        model_type="zamba2",
        config={
            **ZAMBA,
            "n_mamba_heads": 4,
            "mamba_headdim": 16,
            "mamba_ngroups": 1,
            "adapter_rank": 4,
        },
        depth=8,
    ),
)
