"""Recipes of further models that see or hear, whose decoder has a row of its own or a known one."""

from __future__ import annotations

from family_zoo import Zoo
from zoo_mixture import ROUTED
from zoo_multimodal import EXPERTS, QWEN_TOWER, ROPE, SIGLIP, TOKENS, TOWER

IMAGE = {"image_token_id": 91}
AUDIO = {"audio_token_id": 91}
WHISPER = {
    "d_model": 32,
    "encoder_layers": 6,
    "encoder_attention_heads": 2,
    "encoder_ffn_dim": 48,
    "num_mel_bins": 16,
    "max_source_positions": 32,
    "hidden_size": 32,
    "intermediate_size": 128,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "n_window": 4,
    "output_dim": 32,
    "downsample_hidden_size": 8,
}
VQ = {
    "base_channels": 32,
    "channel_multiplier": [1, 1],
    "num_res_blocks": 1,
    "num_embeddings": 16,
    "codebook_size": 16,
    "latent_channels": 32,
    "z_channels": 4,
    "embed_dim": 4,
}
TAPPED = {**QWEN_TOWER, "deepstack_visual_indexes": [0, 1], "num_position_embeddings": 16}
OPT = {"model_type": "opt", "ffn_dim": 48, "word_embed_proj_dim": 32}

WRAPPERS = (
    Zoo(
        name="glm4v",
        model_type="glm4v",
        config={"vision_config": QWEN_TOWER, **TOKENS},
        text={"rope_parameters": ROPE},
    ),
    Zoo(
        name="glm4v_moe",
        model_type="glm4v_moe",
        config={"vision_config": QWEN_TOWER, **TOKENS},
        text={
            **ROUTED,
            "first_k_dense_replace": 2,
            "head_dim": 8,
            "rope_parameters": {**ROPE, "mrope_section": [1, 1, 0], "partial_rotary_factor": 0.5},
        },
    ),
    Zoo(
        name="glm_ocr",
        model_type="glm_ocr",
        config={"vision_config": QWEN_TOWER, **TOKENS},
        text={"rope_parameters": ROPE, "head_dim": 8},
    ),
    Zoo(
        name="hunyuan_vl",
        model_type="hunyuan_vl",
        config={"vision_config": {**TOWER, "out_hidden_size": 32}, **IMAGE},
        text={
            "head_dim": 8,
            "rope_parameters": {
                **ROPE,
                "rope_type": "xdrope",
                "mrope_section": [1, 1, 1, 1],
                "alpha": 2.0,
                "factor": 1.0,
            },
        },
    ),
    Zoo(
        name="paddleocr_vl",
        model_type="paddleocr_vl",
        config={"vision_config": TOWER, **TOKENS},
        text={"rope_parameters": ROPE, "use_bias": True, "head_dim": 8},
    ),
    Zoo(
        name="ernie4_5_vl_moe",
        model_type="ernie4_5_vl_moe",
        config={"vision_config": QWEN_TOWER, **TOKENS},
        text={
            "rope_parameters": ROPE,
            "moe_num_experts": 4,
            "moe_k": 2,
            "moe_intermediate_size": [24, 16],
            "mlp_layer_types": ["dense", "dense", *["sparse"] * 4],
        },
    ),
    Zoo(
        name="qwen2_5_omni_thinker",
        model_type="qwen2_5_omni_thinker",
        config={"vision_config": QWEN_TOWER, "audio_config": WHISPER, **TOKENS},
        text={
            "rope_parameters": ROPE,
            "use_sliding_window": True,
            "sliding_window": 6,
            "max_window_layers": 4,
        },
    ),
    Zoo(
        name="qwen3_omni_moe_thinker",
        model_type="qwen3_omni_moe_thinker",
        config={"vision_config": TAPPED, "audio_config": WHISPER, **TOKENS},
        text={**EXPERTS, "rope_parameters": ROPE, "head_dim": 8, "mlp_only_layers": [1]},
        refused={"start": "adds features"},
    ),
    Zoo(
        name="granite_docling",
        model_type="granite_docling",
        config={
            "vision_config": {**TOWER, "deepstack_visual_indexes": [0, 1], "out_hidden_size": 32},
            **IMAGE,
        },
        text={"residual_multiplier": 0.4},
        refused={"start": "adds features"},
    ),
    Zoo(
        name="emu3",
        model_type="emu3",
        config={
            "vq_config": VQ,
            "pad_token_id": 0,
            "vocabulary_map": {"<image>": 5, "<|visual token 000000|>": 50},
        },
        text={},
    ),
    Zoo(
        name="chameleon",
        model_type="chameleon",
        config={"vq_config": VQ, "vocabulary_map": {"<image>": 5}},
    ),
    Zoo(
        name="phi4_multimodal",
        model_type="phi4_multimodal",
        config={
            "vision_config": {**TOWER, "num_hidden_layers": 2},
            "audio_config": {
                "hidden_size": 32,
                "intermediate_size": 24,
                "num_blocks": 1,
                "num_attention_heads": 2,
                "nemo_conv_channels": 8,
                "ext_pw_out_channel": 32,
                "input_size": 16,
            },
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
            "original_max_position_embeddings": 128,
        },
    ),
    Zoo(
        name="kosmos-2.5",
        model_type="kosmos-2.5",
        config={"vision_config": {**TOWER, "head_dim": 16, "patch_embed_hidden_size": 32}},
        text={"layers": 6, "embed_dim": 32, "ffn_dim": 48, "attention_heads": 4},
    ),
    Zoo(
        name="voxtral",
        model_type="voxtral",
        config={"audio_config": WHISPER, **AUDIO, "tie_word_embeddings": False},
        text={"model_type": "llama", "head_dim": 8},
    ),
    Zoo(
        name="qwen2_audio",
        model_type="qwen2_audio",
        config={"audio_config": WHISPER, "audio_token_index": 91},
        text={"model_type": "qwen2"},
    ),
    Zoo(
        name="qwen3_asr",
        model_type="qwen3_asr",
        config={"audio_config": WHISPER, **AUDIO},
        text={"model_type": "qwen3", "head_dim": 8},
    ),
    Zoo(
        name="video_llama_3",
        model_type="video_llama_3",
        config={"vision_config": TOWER, **TOKENS},
        text={"model_type": "qwen2"},
    ),
    Zoo(
        name="qianfan_ocr",
        model_type="qianfan_ocr",
        config={
            "vision_config": {**TOWER, "image_size": [28, 28], "patch_size": [14, 14]},
            **IMAGE,
        },
        text={"model_type": "qwen3", "head_dim": 8},
    ),
    Zoo(
        name="janus",
        model_type="janus",
        config={
            "vision_config": {**TOWER, "projection_dim": 32},
            "vq_config": {**VQ, "projection_dim": 32},
            **IMAGE,
        },
        text={"model_type": "llama"},
    ),
    Zoo(
        name="exaone4_5",
        model_type="exaone4_5",
        config={"vision_config": QWEN_TOWER, **TOKENS},
        text={"model_type": "exaone4", "sliding_window": 6, "head_dim": 8},
    ),
    Zoo(
        name="exaone4_5_released",
        model_type="exaone4_5",
        config={"vision_config": QWEN_TOWER, **TOKENS},
        text={"model_type": "exaone4", "sliding_window": 6, "head_dim": 8},
        on_disk={"text_config.model_type": "exaone4_5_text"},
    ),
    Zoo(
        name="fuyu",
        model_type="fuyu",
        config={**IMAGE, "image_size": 28, "patch_size": 14, "hidden_size": 32},
        text={"model_type": "persimmon"},
    ),
)

# Models that compute nothing of text alone, or whose class is no language model: of each the part
# that is called, and what it must be given besides tokens.
NEED_MORE = (
    Zoo(
        name="blip-2",
        model_type="blip-2",
        config={"vision_config": TOWER, "qformer_config": {**TOWER, "encoder_hidden_size": 32}},
        text=OPT,
    ),
    Zoo(
        name="kosmos-2",
        model_type="kosmos-2",
        config={"vision_config": TOWER},
        text={"layers": 6, "embed_dim": 32, "ffn_dim": 48, "attention_heads": 4},
    ),
    Zoo(
        name="shieldgemma2",
        model_type="shieldgemma2",
        config={"vision_config": SIGLIP, "mm_tokens_per_image": 4, "image_token_index": 91},
        text={"sliding_window": 6, "head_dim": 8},
    ),
    Zoo(
        name="voxtral_realtime",
        model_type="voxtral_realtime",
        config={"audio_config": {**WHISPER, "head_dim": 8, "vocab_size": 96}},
        text={"head_dim": 8, "sliding_window": 6},
    ),
)
