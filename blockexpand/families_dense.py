"""Rows of the families whose layers are attention and one dense MLP. Data only."""

from __future__ import annotations

from .family import Branch, Family
from .layer_fields import leading, listed
from .layer_patterns import every, window_after

ATTENTION = Branch(neutral=("self_attn.o_proj",))
MLP = Branch(neutral=("mlp.down_proj",))

DENSE: tuple[Family, ...] = (
    Family(
        model_types=("llama", "mistral", "ministral3"),
        branches=(ATTENTION, MLP),
    ),
    Family(
        model_types=("qwen2", "qwen3"),
        branches=(ATTENTION, MLP),
        fields=(
            leading("max_window_layers", default=28, advisory=True),
            listed("layer_types", derive=window_after(28)),
        ),
    ),
    Family(
        model_types=("gemma2",),
        branches=(
            Branch(neutral=("post_attention_layernorm",), value=-1.0, kept=("self_attn.o_proj",)),
            Branch(neutral=("post_feedforward_layernorm",), value=-1.0, kept=("mlp.down_proj",)),
        ),
        fields=(listed("layer_types", derive=every(2)),),
    ),
    Family(
        model_types=("gemma3_text",),
        branches=(
            Branch(neutral=("post_attention_layernorm",), value=-1.0, kept=("self_attn.o_proj",)),
            Branch(neutral=("post_feedforward_layernorm",), value=-1.0, kept=("mlp.down_proj",)),
        ),
        fields=(listed("layer_types", derive=every("sliding_window_pattern", default=6)),),
    ),
)
