"""Rows of the families with state-space, recurrent, convolutional or linear mixers. Data only."""

from __future__ import annotations

from .dense import ATTENTION
from .family import Branch, Family, Form
from .layer_fields import indexed, leading, listed
from .layer_patterns import (
    LINEAR,
    attention_indices,
    every,
    full_every_fourth,
    kimi_linear,
    lfm3,
    sparse_after,
)
from .layer_places import rescaling
from .mixture import DENSE_OR_EXPERTS, FIRST_K_DENSE, GRANITE
from .special_fields import cycled, periodic, sparse_step

FEED_FORWARD: Branch = (Form(outputs=("feed_forward.down_proj",)),)

LINEAR_OR_ATTENTION: Branch = (
    Form(outputs=("self_attn.o_proj",)),
    Form(outputs=("linear_attn.out_proj",)),
)

CONVOLUTION_OR_ATTENTION: Branch = (
    Form(outputs=("self_attn.out_proj",)),
    Form(outputs=("conv.out_proj",)),
)

FULL_EVERY_FOURTH = listed("layer_types", derive=every("full_attention_interval", 4, other=LINEAR))

RECURRENT: tuple[Family, ...] = (
    Family(
        model_types=("mamba", "mamba2", "falcon_mamba"),
        prefixes=("backbone.layers.",),
        branches=((Form(outputs=("mixer.out_proj",)),),),
    ),
    Family(
        model_types=("bamba",),
        branches=(
            (Form(outputs=("self_attn.o_proj",)), Form(outputs=("mamba.out_proj",))),
            FEED_FORWARD,
        ),
        fields=(indexed("attn_layer_indices"),),
    ),
    Family(
        model_types=("falcon_h1",),
        branches=(ATTENTION, (Form(outputs=("mamba.out_proj",)),), FEED_FORWARD),
    ),
    Family(
        model_types=("granitemoehybrid",),
        branches=(
            (Form(outputs=("self_attn.o_proj",)), Form(outputs=("mamba.out_proj",))),
            GRANITE,
        ),
        fields=(listed("layer_types", "layers_block_type"),),
    ),
    Family(
        model_types=("nemotron_h",),
        prefixes=("backbone.layers.",),
        count=(),
        branches=(
            (
                Form(outputs=("mixer.out_proj",)),
                Form(outputs=("mixer.o_proj",)),
                Form(outputs=("mixer.down_proj",)),
                Form(
                    outputs=(
                        "mixer.experts.{e}.down_proj",
                        "mixer.shared_experts.down_proj",
                        "mixer.fc2_latent_proj",
                    )
                ),
            ),
        ),
        fields=(listed("layers_block_type", "layer_types", "hybrid_override_pattern"),),
    ),
    Family(
        model_types=("jamba",),
        branches=(
            (Form(outputs=("self_attn.o_proj",)), Form(outputs=("mamba.out_proj",))),
            (
                Form(outputs=("feed_forward.down_proj",)),
                Form(outputs=("feed_forward.experts.{e}.down_proj",)),
            ),
        ),
        fields=(
            periodic("attn_layer_period", "attn_layer_offset", default=(8, 4)),
            periodic(
                "expert_layer_period",
                "expert_layer_offset",
                default=(2, 1),
                unless=lambda config: config.get("num_experts") == 1,
            ),
        ),
    ),
    Family(
        model_types=("lfm2",),
        branches=(CONVOLUTION_OR_ATTENTION, (Form(outputs=("feed_forward.w2",)),)),
        fields=(
            indexed("full_attn_idxs", advisory=True),
            listed("layer_types", derive=attention_indices("full_attn_idxs", "conv")),
        ),
    ),
    Family(
        model_types=("lfm2_moe",),
        branches=(
            CONVOLUTION_OR_ATTENTION,
            (Form(outputs=("feed_forward.w2",)), Form(outputs=("feed_forward.experts.{e}.w2",))),
        ),
        fields=(leading("num_dense_layers", default=2), listed("layer_types")),
    ),
    Family(
        model_types=("lfm3",),
        branches=(
            (
                Form(outputs=("self_attn.o_proj",), norms=("post_operator_norm",)),
                Form(outputs=("conv.out_proj",), norms=("post_operator_norm",)),
            ),
            (Form(outputs=("feed_forward.w2",), norms=("post_ffn_norm",)),),
        ),
        fields=(listed("layer_types", derive=lfm3),),
    ),
    Family(
        model_types=("qwen3_next",),
        branches=(LINEAR_OR_ATTENTION, DENSE_OR_EXPERTS),
        fields=(FULL_EVERY_FOURTH, sparse_step()),
    ),
    Family(
        model_types=("qwen3_5_text", "qwen3_5_moe_text"),
        # The second is what is left where a multimodal checkpoint is cut down to its text model.
        prefixes=("model.layers.", "model.language_model.layers."),
        branches=(LINEAR_OR_ATTENTION, DENSE_OR_EXPERTS),
        fields=(FULL_EVERY_FOURTH,),
    ),
    Family(
        model_types=("olmo_hybrid",),
        branches=(
            (
                Form(outputs=("linear_attn.o_proj",)),
                # transformers saves the norm after attention under the second name.
                Form(
                    outputs=("self_attn.o_proj",),
                    norms=("post_attention_layernorm", "feedforward_layer_norm"),
                ),
            ),
            (Form(outputs=("mlp.down_proj",), norms=("post_feedforward_layernorm",)),),
        ),
        fields=(listed("layer_types", derive=full_every_fourth),),
    ),
    Family(
        model_types=("recurrent_gemma",),
        branches=(
            (
                Form(outputs=("temporal_block.o_proj",)),
                Form(outputs=("temporal_block.linear_out",)),
            ),
            (Form(outputs=("mlp_block.down_proj",)),),
        ),
        fields=(
            cycled("block_types", default=("recurrent", "recurrent", "attention")),
            cycled("_block_types"),
        ),
    ),
    Family(
        model_types=("kimi_linear",),
        branches=(
            ATTENTION,
            (
                Form(outputs=("block_sparse_moe.down_proj", "mlp.down_proj")),
                Form(
                    outputs=(
                        "block_sparse_moe.experts.{e}.w2",
                        "block_sparse_moe.shared_experts.down_proj",
                    )
                ),
            ),
        ),
        fields=(
            indexed("linear_attn_config.full_attn_layers", first=1, advisory=True),
            indexed("linear_attn_config.kda_layers", first=1, advisory=True),
            listed("layer_types", derive=kimi_linear),
            FIRST_K_DENSE,
            listed("mlp_layer_types", derive=sparse_after("first_k_dense_replace", 1)),
        ),
    ),
    Family(
        model_types=("bailing_hybrid",),
        branches=((Form(outputs=("attention.dense",)),), DENSE_OR_EXPERTS),
        fields=(
            listed("layer_types", derive=every("layer_group_size", 6, other=LINEAR)),
            FIRST_K_DENSE,
            listed("mlp_layer_types", derive=sparse_after("first_k_dense_replace", 2)),
        ),
        tail=True,
    ),
    Family(
        model_types=("rwkv",),
        prefixes=("rwkv.blocks.",),
        branches=((Form(outputs=("attention.output",)),), (Form(outputs=("feed_forward.value",)),)),
        first_layer_differs=True,
        places=(rescaling,),
        float32=("attention.time_decay", "attention.time_first"),
    ),
    Family(
        model_types=("xlstm",),
        prefixes=("backbone.blocks.",),
        count=("num_hidden_layers", "num_blocks"),
        branches=((Form(outputs=("mlstm_layer.out_proj",)),), (Form(outputs=("ffn.proj_down",)),)),
    ),
)
