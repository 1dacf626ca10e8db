"""config.json as models are released: only what has to change does, every other byte stays.

The texts have the keys, the order, the odd numbers and the indentation of released files; only
widths, and the number of layers where it says nothing, are smaller. What must come out is written
by hand: a piece of the source's text, and what stands in its place.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from transformers import AutoConfig, AutoModelForCausalLM

import blockexpand


@dataclass(frozen=True, kw_only=True)
class Released:
    """A text of config.json, and by position the pieces of it that two new layers change."""

    name: str
    text: str
    end: dict[str, str]
    interleaved: dict[str, str] = field(default_factory=dict)


def spell(values: list[object], indent: int) -> str:
    """Spell a list as json.dump does with an indent, at a depth of so many spaces."""
    inner = ",\n".join(" " * (indent * 2) + json.dumps(value) for value in values)
    return "[\n" + inner + "\n" + " " * indent + "]"


def append(values: list[object]) -> dict[str, str]:
    """A list that the released text leaves to a pattern, written behind its last field."""
    last = '"vocab_size": 96'
    return {f"{last}\n}}": f'{last},\n  "layer_types": {spell(values, 2)}\n}}'}


def repeat(values: list[object], after: tuple[int, ...]) -> list[object]:
    return [v for i, value in enumerate(values) for v in [value] * (1 + after.count(i))]


FULL, SLIDING = "full_attention", "sliding_attention"
ROPE = [1, 1, 1, 0] * 2
OSS = [SLIDING, FULL] * 3
SMOL = [FULL] * 8
GEMMA = [SLIDING] * 5 + [FULL] + [SLIDING] * 2
COHERE = ([SLIDING] * 3 + [FULL]) * 2
MAMBA = ["mamba"] * 5 + ["attention"] + ["mamba"] * 2

RELEASED = [
    Released(
        name="qwen2.5",
        text="""{
  "architectures": [
    "Qwen2ForCausalLM"
  ],
  "attention_dropout": 0.0,
  "bos_token_id": 1,
  "eos_token_id": 2,
  "hidden_act": "silu",
  "hidden_size": 32,
  "initializer_range": 0.02,
  "intermediate_size": 48,
  "max_position_embeddings": 131072,
  "max_window_layers": 28,
  "model_type": "qwen2",
  "num_attention_heads": 4,
  "num_hidden_layers": 6,
  "num_key_value_heads": 2,
  "rms_norm_eps": 1e-06,
  "rope_theta": 1000000.0,
  "sliding_window": 131072,
  "tie_word_embeddings": false,
  "torch_dtype": "bfloat16",
  "transformers_version": "4.40.1",
  "use_cache": true,
  "use_mrope": false,
  "use_sliding_window": false,
  "vocab_size": 96
}
""",
        end={'"num_hidden_layers": 6': '"num_hidden_layers": 8'},
    ),
    Released(
        name="smollm3",
        text="""{
  "architectures": [
    "SmolLM3ForCausalLM"
  ],
  "attention_bias": false,
  "attention_dropout": 0.0,
  "bos_token_id": 1,
  "eos_token_id": 2,
  "hidden_act": "silu",
  "hidden_size": 32,
  "initializer_range": 0.02,
  "intermediate_size": 48,
  "layer_types": LAYER_TYPES,
  "max_position_embeddings": 65536,
  "max_window_layers": 28,
  "mlp_bias": false,
  "model_type": "smollm3",
  "no_rope_layer_interval": 4,
  "no_rope_layers": NO_ROPE,
  "num_attention_heads": 4,
  "num_hidden_layers": 8,
  "num_key_value_heads": 2,
  "pad_token_id": 0,
  "pretraining_tp": 2,
  "rms_norm_eps": 1e-06,
  "rope_scaling": null,
  "rope_theta": 5000000.0,
  "sliding_window": null,
  "transformers_version": "4.54.0.dev0",
  "torch_dtype": "bfloat16",
  "use_cache": false,
  "use_sliding_window": false,
  "vocab_size": 96
}""".replace("LAYER_TYPES", spell(SMOL, 2)).replace("NO_ROPE", spell(ROPE, 2)),
        end={
            '"num_hidden_layers": 8': '"num_hidden_layers": 10',
            spell(SMOL, 2): spell([FULL] * 10, 2),
            spell(ROPE, 2): spell([*ROPE, 0, 0], 2),
        },
        interleaved={
            '"num_hidden_layers": 8': '"num_hidden_layers": 10',
            spell(SMOL, 2): spell([FULL] * 10, 2),
            spell(ROPE, 2): spell(repeat(ROPE, (3, 7)), 2),
        },
    ),
    Released(
        name="gpt-oss",
        text="""{
    "architectures": [
        "GptOssForCausalLM"
    ],
    "attention_bias": true,
    "attention_dropout": 0.0,
    "eos_token_id": 2,
    "experts_per_token": 2,
    "head_dim": 8,
    "hidden_act": "silu",
    "hidden_size": 32,
    "initial_context_length": 4096,
    "initializer_range": 0.02,
    "intermediate_size": 32,
    "layer_types": LAYER_TYPES,
    "max_position_embeddings": 131072,
    "model_type": "gpt_oss",
    "num_attention_heads": 4,
    "num_experts_per_tok": 2,
    "num_hidden_layers": 6,
    "num_key_value_heads": 2,
    "num_local_experts": 4,
    "output_router_logits": false,
    "pad_token_id": 0,
    "rms_norm_eps": 1e-05,
    "rope_scaling": {
        "beta_fast": 32.0,
        "beta_slow": 1.0,
        "factor": 32.0,
        "original_max_position_embeddings": 4096,
        "rope_type": "yarn",
        "truncate": false
    },
    "rope_theta": 150000,
    "router_aux_loss_coef": 0.9,
    "sliding_window": 128,
    "swiglu_limit": 7.0,
    "tie_word_embeddings": false,
    "transformers_version": "4.55.0.dev0",
    "use_cache": true,
    "vocab_size": 96
}
""".replace("LAYER_TYPES", spell(OSS, 4)),
        end={
            '"num_hidden_layers": 6': '"num_hidden_layers": 8',
            spell(OSS, 4): spell([*OSS, FULL, FULL], 4),
        },
        interleaved={
            '"num_hidden_layers": 6': '"num_hidden_layers": 8',
            spell(OSS, 4): spell(repeat(OSS, (2, 5)), 4),
        },
    ),
    Released(
        name="gemma 3 1b",
        text="""{
  "architectures": [
    "Gemma3ForCausalLM"
  ],
  "attention_bias": false,
  "attention_dropout": 0.0,
  "attn_logit_softcapping": null,
  "bos_token_id": 1,
  "cache_implementation": "hybrid",
  "eos_token_id": 2,
  "final_logit_softcapping": null,
  "head_dim": 8,
  "hidden_activation": "gelu_pytorch_tanh",
  "hidden_size": 32,
  "initializer_range": 0.02,
  "intermediate_size": 48,
  "max_position_embeddings": 32768,
  "model_type": "gemma3_text",
  "num_attention_heads": 4,
  "num_hidden_layers": 8,
  "num_key_value_heads": 1,
  "pad_token_id": 0,
  "query_pre_attn_scalar": 256,
  "rms_norm_eps": 1e-06,
  "rope_local_base_freq": 10000,
  "rope_scaling": null,
  "rope_theta": 1000000,
  "sliding_window": 512,
  "sliding_window_pattern": 6,
  "torch_dtype": "bfloat16",
  "transformers_version": "4.50.0.dev0",
  "use_cache": true,
  "vocab_size": 96
}
""",
        end={'"num_hidden_layers": 8': '"num_hidden_layers": 10'},
        interleaved={
            '"num_hidden_layers": 8': '"num_hidden_layers": 10',
            **append(repeat(GEMMA, (3, 7))),
        },
    ),
    Released(
        name="command r7b",
        text="""{
  "architectures": [
    "Cohere2ForCausalLM"
  ],
  "attention_bias": false,
  "attention_dropout": 0.0,
  "bos_token_id": 1,
  "cache_implementation": "hybrid",
  "eos_token_id": 2,
  "head_dim": 8,
  "hidden_act": "silu",
  "hidden_size": 32,
  "initializer_range": 0.02,
  "intermediate_size": 48,
  "layer_norm_eps": 1e-05,
  "layer_switch": 4,
  "logit_scale": 0.25,
  "max_position_embeddings": 8192,
  "model_type": "cohere2",
  "num_attention_heads": 4,
  "num_hidden_layers": 8,
  "num_key_value_heads": 2,
  "order_of_interleaved_layers": "local_attn_first",
  "pad_token_id": 0,
  "position_embedding_type": "rope_gptj",
  "rope_scaling": null,
  "rope_theta": 50000,
  "rotary_pct": 1.0,
  "sliding_window": 4096,
  "sliding_window_pattern": 4,
  "torch_dtype": "bfloat16",
  "transformers_version": "4.48.0.dev0",
  "use_cache": true,
  "use_embedding_sharing": true,
  "use_gated_activation": true,
  "use_parallel_block": true,
  "use_parallel_embedding": true,
  "vocab_size": 96
}
""",
        end={
            '"num_hidden_layers": 8': '"num_hidden_layers": 10',
            **append([*COHERE, FULL, FULL]),
        },
        interleaved={
            '"num_hidden_layers": 8': '"num_hidden_layers": 10',
            **append(repeat(COHERE, (3, 7))),
        },
    ),
    Released(
        name="deepseek-v3 without its code",
        text="""{
  "architectures": [
    "DeepseekV3ForCausalLM"
  ],
  "attention_bias": false,
  "attention_dropout": 0.0,
  "bos_token_id": 0,
  "eos_token_id": 1,
  "ep_size": 1,
  "first_k_dense_replace": 3,
  "hidden_act": "silu",
  "hidden_size": 32,
  "initializer_range": 0.02,
  "intermediate_size": 48,
  "kv_lora_rank": 16,
  "max_position_embeddings": 163840,
  "model_type": "deepseek_v3",
  "moe_intermediate_size": 16,
  "moe_layer_freq": 1,
  "n_group": 1,
  "n_routed_experts": 4,
  "n_shared_experts": 1,
  "norm_topk_prob": true,
  "num_attention_heads": 4,
  "num_experts_per_tok": 2,
  "num_hidden_layers": 6,
  "num_key_value_heads": 4,
  "num_nextn_predict_layers": 0,
  "q_lora_rank": 16,
  "qk_nope_head_dim": 8,
  "qk_rope_head_dim": 8,
  "rms_norm_eps": 1e-06,
  "rope_scaling": {
    "beta_fast": 32,
    "beta_slow": 1,
    "factor": 40,
    "mscale": 1.0,
    "mscale_all_dim": 1.0,
    "original_max_position_embeddings": 4096,
    "type": "yarn"
  },
  "rope_theta": 10000,
  "routed_scaling_factor": 2.5,
  "scoring_func": "sigmoid",
  "tie_word_embeddings": false,
  "topk_group": 1,
  "topk_method": "noaux_tc",
  "torch_dtype": "bfloat16",
  "transformers_version": "4.33.1",
  "use_cache": true,
  "v_head_dim": 8,
  "vocab_size": 96
}
""",
        end={'"num_hidden_layers": 6': '"num_hidden_layers": 8'},
        interleaved={
            '"num_hidden_layers": 6': '"num_hidden_layers": 8',
            '"first_k_dense_replace": 3': '"first_k_dense_replace": 4',
        },
    ),
    Released(
        name="nemotron-h",
        text="""{
  "architectures": [
    "NemotronHForCausalLM"
  ],
  "attention_bias": false,
  "attention_dropout": 0.0,
  "attention_head_dim": 8,
  "head_dim": 8,
  "bos_token_id": 1,
  "chunk_size": 8,
  "conv_kernel": 4,
  "eos_token_id": 2,
  "expand": 2,
  "hidden_dropout": 0.0,
  "hidden_size": 32,
  "hybrid_override_pattern": "M-M*M-",
  "initializer_range": 0.02,
  "intermediate_size": 48,
  "layer_norm_epsilon": 1e-05,
  "mamba_head_dim": 8,
  "mamba_hidden_act": "silu",
  "mamba_num_heads": 8,
  "mamba_proj_bias": false,
  "max_position_embeddings": 8192,
  "mlp_bias": false,
  "mlp_hidden_act": "relu2",
  "model_type": "nemotron_h",
  "n_groups": 2,
  "num_attention_heads": 4,
  "num_hidden_layers": 6,
  "num_key_value_heads": 2,
  "num_logits_to_keep": 1,
  "num_query_groups": 8,
  "pad_token_id": 0,
  "rescale_prenorm_residual": true,
  "residual_in_fp32": false,
  "rms_norm_eps": 1e-05,
  "sliding_window": null,
  "ssm_state_size": 16,
  "tie_word_embeddings": false,
  "time_step_floor": 0.0001,
  "time_step_limit": [
    0.0,
    Infinity
  ],
  "time_step_max": 0.1,
  "time_step_min": 0.001,
  "torch_dtype": "bfloat16",
  "transformers_version": "4.48.0.dev0",
  "use_bias": false,
  "use_cache": true,
  "use_conv_bias": true,
  "use_mamba_kernels": true,
  "vocab_size": 96
}
""",
        end={
            '"num_hidden_layers": 6': '"num_hidden_layers": 8',
            '"M-M*M-"': '"M-M*M---"',
        },
        interleaved={
            '"num_hidden_layers": 6': '"num_hidden_layers": 8',
            '"M-M*M-"': '"M-MM*M--"',
        },
    ),
    Released(
        name="granite 4 tiny",
        text="""{
  "architectures": [
    "GraniteMoeHybridForCausalLM"
  ],
  "attention_bias": false,
  "attention_dropout": 0.0,
  "attention_multiplier": 0.0078125,
  "bos_token_id": 1,
  "embedding_multiplier": 12,
  "eos_token_id": 2,
  "hidden_act": "silu",
  "hidden_size": 32,
  "init_method": "mup",
  "initializer_range": 0.1,
  "intermediate_size": 16,
  "layer_types": LAYER_TYPES,
  "logits_scaling": 6,
  "mamba_chunk_size": 256,
  "mamba_conv_bias": true,
  "mamba_d_conv": 4,
  "mamba_d_head": 8,
  "mamba_d_state": 16,
  "mamba_expand": 2,
  "mamba_n_groups": 1,
  "mamba_n_heads": 8,
  "mamba_proj_bias": false,
  "max_position_embeddings": 131072,
  "model_type": "granitemoehybrid",
  "normalization_function": "rmsnorm",
  "num_attention_heads": 4,
  "num_experts_per_tok": 2,
  "num_hidden_layers": 8,
  "num_key_value_heads": 2,
  "num_local_experts": 4,
  "output_router_logits": false,
  "pad_token_id": 0,
  "position_embedding_type": "nope",
  "residual_multiplier": 0.22,
  "rms_norm_eps": 1e-05,
  "rope_scaling": null,
  "rope_theta": 10000,
  "router_aux_loss_coef": 0.01,
  "shared_intermediate_size": 32,
  "tie_word_embeddings": true,
  "torch_dtype": "bfloat16",
  "transformers_version": "4.56.0",
  "use_cache": true,
  "vocab_size": 96
}
""".replace("LAYER_TYPES", spell(MAMBA, 2)),
        end={
            '"num_hidden_layers": 8': '"num_hidden_layers": 10',
            spell(MAMBA, 2): spell([*MAMBA, "mamba", "mamba"], 2),
        },
        interleaved={
            '"num_hidden_layers": 8': '"num_hidden_layers": 10',
            spell(MAMBA, 2): spell(repeat(MAMBA, (3, 7)), 2),
        },
    ),
    Released(
        name="hunyuan a13b",
        text="""{
  "architectures": ["HunYuanMoEV1ForCausalLM"],
  "attention_bias": false, "attention_dropout": 0.1, "attention_head_dim": 8,
  "bos_token_id": 1, "cla_share_factor": 2, "class_num": 0, "eod_token_id": 3, "eos_token_id": 2,
  "head_dim": 8, "hidden_act": "silu", "hidden_size": 32, "initializer_range": 0.02,
  "intermediate_size": 48, "max_position_embeddings": 32768, "mlp_bias": false,
  "model_type": "hunyuan_v1_moe", "moe_intermediate_size": [16, 16, 16, 16, 16, 16],
  "moe_topk": [2, 2, 2, 2, 2, 2], "norm_type": "rms", "num_attention_heads": 4,
  "num_experts": 4, "num_hidden_layers": 6, "num_key_value_heads": 2,
  "num_shared_expert": [1, 1, 1, 1, 1, 1], "pad_id": 0, "pad_token_id": 0, "rms_norm_eps": 1e-05,
  "rope_scaling": {"alpha": 1000.0, "beta_fast": 32, "beta_slow": 1, "factor": 1.0, "mscale": 1.0,
    "mscale_all_dim": 1.0, "type": "dynamic"},
  "rope_theta": 10000.0, "tie_word_embeddings": true, "torch_dtype": "bfloat16", "use_cla": false,
  "use_mixed_mlp_moe": true, "use_qk_norm": true, "vocab_size": 96
}""",
        end={
            '"num_hidden_layers": 6': '"num_hidden_layers": 8',
            "[16, 16, 16, 16, 16, 16]": "[16, 16, 16, 16, 16, 16, 16, 16]",
            "[2, 2, 2, 2, 2, 2]": "[2, 2, 2, 2, 2, 2, 2, 2]",
            "[1, 1, 1, 1, 1, 1]": "[1, 1, 1, 1, 1, 1, 1, 1]",
        },
    ),
    Released(
        name="by hand, with every odd spelling",
        text='{"model_type" :"llama",\r\n\t"hidden_size": 32,"num_hidden_layers":  4 ,'
        '"intermediate_size":48, "vocab_size":96,\r\n\t"num_attention_heads":4 ,'
        '"rms_norm_eps":1E-5,"initializer_range":2.0e-02,"attention_dropout":-0.0,"zero":-0,"big":1e+400,'
        '"note":"\\u00e9 \\/ \u00e9 num_hidden_layers","rope_scaling":null,"empty":{},"none":[ ],'
        '"inner":{"num_hidden_layers":4},"tie_word_embeddings":false}',
        end={'"num_hidden_layers":  4 ,': '"num_hidden_layers":  6 ,'},
    ),
]


def make(one: Released, folder: Path) -> None:
    """Make the tensors that transformers builds from the text, and lay the text beside them."""
    folder.mkdir()
    (folder / "config.json").write_bytes(one.text.encode())
    config = AutoConfig.from_pretrained(folder)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    (folder / "config.json").write_bytes(one.text.encode())


@pytest.mark.parametrize("one", RELEASED, ids=lambda one: one.name)
def test_only_what_must_change_in_config_json_does(one: Released, tmp_path: Path) -> None:
    make(one, tmp_path / "source")
    for position in ("end", "interleaved"):
        out = tmp_path / position
        blockexpand.expand(
            tmp_path / "source", out, new_layers=2, position=position, dtype="source"
        )
        expected = one.text
        for old, new in (getattr(one, position) or one.end).items():
            assert expected.count(old) >= 1, old
            expected = expected.replace(old, new, 1)
        assert (out / "config.json").read_bytes().decode() == expected, position
