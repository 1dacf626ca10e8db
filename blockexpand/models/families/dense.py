"""Rows of the families whose layers are attention and one dense MLP. Data only."""

from __future__ import annotations

from dataclasses import replace

from .family import Branch, Family, Form, LayerTable, Refusal
from .layer_fields import indexed, leading, listed, numbered, trailing
from .layer_patterns import FULL, every, rope_except_every, window_after, window_without_rope
from .layer_places import keys_are_shared
from .special_fields import attention_types, root_of_depth

ATTENTION: Branch = (Form(outputs=("self_attn.o_proj",)),)

MLP: Branch = (Form(outputs=("mlp.down_proj",)),)


def closed_by(attention: str, mlp: str, *, value: float = 0.0) -> tuple[Branch, ...]:
    """Make the branches of a layer whose attention and MLP each end in a norm, if it has them."""
    return (
        (Form(outputs=("self_attn.o_proj",), norms=(attention,), norm_value=value),),
        (Form(outputs=("mlp.down_proj",), norms=(mlp,), norm_value=value),),
    )


LAYER_TYPES_EVERY_SECOND = listed("layer_types", derive=every(2))

GEMMA4 = Family(
    model_types=("gemma4_unified_text",),
    branches=(
        (Form(outputs=("self_attn.o_proj",), norms=("post_attention_layernorm",)),),
        (
            Form(
                outputs=("mlp.down_proj", "experts.down_proj", "experts.{e}.down_proj"),
                norms=("post_feedforward_layernorm",),
            ),
        ),
    ),
    constants=(("layer_scalar", 1.0),),
    fields=(
        listed("layer_types", derive=every(6), last=FULL),
        numbered("per_layer_config"),
        trailing("num_kv_shared_layers"),
    ),
    places=(keys_are_shared(every(6)),),
)

DENSE: tuple[Family, ...] = (
    Family(
        model_types=(
            *("llama", "mistral", "ministral", "ministral3", "phi3", "gemma", "olmo", "stablelm"),
            *("cohere", "granite", "glm", "nemotron", "ernie4_5", "hunyuan_v1_dense", "arcee"),
            *("helium", "seed_oss", "apertus", "bitnet", "jais2", "youtu", "internlm3"),
            *("iquestcoder", "emu3_text_model", "granite_docling_text"),
            *("hunyuan_vl_text", "paddleocr_vl_text", "phi4_multimodal", "voxtral_realtime_text"),
        ),
        branches=(ATTENTION, MLP),
        fields=(leading("max_window_layers", advisory=True),),
    ),
    Family(
        model_types=("qwen2", "qwen3", "qwen2_5_omni_text"),
        branches=(ATTENTION, MLP),
        fields=(
            leading("max_window_layers", default=28, advisory=True),
            listed("layer_types", derive=window_after(28, switch=True)),
        ),
    ),
    Family(
        model_types=("qwen2_vl_text", "qwen2_5_vl_text"),
        branches=(ATTENTION, MLP),
        fields=(
            leading("max_window_layers", default=80, advisory=True),
            listed("layer_types", derive=window_after(80, switch=True)),
        ),
    ),
    Family(
        model_types=("cohere2",),
        branches=(ATTENTION, MLP),
        fields=(listed("layer_types", derive=every("sliding_window_pattern", 4)),),
    ),
    Family(
        model_types=("vaultgemma",),
        branches=(ATTENTION, MLP),
        fields=(LAYER_TYPES_EVERY_SECOND,),
    ),
    Family(
        model_types=("cwm", "granite_swa"),
        branches=(ATTENTION, MLP),
        fields=(
            listed("layer_types", derive=every(4, first=0)),
            listed("layer_rope_theta"),
        ),
    ),
    Family(
        model_types=("smollm3",),
        branches=(ATTENTION, MLP),
        fields=(
            listed("layer_types", derive=window_without_rope),
            listed("no_rope_layers", derive=rope_except_every),
        ),
    ),
    Family(
        model_types=("gemma2",),
        branches=closed_by("post_attention_layernorm", "post_feedforward_layernorm", value=-1.0),
        fields=(LAYER_TYPES_EVERY_SECOND,),
    ),
    Family(
        model_types=("gemma3_text",),
        branches=closed_by("post_attention_layernorm", "post_feedforward_layernorm", value=-1.0),
        fields=(listed("layer_types", derive=every("sliding_window_pattern", 6)),),
    ),
    GEMMA4,
    replace(
        GEMMA4,
        model_types=("gemma4_text",),
        # A third branch, of the embedding that each layer has of its own, in models that have it.
        constants=(*GEMMA4.constants, ("post_per_layer_input_norm", 0.0)),
        copied=("per_layer_input_gate", "per_layer_projection"),
        tables=tuple(
            LayerTable(module=module, axis=axis, field="hidden_size_per_layer_input", default=256)
            for module, axis in (("embed_tokens_per_layer", 1), ("per_layer_model_projection", 0))
        ),
    ),
    Family(
        model_types=("olmo2",),
        branches=closed_by("post_attention_layernorm", "post_feedforward_layernorm"),
    ),
    Family(
        model_types=("olmo3",),
        branches=closed_by("post_attention_layernorm", "post_feedforward_layernorm"),
        fields=(listed("layer_types", derive=every(4)),),
    ),
    Family(
        model_types=("exaone4",),
        branches=closed_by("post_attention_layernorm", "post_feedforward_layernorm"),
        fields=(listed("layer_types", derive=every("sliding_window_pattern", 4)),),
    ),
    Family(
        model_types=("glm4", "glm4v_text"),
        branches=closed_by("post_self_attn_layernorm", "post_mlp_layernorm"),
    ),
    Family(
        model_types=("glm_ocr_text",),
        branches=closed_by("post_self_attn_layernorm", "post_mlp_layernorm"),
        tail=True,
    ),
    Family(
        model_types=("hyperclovax",),
        branches=closed_by("post_norm1", "post_norm2"),
    ),
    Family(
        model_types=("minicpm3",),
        branches=(ATTENTION, MLP),
        fields=(root_of_depth("scale_depth", 1.4),),
    ),
    Family(
        model_types=("doge",),
        branches=(ATTENTION, MLP),
        constants=(("input_residual", 1.0), ("post_attention_residual", 1.0)),
        refuse=(
            Refusal(
                when=lambda config: bool(config.get("is_moe")),
                reason="its mixture of experts ('is_moe') is not in the table",
            ),
        ),
    ),
    Family(
        model_types=("diffllama",),
        branches=(ATTENTION, MLP),
        index_scaled=lambda config: "differential attention weighs by the layer's number",
    ),
    Family(
        model_types=("nanochat",),
        branches=(ATTENTION, (Form(outputs=("mlp.fc2",)),)),
    ),
    Family(
        model_types=("phi",),
        branches=((Form(outputs=("self_attn.dense",)),), (Form(outputs=("mlp.fc2",)),)),
    ),
    Family(
        model_types=("persimmon",),
        branches=(
            (Form(outputs=("self_attn.dense",)),),
            (Form(outputs=("mlp.dense_4h_to_h",)),),
        ),
    ),
    Family(
        model_types=("starcoder2",),
        branches=(ATTENTION, (Form(outputs=("mlp.c_proj",)),)),
    ),
    Family(
        model_types=("mllama_text_model",),
        branches=(
            (Form(outputs=("self_attn.o_proj", "cross_attn.o_proj")),),
            MLP,
        ),
        fields=(
            indexed(
                "cross_attention_layers",
                derive=lambda config, layers: tuple(i % 5 == 3 for i in range(layers)),
            ),
        ),
    ),
    Family(
        model_types=("chameleon",),
        branches=(ATTENTION, MLP),
        variants=(
            (
                lambda config: bool(config.get("swin_norm")),
                closed_by("input_layernorm", "post_attention_layernorm"),
            ),
        ),
    ),
    Family(
        model_types=("kosmos_2_text_model", "kosmos_2_5_text_model"),
        count=("layers",),
        branches=((Form(outputs=("self_attn.out_proj",)),), (Form(outputs=("ffn.fc2",)),)),
    ),
    Family(
        model_types=("modernbert-decoder",),
        branches=((Form(outputs=("attn.out_proj", "attn.Wo")),), (Form(outputs=("mlp.Wo",)),)),
        fields=(listed("layer_types", derive=every("global_attn_every_n_layers", 3, first=0)),),
        first_layer_differs=True,
    ),
    # From here on: the families of 2019 to 2023, each with names of its own.
    Family(
        model_types=("gpt2", "gpt-sw3", "gpt_bigcode"),
        prefixes=("transformer.h.",),
        count=("num_hidden_layers", "n_layer"),
        branches=((Form(outputs=("attn.c_proj",)),), (Form(outputs=("mlp.c_proj",)),)),
        index_scaled=lambda config: (
            "attention is scaled by the layer's number ('scale_attn_by_inverse_layer_idx')"
            if config.get("scale_attn_by_inverse_layer_idx")
            else None
        ),
    ),
    Family(
        model_types=("gpt_neo",),
        prefixes=("transformer.h.",),
        count=("num_layers", "num_hidden_layers"),
        branches=(
            (Form(outputs=("attn.attention.out_proj",)),),
            (Form(outputs=("mlp.c_proj",)),),
        ),
        fields=(attention_types(),),
    ),
    Family(
        model_types=("gpt_neox",),
        prefixes=("gpt_neox.layers.",),
        branches=(
            (Form(outputs=("attention.dense",)),),
            (Form(outputs=("mlp.dense_4h_to_h",)),),
        ),
    ),
    Family(
        model_types=("gptj", "codegen"),
        prefixes=("transformer.h.",),
        count=("n_layer", "num_hidden_layers"),
        branches=((Form(outputs=("attn.out_proj",)),), (Form(outputs=("mlp.fc_out",)),)),
    ),
    Family(
        model_types=("opt",),
        prefixes=("model.decoder.layers.",),
        branches=((Form(outputs=("self_attn.out_proj",)),), (Form(outputs=("fc2",)),)),
        refuse=(
            Refusal(
                when=lambda config: config.get("do_layer_norm_before") is False,
                reason="its layers end in a norm of the whole stream "
                "('do_layer_norm_before' is false), so no layer can be the identity",
            ),
        ),
    ),
    Family(
        model_types=("bloom",),
        prefixes=("transformer.h.",),
        count=("n_layer", "num_hidden_layers"),
        branches=(
            (Form(outputs=("self_attention.dense",)),),
            (Form(outputs=("mlp.dense_4h_to_h",)),),
        ),
        refuse=(
            Refusal(
                when=lambda config: bool(config.get("apply_residual_connection_post_layernorm")),
                reason="the residual is taken after a norm "
                "('apply_residual_connection_post_layernorm'), so no layer can be the identity",
            ),
        ),
    ),
    Family(
        model_types=("falcon",),
        prefixes=("transformer.h.",),
        branches=(
            (Form(outputs=("self_attention.dense",)),),
            (Form(outputs=("mlp.dense_4h_to_h",)),),
        ),
    ),
    Family(
        model_types=("mpt",),
        prefixes=("transformer.blocks.",),
        count=("n_layers", "num_hidden_layers"),
        branches=((Form(outputs=("attn.out_proj",)),), (Form(outputs=("ffn.down_proj",)),)),
    ),
    Family(
        model_types=("xglm",),
        count=("num_layers", "num_hidden_layers"),
        branches=((Form(outputs=("self_attn.out_proj",)),), (Form(outputs=("fc2",)),)),
    ),
    Family(
        model_types=("biogpt",),
        prefixes=("biogpt.layers.",),
        branches=((Form(outputs=("self_attn.out_proj",)),), (Form(outputs=("fc2",)),)),
    ),
    Family(
        model_types=("ctrl",),
        prefixes=("transformer.h.",),
        count=("n_layer", "num_hidden_layers"),
        branches=((Form(outputs=("multi_head_attention.dense",)),), (Form(outputs=("ffn.2",)),)),
    ),
    Family(
        model_types=("cpmant",),
        prefixes=("cpmant.encoder.layers.",),
        branches=(
            (Form(outputs=("self_att.self_attention.attention_out",)),),
            (Form(outputs=("ffn.ffn.w_out",)),),
        ),
    ),
    Family(
        model_types=("roberta-prelayernorm",),
        prefixes=("roberta_prelayernorm.encoder.layer.",),
        branches=((Form(outputs=("attention.output.dense",)),), (Form(outputs=("output.dense",)),)),
    ),
)
