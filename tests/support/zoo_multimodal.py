"""Recipes of multimodal models, whose vision tower is as deep as the decoder."""

from __future__ import annotations

import re

from family_zoo import BASE, Names, Zoo

WINDOW = {"sliding_window": 6, "head_dim": 8}
DELTA = {
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "head_dim": 8,
}
TOWER = {
    "hidden_size": 32,
    "intermediate_size": 24,
    "num_hidden_layers": 6,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}
QWEN_TOWER = {
    "depth": 6,
    "embed_dim": 32,
    "hidden_size": 32,
    "intermediate_size": 24,
    "num_heads": 2,
    "out_hidden_size": 32,
    "patch_size": 14,
}
QWEN3_TOWER = {**QWEN_TOWER, "deepstack_visual_indexes": [0, 1], "num_position_embeddings": 16}
SIGLIP = {**TOWER, "model_type": "siglip_vision_model"}
CLIP = {**TOWER, "model_type": "clip_vision_model", "projection_dim": 16}
ROPE = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 10000.0}
TOKENS = {
    "image_token_id": 91,
    "video_token_id": 92,
    "vision_start_token_id": 93,
    "vision_end_token_id": 94,
}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}


def respelled(pattern: str, replacement: str) -> Names:
    return lambda name: re.sub(pattern, replacement, name)


FLAT = {name: BASE[name] for name in BASE} | {"text_config": None}

MULTIMODAL = (
    Zoo(
        name="gemma3",
        model_type="gemma3",
        config={"vision_config": SIGLIP, "mm_tokens_per_image": 4, "image_token_index": 91},
        text={**WINDOW, "sliding_window_pattern": 3},
    ),
    Zoo(
        name="gemma3_hub",
        model_type="gemma3",
        config={"vision_config": SIGLIP, "mm_tokens_per_image": 4, "image_token_index": 91},
        text={**WINDOW, "sliding_window_pattern": 3},
        on_disk={"text_config.layer_types": None, "text_config.sliding_window_pattern": 3},
        rename=respelled(r"^model\.language_model\.", "language_model.model."),
    ),
    Zoo(
        name="mistral3",
        model_type="mistral3",
        config={"vision_config": {**TOWER, "model_type": "pixtral"}, "image_token_index": 91},
        text={"model_type": "mistral", "head_dim": 8, "sliding_window": 6},
    ),
    Zoo(
        name="llava",
        model_type="llava",
        config={"vision_config": CLIP, "image_token_index": 91},
        text={"model_type": "llama"},
    ),
    Zoo(
        name="llava_without_count",
        model_type="llava",
        config={"vision_config": CLIP, "image_token_index": 91},
        text={"model_type": "llama", "num_hidden_layers": 32},
        on_disk={"text_config.num_hidden_layers": None},
        depth=32,
    ),
    Zoo(
        name="llava_next_mistral",
        model_type="llava_next",
        config={"vision_config": CLIP, "image_token_index": 91},
        text={"model_type": "mistral", "sliding_window": 6},
    ),
    Zoo(
        name="paligemma",
        model_type="paligemma",
        config={"vision_config": SIGLIP, "image_token_index": 91, "projection_dim": 32},
        text={"model_type": "gemma", "head_dim": 8},
    ),
    Zoo(
        name="qwen2_vl",
        model_type="qwen2_vl",
        config={"vision_config": QWEN_TOWER, **TOKENS},
        text={"rope_parameters": ROPE},
    ),
    Zoo(
        name="qwen2_vl_flat",
        model_type="qwen2_vl",
        config={"vision_config": QWEN_TOWER, **TOKENS},
        text={"rope_parameters": ROPE},
        on_disk={**FLAT, "rope_scaling": ROPE | {"type": "mrope"}},
        rename=respelled(r"^model\.language_model\.", "model."),
    ),
    Zoo(
        name="qwen2_5_vl",
        model_type="qwen2_5_vl",
        config={"vision_config": QWEN_TOWER, **TOKENS},
        text={
            "rope_parameters": ROPE,
            "use_sliding_window": True,
            "sliding_window": 6,
            "max_window_layers": 4,
        },
    ),
    Zoo(
        name="qwen3_vl",
        model_type="qwen3_vl",
        config={"vision_config": QWEN3_TOWER, **TOKENS},
        text={"rope_parameters": ROPE, "head_dim": 8},
        refused={"start": "adds features"},
    ),
    Zoo(
        name="qwen3_vl_moe",
        model_type="qwen3_vl_moe",
        config={"vision_config": QWEN3_TOWER, **TOKENS},
        text={"rope_parameters": ROPE, "head_dim": 8, **EXPERTS, "mlp_only_layers": [1]},
        refused={"start": "adds features"},
    ),
    Zoo(
        name="qwen3_5",
        model_type="qwen3_5",
        config={"vision_config": QWEN3_TOWER, **TOKENS},
        text={**DELTA, "rope_parameters": ROPE},
    ),
    Zoo(
        name="llama4",
        model_type="llama4",
        config={
            "vision_config": {
                **TOWER,
                "vision_output_dim": 32,
                "projector_input_dim": 32,
                "projector_output_dim": 32,
            },
            "image_token_index": 91,
        },
        text={
            "num_local_experts": 4,
            "head_dim": 8,
            "attention_chunk_size": 6,
            "intermediate_size_mlp": 40,
            "interleave_moe_layer_step": 2,
        },
    ),
    Zoo(
        name="mllama",
        model_type="mllama",
        config={
            "vision_config": {
                **TOWER,
                "num_global_layers": 2,
                "attention_heads": 2,
                "vision_output_dim": 64,
                "intermediate_layers_indices": [3],
                "max_num_tiles": 1,
                "supported_aspect_ratios": [[1, 1]],
            },
            "image_token_index": 91,
        },
        text={"cross_attention_layers": [3]},
    ),
    Zoo(
        name="gemma4",
        model_type="gemma4",
        config={
            "vision_config": {**TOWER, "head_dim": 16, "num_key_value_heads": 2},
            "image_token_id": 91,
        },
        text={
            **WINDOW,
            "global_head_dim": 16,
            "num_kv_shared_layers": 0,
            "hidden_size_per_layer_input": 0,
            "layer_types": ["sliding_attention", "sliding_attention", "full_attention"] * 2,
        },
    ),
    Zoo(
        name="gemma4_per_layer_embeddings",
        model_type="gemma4",
        config={
            "vision_config": {**TOWER, "head_dim": 16, "num_key_value_heads": 2},
            "image_token_id": 91,
        },
        text={
            **WINDOW,
            "global_head_dim": 16,
            "num_kv_shared_layers": 2,
            "use_double_wide_mlp": True,
            "hidden_size_per_layer_input": 4,
            "vocab_size_per_layer_input": 96,
            "layer_types": ["sliding_attention", "full_attention"] * 3,
        },
        refused={"interleaved": "layers from 4 on use the keys and values of layer 2"},
    ),
    Zoo(
        name="idefics3",
        model_type="idefics3",
        config={"vision_config": TOWER, "image_token_id": 91},
        text={"model_type": "llama"},
    ),
    Zoo(
        name="internvl",
        model_type="internvl",
        config={
            "vision_config": {**TOWER, "image_size": [28, 28], "patch_size": [14, 14]},
            "image_token_id": 91,
        },
        text={"model_type": "qwen2"},
    ),
)
