"""Rows of the multimodal models whose text decoder is a family of its own. Data only."""

from __future__ import annotations

from .family import Wrapper

NESTED = "model.language_model.layers."

# As most Hub repositories have it, made before a model's parts were under `model.`.
LANGUAGE_MODEL = "language_model.model.layers."

# The decoder's layers have the names that they have in a model of text alone.
AT_THE_ROOT = (NESTED, "model.layers.")

TEXT_MODEL = ("model.text_model.layers.", "text_model.model.layers.")

OPT = ("language_model.model.decoder.layers.", "model.language_model.decoder.layers.")

THINKER = ("thinker_config", "text_config")

OF_THE_THINKER = ("thinker.model.layers.", "thinker.model.language_model.layers.")

MULTIMODAL_LM = "AutoModelForMultimodalLM"

DEEPSTACK = "vision_config.deepstack_visual_indexes"

WRAPPERS: tuple[Wrapper, ...] = (
    Wrapper(model_types=("gemma3",), text_type="gemma3_text", fixed_text=True),
    Wrapper(
        model_types=("shieldgemma2",),
        text_type="gemma3_text",
        prefixes=(
            "model.language_model.model.layers.",  # what transformers saves has one more `model.`
            "model.model.language_model.model.layers.",
            "model.model.language_model.layers.",
        ),
    ),
    Wrapper(model_types=("gemma4",), text_type="gemma4_text", fixed_text=True),
    Wrapper(model_types=("gemma4_unified",), text_type="gemma4_unified_text", fixed_text=True),
    Wrapper(model_types=("mistral3",), text_type="mistral"),
    Wrapper(
        model_types=(
            *("llava", "llava_next", "llava_next_video", "vipllava", "video_llava"),
            *("deepseek_vl", "deepseek_vl_hybrid", "janus", "perception_lm"),
        ),
        text_type="llama",
    ),
    Wrapper(
        model_types=("voxtral", "glmasr", "omniasr"), text_type="llama", auto_class=MULTIMODAL_LM
    ),
    Wrapper(
        model_types=(
            *("llava_onevision", "internvl", "got_ocr2", "pp_chart2table", "ovis2", "fast_vlm"),
        ),
        text_type="qwen2",
    ),
    Wrapper(
        model_types=("qwen2_audio", "vibevoice_asr"),
        text_type="qwen2",
        auto_class=MULTIMODAL_LM,
    ),
    Wrapper(
        model_types=("video_llama_3",),
        text_type="qwen2",
        prefixes=AT_THE_ROOT,
    ),
    Wrapper(
        model_types=("fun_asr_nano", "moss_transcribe_diarize", "qwen3_asr"),
        text_type="qwen3",
        auto_class=MULTIMODAL_LM,
    ),
    Wrapper(model_types=("lighton_ocr",), text_type="qwen3"),
    Wrapper(
        model_types=("qianfan_ocr",),
        text_type="qwen3",
        # transformers saves the third name.
        prefixes=(LANGUAGE_MODEL, NESTED, "language_model.model.encoder.layers."),
    ),
    Wrapper(model_types=("paligemma",), text_type="gemma"),
    Wrapper(
        model_types=("qwen2_vl",), text_type="qwen2_vl_text", fixed_text=True, prefixes=AT_THE_ROOT
    ),
    Wrapper(
        model_types=("qwen2_5_vl",),
        text_type="qwen2_5_vl_text",
        fixed_text=True,
        prefixes=AT_THE_ROOT,
    ),
    Wrapper(
        model_types=("qwen3_vl",), text_type="qwen3_vl_text", fixed_text=True, deepstack=DEEPSTACK
    ),
    Wrapper(
        model_types=("qwen3_vl_moe",),
        text_type="qwen3_vl_moe_text",
        fixed_text=True,
        deepstack=DEEPSTACK,
    ),
    Wrapper(
        model_types=("qwen2_5_omni_thinker",),
        text_type="qwen2_5_omni_text",
        fixed_text=True,
        prefixes=AT_THE_ROOT,
    ),
    Wrapper(
        model_types=("qwen3_omni_moe_thinker",),
        text_type="qwen3_omni_moe_text",
        fixed_text=True,
        prefixes=AT_THE_ROOT,
        deepstack=DEEPSTACK,
    ),
    Wrapper(
        model_types=("qwen2_5_omni",),
        text_type="qwen2_5_omni_text",
        fixed_text=True,
        prefixes=OF_THE_THINKER,
        path=THINKER,
        auto_class=MULTIMODAL_LM,
    ),
    Wrapper(
        model_types=("qwen3_omni_moe",),
        text_type="qwen3_omni_moe_text",
        fixed_text=True,
        prefixes=OF_THE_THINKER,
        path=THINKER,
        deepstack="thinker_config.vision_config.deepstack_visual_indexes",
        talker="talker_config.accept_hidden_layer",
        auto_class=MULTIMODAL_LM,
    ),
    Wrapper(
        model_types=("minicpm_ocr", "minicpmv4_6", "minicpmv4_7"),
        text_type="qwen3_5_text",
    ),
    Wrapper(model_types=("qwen3_5",), text_type="qwen3_5_text", fixed_text=True),
    Wrapper(model_types=("qwen3_5_moe",), text_type="qwen3_5_moe_text", fixed_text=True),
    Wrapper(model_types=("llama4",), text_type="llama4_text", fixed_text=True),
    Wrapper(model_types=("mllama",), text_type="mllama_text_model", fixed_text=True),
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
    Wrapper(model_types=("aria",), text_type="aria_text", fixed_text=True),
    Wrapper(model_types=("aya_vision", "cohere2_vision"), text_type="cohere2"),
    Wrapper(model_types=("lfm2_vl",), text_type="lfm2"),
    Wrapper(model_types=("lfm3_vl",), text_type="lfm3"),
    Wrapper(model_types=("glm4v",), text_type="glm4v_text", fixed_text=True),
    Wrapper(model_types=("glm46v", "glmga"), text_type="glm4v_text"),
    Wrapper(model_types=("glm4v_moe",), text_type="glm4v_moe_text", fixed_text=True),
    Wrapper(model_types=("glm_ocr",), text_type="glm_ocr_text", fixed_text=True),
    Wrapper(
        model_types=("ernie4_5_vl_moe",),
        text_type="ernie4_5_vl_moe_text",
        fixed_text=True,
        prefixes=AT_THE_ROOT,
    ),
    Wrapper(model_types=("exaone4_5",), text_type="exaone4", text_names=("exaone4_5_text",)),
    Wrapper(model_types=("hyperclovax_vision_v2",), text_type="hyperclovax"),
    Wrapper(
        model_types=("hunyuan_vl",),
        text_type="hunyuan_vl_text",
        fixed_text=True,
        prefixes=AT_THE_ROOT,
    ),
    Wrapper(
        model_types=("paddleocr_vl",),
        text_type="paddleocr_vl_text",
        fixed_text=True,
        prefixes=AT_THE_ROOT,
    ),
    Wrapper(
        model_types=("granite_docling",),
        text_type="granite_docling_text",
        fixed_text=True,
        prefixes=TEXT_MODEL,
        deepstack=DEEPSTACK,
    ),
    Wrapper(
        model_types=("emu3",), text_type="emu3_text_model", fixed_text=True, prefixes=TEXT_MODEL
    ),
    Wrapper(
        model_types=("granite_speech", "granite_speech_plus"),
        text_type="granite",
        auto_class=MULTIMODAL_LM,
    ),
    Wrapper(
        model_types=("voxtral_realtime",),
        text_type="voxtral_realtime_text",
        auto_class=MULTIMODAL_LM,
    ),
    Wrapper(
        model_types=("kimi_k25",),
        text_type="deepseek_v3",
        text_names=("kimi_k2",),
        # transformers saves the third name.
        prefixes=(LANGUAGE_MODEL, NESTED, "language_model.model.blocks."),
    ),
    Wrapper(model_types=("minimax_m3_vl",), text_type="minimax_m3_vl_text", fixed_text=True),
    Wrapper(
        model_types=("nemotron_h_omni",),
        text_type="nemotron_h",
        prefixes=("language_model.backbone.layers.", LANGUAGE_MODEL),
    ),
    Wrapper(
        model_types=("cosmos3_edge",),
        text_type="cosmos3_edge_text",
        fixed_text=True,
        prefixes=("layers.", NESTED),
    ),
    Wrapper(
        model_types=("cosmos3_omni",),
        text_type="qwen3_vl_text",
        fixed_text=True,
        prefixes=("layers.", NESTED),
        deepstack=DEEPSTACK,
    ),
    Wrapper(
        model_types=("deepseek_ocr2",),
        text_type="deepseek_ocr2_text",
        fixed_text=True,
        prefixes=AT_THE_ROOT,
    ),
    Wrapper(
        model_types=("unlimited_ocr",),
        text_type="unlimited_ocr_text",
        fixed_text=True,
        prefixes=AT_THE_ROOT,
    ),
    Wrapper(
        model_types=("granite4_vision",),
        text_type="granite4_vision_text",
        fixed_text=True,
        fed_layers=(("deepstack_layer_map", ()), ("spatial_target_layers", (12, 15, 18, 21))),
    ),
    Wrapper(
        model_types=("molmo2",),
        text_type="molmo2_text",
        fixed_text=True,
        prefixes=(NESTED, "model.transformer.blocks."),
    ),
    Wrapper(model_types=("step3p7",), text_type="step3p5", fixed_text=True, prefixes=AT_THE_ROOT),
    Wrapper(model_types=("cohere_compass",), text_type="cohere_compass_text", fixed_text=True),
    Wrapper(model_types=("dots3_note",), text_type="dots3_note_text", fixed_text=True),
    Wrapper(
        model_types=("inkling_mm_model",),
        text_type="inkling_text",
        fixed_text=True,
        prefixes=(NESTED, "model.llm.layers."),
    ),
    Wrapper(
        model_types=("mistral_large4",),
        text_type="mistral_large4_text",
        fixed_text=True,
        prefixes=("layers.", NESTED),
    ),
    Wrapper(model_types=("muse_glimmer",), text_type="muse_glimmer_text", fixed_text=True),
    Wrapper(model_types=("qwen4_exp",), text_type="qwen4_exp_text", fixed_text=True),
    Wrapper(model_types=("hy_v4_vl",), text_type="hy_v4_vl_text", fixed_text=True),
    Wrapper(model_types=("apertus1p5",), text_type="apertus1p5_text", fixed_text=True),
    Wrapper(
        model_types=("nemo_speechlm",),
        text_type="nemotron_h",
        prefixes=("language_model.backbone.layers.", LANGUAGE_MODEL, NESTED),
        auto_class=MULTIMODAL_LM,
    ),
    Wrapper(model_types=("fuyu",), text_type="persimmon"),
    Wrapper(
        model_types=("kosmos-2",),
        text_type="kosmos_2_text_model",
        fixed_text=True,
        prefixes=("text_model.model.layers.",),
    ),
    Wrapper(
        model_types=("kosmos-2.5",),
        text_type="kosmos_2_5_text_model",
        fixed_text=True,
        prefixes=("text_model.model.layers.",),
    ),
    Wrapper(
        model_types=("blip-2", "instructblip", "instructblipvideo"),
        text_type="opt",
        prefixes=(*OPT, LANGUAGE_MODEL, NESTED),
    ),
)
