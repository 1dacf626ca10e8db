"""Rows of the multimodal models whose text decoder is a family of its own. Data only."""

from __future__ import annotations

from .family import Wrapper

WRAPPERS: tuple[Wrapper, ...] = (
    Wrapper(model_types=("gemma3", "shieldgemma2"), text_type="gemma3_text"),
    Wrapper(model_types=("gemma4",), text_type="gemma4_text"),
    Wrapper(model_types=("gemma4_unified",), text_type="gemma4_unified_text"),
    Wrapper(model_types=("mistral3",), text_type="mistral"),
    Wrapper(
        model_types=("llava", "llava_next", "llava_next_video", "vipllava", "video_llava"),
        text_type="llama",
    ),
    Wrapper(model_types=("llava_onevision",), text_type="qwen2"),
    Wrapper(model_types=("paligemma",), text_type="gemma"),
    Wrapper(
        model_types=("qwen2_vl",),
        text_type="qwen2_vl_text",
        prefixes=("model.language_model.layers.", "model.layers."),
    ),
    Wrapper(
        model_types=("qwen2_5_vl",),
        text_type="qwen2_5_vl_text",
        prefixes=("model.language_model.layers.", "model.layers."),
    ),
    Wrapper(
        model_types=("qwen3_vl",),
        text_type="qwen3_vl_text",
        deepstack="vision_config.deepstack_visual_indexes",
    ),
    Wrapper(
        model_types=("qwen3_vl_moe",),
        text_type="qwen3_vl_moe_text",
        deepstack="vision_config.deepstack_visual_indexes",
    ),
    Wrapper(model_types=("qwen3_5",), text_type="qwen3_5_text"),
    Wrapper(model_types=("qwen3_5_moe",), text_type="qwen3_5_moe_text"),
    Wrapper(model_types=("llama4",), text_type="llama4_text"),
    Wrapper(model_types=("mllama",), text_type="mllama_text_model"),
    Wrapper(model_types=("internvl",), text_type="qwen2"),
    Wrapper(
        model_types=("idefics2",),
        text_type="mistral",
        prefixes=("model.text_model.layers.",),
    ),
    Wrapper(
        model_types=("idefics3", "smolvlm"),
        text_type="llama",
        prefixes=("model.text_model.layers.",),
    ),
    Wrapper(model_types=("aria",), text_type="aria_text"),
    Wrapper(model_types=("aya_vision", "cohere2_vision"), text_type="cohere2"),
    Wrapper(model_types=("got_ocr2",), text_type="qwen2"),
    Wrapper(model_types=("lfm2_vl",), text_type="lfm2"),
)
