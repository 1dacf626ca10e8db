"""Rows of the families that `transformers` has had since 2026. Data only."""

from __future__ import annotations

from .dense import ATTENTION, MLP, closed_by
from .family import Branch, Family, Form, Refusal
from .layer_fields import indexed, leading, listed, numbered
from .layer_patterns import (
    LINEAR,
    PICKING,
    attends_from_the_last,
    cycle,
    dots3,
    every,
    first_then_every_fourth_picks,
    inkling,
    rope_from_the_last,
    shared_indexers,
    sparse_after,
    zamba,
    zamba2,
)
from .layer_places import (
    keys_are_lent,
    last_layer_stays,
    no_clone_of_hybrids,
    picks_are_shared,
)
from .mixture import DENSE_OR_EXPERTS, EXPERTS, FIRST_K_DENSE, HYPER
from .recurrent import LINEAR_OR_ATTENTION
from .special_fields import key_sources, last_differs, shared_blocks, step_experts

# The second is the name in the checkpoints of Cosmos.
RENAMED_ATTENTION: Branch = (Form(outputs=("self_attn.o_proj", "self_attn.to_out")),)

# The second is the name in released checkpoints.
INKLING_ATTENTION: Branch = (Form(outputs=("self_attn.o_proj", "attn.wo_ud")),)

INKLING_MLP: Branch = (
    Form(outputs=("mlp.down_proj", "mlp.w2_md")),
    Form(outputs=(*EXPERTS, "mlp.experts.w2_weight", "mlp.shared_experts.shared_w2_weight")),
)

ZAMBA_MIXER = (
    *("A_log", "D", "conv1d", "dt_bias", "in_proj", "norm", "x_proj_weight", "dt_proj_weight"),
    "dt_proj",
)

# What the hybrid layers share, and the adapters that each has: never cloned, so all is copied.
ZAMBA_BLOCK = (
    *(f"self_attn.{name}_proj" for name in ("q", "k", "v", "o")),
    *(
        f"self_attn.linear_{name}_adapter_list.{{e}}.{part}"
        for name in ("q", "k", "v")
        for part in ("{e}", "0", "1")
    ),
    *(f"feed_forward.{name}_proj" for name in ("gate", "up", "gate_up", "down")),
    "feed_forward.gate_up_proj_adapter_list.{e}.{e}",
    *("input_layernorm", "pre_ff_layernorm"),
)

RECENT: tuple[Family, ...] = (
    Family(
        model_types=("qwen3_vl_text", "cosmos3_edge_text"),
        branches=(RENAMED_ATTENTION, (Form(outputs=("mlp.down_proj", "mlp.fc2")),)),
        fields=(leading("max_window_layers", advisory=True),),
    ),
    Family(
        model_types=("deepseek_ocr2_text", "unlimited_ocr_text"),
        branches=(ATTENTION, DENSE_OR_EXPERTS),
        fields=(
            FIRST_K_DENSE,
            listed("mlp_layer_types", derive=sparse_after("first_k_dense_replace", 1)),
        ),
    ),
    Family(
        model_types=("granite4_vision_text", "cohere_compass_text", "apertus1p5_text"),
        branches=(ATTENTION, MLP),
    ),
    Family(
        model_types=("molmo2_text",),
        branches=(
            (Form(outputs=("self_attn.o_proj", "self_attn.attn_out")),),
            (Form(outputs=("mlp.down_proj", "mlp.ff_out")),),
        ),
        fields=(indexed("rope_scaling_layers", derive=lambda config, layers: (True,) * layers),),
        variants=(
            (
                lambda config: bool(config.get("norm_after")),
                (
                    (
                        Form(
                            outputs=("self_attn.o_proj", "self_attn.attn_out"),
                            norms=("input_layernorm", "attn_norm"),
                        ),
                    ),
                    (
                        Form(
                            outputs=("mlp.down_proj", "mlp.ff_out"),
                            norms=("post_attention_layernorm", "ff_norm"),
                        ),
                    ),
                ),
            ),
        ),
    ),
    Family(
        model_types=("step3p5",),
        branches=(
            ATTENTION,
            (
                Form(outputs=("mlp.down_proj",)),
                Form(outputs=(*EXPERTS, "moe.down_proj", "share_expert.down_proj")),
            ),
        ),
        fields=(
            listed("layer_types", tail="num_nextn_predict_layers"),
            step_experts(),
            numbered("per_layer_config"),
            *(
                listed(name, or_scalar=True, tail="num_nextn_predict_layers")
                for name in (
                    *("swiglu_limits", "swiglu_limits_shared"),
                    *("rope_theta", "partial_rotary_factors"),
                )
            ),
        ),
        tail=True,
        float32=("moe.router_bias",),
    ),
    Family(
        model_types=("dots3_note_text",),
        branches=(ATTENTION, DENSE_OR_EXPERTS),
        fields=(
            FIRST_K_DENSE,
            listed("mlp_layer_types", derive=sparse_after("first_k_dense_replace", 1)),
            listed("layer_types", derive=dots3),
            numbered("per_layer_config"),
        ),
        float32=("self_attn.indexer.weights_proj",),
    ),
    Family(
        model_types=("inkling_text",),
        prefixes=("model.layers.", "model.llm.layers."),
        branches=(INKLING_ATTENTION, INKLING_MLP),
        fields=(
            indexed("local_layer_ids", advisory=True),
            listed("layer_types", derive=inkling),
            leading("dense_mlp_idx", advisory=True),
            listed("mlp_layer_types", derive=sparse_after("dense_mlp_idx", 0)),
        ),
        # What experts and dense MLPs put out is multiplied by these, which is no quantisation.
        copied=("mlp.global_scale", "mlp.gate.global_scale"),
    ),
    Family(
        model_types=("mistral_large4_text",),
        # The second names are those of released checkpoints.
        branches=(
            (Form(outputs=("self_attn.o_proj", "attention.wo")),),
            (
                Form(outputs=("mlp.down_proj", "feed_forward.w2")),
                Form(outputs=(*EXPERTS, "experts.{e}.w2", "shared_experts.w2")),
            ),
        ),
        copied=(
            *(f"attention.{name}" for name in ("wq", "wkv_b", "wkv_a_with_mqa", "kv_a_norm")),
            *(f"{part}ssmax_scaling.{n}" for part in ("attention.", "self_attn.") for n in "bs"),
            *(
                f"{part}.indexer.{name}"
                for part in ("attention", "self_attn")
                for name in (
                    *("k_norm", "q_input_norm", "ssmax_scaling.b", "ssmax_scaling.s"),
                    *("weights_proj", "wk", "wq_b"),
                )
            ),
            *(f"{part}.w{n}" for part in ("experts.{e}", "shared_experts") for n in "13"),
            "gate",
        ),
        fields=(
            FIRST_K_DENSE,
            listed("mlp_layer_types", derive=sparse_after("first_k_dense_replace", 1)),
            listed("indexer_types", derive=shared_indexers),
            listed(
                "no_rope_layers",
                derive=every("no_rope_layer_interval", 4, last=0, other=1),
            ),
            key_sources("kv_source_layers"),
        ),
        places=(picks_are_shared(shared_indexers), keys_are_lent("kv_source_layers")),
        float32=("self_attn.indexer.weights_proj", "attention.indexer.weights_proj"),
    ),
    Family(
        model_types=("muse_glimmer_text",),
        branches=closed_by("post_attention_layernorm", "post_feedforward_layernorm", value=-1.0),
        fields=(
            listed("layer_types", derive=attends_from_the_last),
            listed("layer_rope_theta", derive=rope_from_the_last),
        ),
    ),
    Family(
        model_types=("qwen4_exp_text",),
        branches=(LINEAR_OR_ATTENTION, DENSE_OR_EXPERTS),
        fields=(
            listed(
                "layer_types",
                derive=every("full_attention_interval", 4, other=LINEAR, last=PICKING),
            ),
        ),
        refuse=(
            Refusal(
                when=lambda config: bool(config.get("ple_layer_ids")),
                reason="its embeddings of n-grams ('ple_layer_ids') are found by their rank among "
                "the layers that have them, which is not in the table",
            ),
        ),
    ),
    Family(
        model_types=("lara_mini",),
        branches=(LINEAR_OR_ATTENTION, DENSE_OR_EXPERTS),
        copied=("linear_attn.in_proj", "linear_attn.out_norm"),
        fields=(
            listed(
                "layer_types",
                derive=cycle(
                    LINEAR, "sliding_attention", LINEAR, "full_attention", "sliding_attention"
                ),
            ),
        ),
    ),
    Family(
        model_types=("hy_v4_vl_text",),
        branches=(ATTENTION, DENSE_OR_EXPERTS),
        fields=(
            FIRST_K_DENSE,
            listed("mlp_layer_types", derive=sparse_after(1)),
            listed("indexer_types", derive=first_then_every_fourth_picks),
        ),
        places=(picks_are_shared(first_then_every_fourth_picks),),
        float32=(
            "self_attn.indexer.weights_proj",
            *(f"hc_pre.hc_{part}_layer.hc_{name}" for part in ("attn", "mlp") for name in HYPER),
        ),
    ),
    Family(
        model_types=("exaone",),
        prefixes=("model.layers.", "transformer.h."),
        count=("num_hidden_layers", "num_layers"),
        branches=(
            (Form(outputs=("self_attn.o_proj", "attn.attention.out_proj")),),
            (Form(outputs=("mlp.down_proj", "mlp.c_proj")),),
        ),
        copied=("mlp.c_fc_0", "mlp.c_fc_1"),
    ),
    Family(
        model_types=("sarvam_mla", "sarvam_moe"),
        branches=(
            (Form(outputs=("self_attn.o_proj", "attention.dense")),),
            DENSE_OR_EXPERTS,
        ),
        fields=(leading("first_k_dense_replace", default=1),),
        tail=True,
    ),
    Family(
        model_types=("moshi", "kyutai_speech_to_text"),
        prefixes=("model.layers.", "decoder.model.layers."),
        branches=((Form(outputs=("self_attn.o_proj.linear",)),), (Form(outputs=("mlp.fc2",)),)),
    ),
    Family(
        model_types=("megatron-bert",),
        prefixes=("bert.encoder.layer.",),
        branches=((Form(outputs=("attention.output.dense",)),), (Form(outputs=("output.dense",)),)),
        copied=("attention.ln",),
    ),
    Family(
        model_types=("xlm-roberta-xl",),
        prefixes=("roberta.encoder.layer.",),
        branches=((Form(outputs=("attention.output.dense",)),), (Form(outputs=("output.dense",)),)),
        copied=("attention.self_attn_layer_norm",),
    ),
    Family(
        model_types=("gpt_neox_japanese",),
        prefixes=("gpt_neox_japanese.layers.",),
        branches=(
            (Form(outputs=("attention.dense",)),),
            (Form(outputs=("mlp.dense_4h_to_h",)),),
        ),
        fields=(last_differs(),),
        copied=("attention.dense_bias",),
        places=(last_layer_stays,),
    ),
    *(
        Family(
            model_types=(model_type,),
            branches=((Form(outputs=("mamba.out_proj", "mamba_decoder.mamba.out_proj")),),),
            fields=(shared_blocks("layers_block_type", derive), indexed("hybrid_layer_ids")),
            copied=(
                *(f"mamba_decoder.mamba.{name}" for name in ZAMBA_MIXER),
                *("mamba_decoder.input_layernorm", "linear"),
                *(f"shared_transf.{name}" for name in ZAMBA_BLOCK),
                *(f"shared_transformer.{name}" for name in ZAMBA_BLOCK),
            ),
            places=(no_clone_of_hybrids("layers_block_type", derive),),
        )
        for model_type, derive in (("zamba", zamba), ("zamba2", zamba2))
    ),
)
