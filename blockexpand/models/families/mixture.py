"""Rows of the families with attention and a mixture of experts in some or all layers. Data only."""

from __future__ import annotations

from .dense import ATTENTION
from .family import Branch, Family, Form
from .layer_fields import indexed, leading, listed
from .layer_patterns import (
    alternating_before,
    by_flags,
    chunked_with_rope,
    every,
    first_and_every_sixth,
    first_then_every_fourth_picks,
    flint,
    minimax_m3_mlp,
    prefix_then_every,
    rope_except_every,
    shared_indexers,
    sparse_after,
    sparse_every,
    window_after,
)
from .layer_places import picks_are_shared
from .special_fields import sparse_range, sparse_step

EXPERTS = (
    "mlp.experts.{e}.down_proj",
    "mlp.experts.down_proj",
    "mlp.shared_experts.down_proj",
    "mlp.shared_expert.down_proj",
    "mlp.shared_mlp.down_proj",
)

DENSE_OR_EXPERTS: Branch = (Form(outputs=("mlp.down_proj",)), Form(outputs=EXPERTS))

BLOCK_SPARSE: Branch = (Form(outputs=("block_sparse_moe.experts.{e}.w2",)),)

GRANITE: Branch = (
    Form(
        outputs=(
            "block_sparse_moe.output_linear",
            "block_sparse_moe.experts.down_proj",
            "shared_mlp.output_linear",
            "shared_mlp.down_proj",
        )
    ),
)

HYPER = ("fn", "base", "scale")

FIRST_K_DENSE = leading("first_k_dense_replace", advisory=True)

MIXTURE: tuple[Family, ...] = (
    Family(
        model_types=("mixtral", "minimax_m2", "phimoe"),
        branches=(ATTENTION, BLOCK_SPARSE),
    ),
    Family(
        model_types=("olmoe",),
        branches=(ATTENTION, DENSE_OR_EXPERTS),
    ),
    Family(
        model_types=("hunyuan_v1_moe",),
        branches=(ATTENTION, DENSE_OR_EXPERTS),
        fields=tuple(
            listed(name, or_scalar=True)
            for name in ("num_experts", "moe_topk", "num_shared_expert", "moe_intermediate_size")
        ),
    ),
    Family(
        model_types=("qwen2_moe",),
        branches=(ATTENTION, DENSE_OR_EXPERTS),
        fields=(
            leading("max_window_layers", default=28, advisory=True),
            listed("layer_types", derive=alternating_before),
            sparse_step(),
        ),
    ),
    Family(
        model_types=("qwen3_moe", "qwen3_vl_moe_text", "qwen3_omni_moe_text"),
        branches=(ATTENTION, DENSE_OR_EXPERTS),
        fields=(leading("max_window_layers", advisory=True), sparse_step()),
    ),
    Family(
        model_types=("flint",),
        branches=(ATTENTION, DENSE_OR_EXPERTS),
        fields=(listed("layer_types", derive=flint), sparse_step(default=(0, 1))),
        float32=("mlp.gate", "self_attn.softmax_offset"),
    ),
    Family(
        model_types=("granitemoe", "granitemoeshared"),
        branches=(ATTENTION, GRANITE),
    ),
    Family(
        model_types=("granitemoe_swa",),
        branches=(ATTENTION, GRANITE),
        fields=(listed("layer_types", derive=every(4, first=0)), listed("layer_rope_theta")),
    ),
    Family(
        model_types=("deepseek_v2", "mistral4"),
        branches=(ATTENTION, DENSE_OR_EXPERTS),
        fields=(leading("first_k_dense_replace", default=0),),
    ),
    Family(
        model_types=("deepseek_v3",),
        branches=(ATTENTION, DENSE_OR_EXPERTS),
        fields=(leading("first_k_dense_replace", default=3),),
        tail=True,
    ),
    Family(
        model_types=("glm4_moe", "glm4v_moe_text"),
        branches=(ATTENTION, DENSE_OR_EXPERTS),
        fields=(leading("first_k_dense_replace", default=1),),
        tail=True,
    ),
    Family(
        model_types=("dots1",),
        branches=(ATTENTION, DENSE_OR_EXPERTS),
        fields=(
            leading("first_k_dense_replace", default=0),
            leading("max_window_layers", default=62, advisory=True),
            listed("layer_types", derive=window_after(62, switch=False)),
        ),
    ),
    Family(
        model_types=("solar_open",),
        branches=(ATTENTION, DENSE_OR_EXPERTS),
        fields=(FIRST_K_DENSE,),
    ),
    Family(
        model_types=("deepseek_v32",),
        branches=(ATTENTION, DENSE_OR_EXPERTS),
        fields=(
            FIRST_K_DENSE,
            listed("mlp_layer_types", derive=sparse_after("first_k_dense_replace", 3)),
        ),
        tail=True,
        float32=("self_attn.indexer.weights_proj", "self_attn.indexers_proj"),
    ),
    Family(
        model_types=("glm_moe_dsa",),
        branches=(ATTENTION, DENSE_OR_EXPERTS),
        fields=(
            FIRST_K_DENSE,
            listed("mlp_layer_types", derive=sparse_after("first_k_dense_replace", 3)),
            listed("indexer_types", derive=shared_indexers),
        ),
        places=(picks_are_shared(shared_indexers),),
        tail=True,
        float32=("self_attn.indexer.weights_proj", "self_attn.indexers_proj"),
    ),
    Family(
        model_types=("glm4_moe_lite", "hy_v3"),
        branches=(ATTENTION, DENSE_OR_EXPERTS),
        fields=(FIRST_K_DENSE, listed("mlp_layer_types", derive=sparse_after(1))),
        tail=True,
    ),
    Family(
        model_types=("exaone_moe",),
        branches=(ATTENTION, DENSE_OR_EXPERTS),
        fields=(
            FIRST_K_DENSE,
            listed("mlp_layer_types", derive=sparse_after("first_k_dense_replace", 1)),
            listed("layer_types", derive=every("sliding_window_pattern", 4)),
            listed("is_moe_layer"),
        ),
        tail=True,
    ),
    Family(
        model_types=("mimo_v2_flash",),
        branches=(ATTENTION, DENSE_OR_EXPERTS),
        fields=(
            FIRST_K_DENSE,
            listed("mlp_layer_types", derive=sparse_after(1)),
            listed("layer_types", derive=first_and_every_sixth),
            listed("hybrid_layer_pattern"),
            listed("moe_layer_freq", or_scalar=True),
        ),
    ),
    Family(
        model_types=("cohere2_moe",),
        branches=(ATTENTION, DENSE_OR_EXPERTS),
        fields=(
            listed("layer_types", derive=prefix_then_every),
            listed("mlp_layer_types", derive=sparse_after("first_k_dense_replace", 0)),
            FIRST_K_DENSE,
        ),
    ),
    Family(
        model_types=("mellum",),
        branches=(ATTENTION, DENSE_OR_EXPERTS),
        fields=(listed("mlp_layer_types"),),
        tail=True,
    ),
    Family(
        model_types=("laguna",),
        branches=(ATTENTION, DENSE_OR_EXPERTS),
        fields=(
            listed("mlp_layer_types", derive=sparse_after(1)),
            listed("num_attention_heads_per_layer"),
        ),
    ),
    Family(
        model_types=("kolibri1",),
        branches=(
            (
                Form(
                    outputs=("self_attn.o_proj",),
                    norms=("post_attn_norm", "post_self_attn_layernorm"),
                ),
            ),
            (Form(outputs=EXPERTS, norms=("post_ffn_norm", "post_mlp_layernorm")),),
        ),
        fields=(listed("layer_types", derive=every(5)),),
    ),
    Family(
        model_types=("flex_olmo",),
        branches=(
            (Form(outputs=("self_attn.o_proj",), norms=("post_attention_layernorm",)),),
            (Form(outputs=EXPERTS, norms=("post_feedforward_layernorm",)),),
        ),
    ),
    Family(
        model_types=("afmoe",),
        branches=(
            (Form(outputs=("self_attn.o_proj",), norms=("post_attention_layernorm",)),),
            (
                Form(outputs=("mlp.down_proj",), norms=("post_mlp_layernorm",)),
                Form(outputs=EXPERTS, norms=("post_mlp_layernorm",)),
            ),
        ),
        fields=(
            listed("layer_types", derive=every("global_attn_every_n_layers", 4)),
            leading("num_dense_layers", default=1),
        ),
    ),
    Family(
        model_types=("axk1",),
        branches=(
            ATTENTION,
            (
                # Released checkpoints store a closing norm for dense layers too, which is not used.
                Form(outputs=("mlp.down_proj",)),
                Form(outputs=EXPERTS, norms=("post_mlp_layernorm", "mlp.post_mlp_layernorm")),
            ),
        ),
        fields=(FIRST_K_DENSE, listed("mlp_layer_types", derive=sparse_every)),
    ),
    Family(
        model_types=("axk2",),
        branches=(ATTENTION, DENSE_OR_EXPERTS),
        fields=(FIRST_K_DENSE, listed("mlp_layer_types", derive=sparse_every)),
        float32=("self_attn.indexer.weights_proj", "self_attn.indexers_proj"),
    ),
    Family(
        model_types=("ernie4_5_vl_moe_text",),
        branches=(ATTENTION, DENSE_OR_EXPERTS),
        fields=(listed("mlp_layer_types", derive=sparse_after(1)),),
        float32=("mlp.gate", "mlp.gate.weight_1"),
    ),
    Family(
        model_types=("ernie4_5_moe",),
        branches=(ATTENTION, DENSE_OR_EXPERTS),
        fields=(sparse_range(),),
        float32=("mlp.gate",),
    ),
    Family(
        model_types=("aria_text",),
        branches=(
            ATTENTION,
            (Form(outputs=("mlp.experts.fc2", "mlp.shared_experts.down_proj")),),
        ),
    ),
    Family(
        model_types=("jetmoe",),
        branches=(
            (
                Form(
                    outputs=(
                        "self_attention.experts.output_linear",
                        "self_attention.experts",  # its bias
                    )
                ),
            ),
            (Form(outputs=("mlp.output_linear", "mlp")),),
        ),
    ),
    Family(
        model_types=("gpt_oss",),
        branches=(ATTENTION, (Form(outputs=("mlp.experts.down_proj",)),)),
        fields=(listed("layer_types", derive=every(2)),),
    ),
    Family(
        model_types=("llama4_text",),
        branches=(
            ATTENTION,
            (
                Form(outputs=("feed_forward.down_proj",)),
                Form(
                    outputs=(
                        "feed_forward.experts.down_proj",
                        # where they are quantised one by one
                        "feed_forward.experts.{e}.down_proj",
                        "feed_forward.shared_expert.down_proj",
                    )
                ),
            ),
        ),
        fields=(
            listed("layer_types", derive=chunked_with_rope),
            listed("no_rope_layers", derive=rope_except_every),
            indexed(
                "moe_layers", derive=every("interleave_moe_layer_step", 1, last=True, other=False)
            ),
        ),
    ),
    Family(
        model_types=("minimax_m3_vl_text",),
        branches=(
            ATTENTION,
            (
                *DENSE_OR_EXPERTS,
                Form(
                    outputs=(
                        "block_sparse_moe.experts.{e}.w2",
                        "block_sparse_moe.shared_experts.down_proj",
                    )
                ),
            ),
        ),
        fields=(
            listed(
                "layer_types",
                derive=by_flags(
                    "sparse_attention_config.sparse_attention_freq",
                    "minimax_m3_sparse",
                    "full_attention",
                ),
            ),
            listed("mlp_layer_types", derive=minimax_m3_mlp),
            listed("sparse_attention_config.sparse_attention_freq"),
            listed("sparse_attention_config.sparse_disable_index_value"),
            listed("moe_layer_freq", or_scalar=True),
        ),
    ),
    Family(
        model_types=("dbrx",),
        prefixes=("transformer.blocks.",),
        count=("n_layers", "num_hidden_layers"),
        branches=(
            (Form(outputs=("norm_attn_norm.attn.out_proj",)),),
            (Form(outputs=("ffn.experts.mlp.w2",)),),
        ),
    ),
    Family(
        model_types=("zaya",),
        branches=(ATTENTION, DENSE_OR_EXPERTS),
        constants=tuple(
            (f"post_{branch}_residual_scale.{name}", value)
            for branch in ("attention", "mlp")
            for name, value in (
                ("hidden_states_bias", 0.0),
                ("residual_bias", 0.0),
                ("residual_scale", 1.0),
            )
        ),
        first_layer_differs=True,
        index_scaled=lambda config: "each router goes on from the state of the layer before it",
        float32=("mlp.gate.balancing_biases",),
    ),
    Family(
        model_types=("hy_v4",),
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
)
