"""Make a tiny checkpoint as it would be released: MODEL_TYPE FOLDER. Runs with transformers 5."""

import json
import sys
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM

SHAPE = {
    **{"hidden_size": 128, "intermediate_size": 96, "num_hidden_layers": 12, "vocab_size": 320},
    **{"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32},
    **{"max_position_embeddings": 256, "sliding_window": 16},
    **{"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2},
}

MORE = {
    "gpt_oss": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "llama4_text": {
        **{"num_local_experts": 4, "num_experts_per_tok": 1, "interleave_moe_layer_step": 1},
        **{"intermediate_size_mlp": 96, "attention_chunk_size": 16},
    },
    "qwen3_next": {
        **{"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32},
        **{"shared_expert_intermediate_size": 32, "linear_num_key_heads": 2},
        **{"linear_num_value_heads": 4, "linear_key_head_dim": 16, "linear_value_head_dim": 16},
    },
    "smollm3": {"sliding_window": None},
    "qwen3": {"sliding_window": None},
    "qwen3_moe": {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32},
}

torch.manual_seed(0)
kind, folder = sys.argv[1], Path(sys.argv[2])
config = AutoConfig.for_model(kind, **SHAPE | MORE.get(kind, {}))
model = AutoModelForCausalLM.from_config(config)
with torch.no_grad():
    for parameter in model.parameters():
        noise = torch.randn_like(parameter)
        parameter.add_((0.5 if parameter.dim() > 1 else 0.1) * noise / parameter.shape[-1] ** 0.5)
model.to(torch.bfloat16).save_pretrained(folder)

# transformers 5 spells anew what was released with older names, which is what readers know.
path = folder / "config.json"
fields = json.loads(path.read_text())
fields["torch_dtype"] = fields.pop("dtype")
if kind == "qwen3_moe":
    fields["num_experts"] = fields.pop("num_local_experts")
rope = fields.pop("rope_parameters", None) or {}
if "full_attention" in rope:
    fields["rope_theta"] = rope["full_attention"]["rope_theta"]
    fields["rope_local_base_freq"] = rope["sliding_attention"]["rope_theta"]
else:
    fields["rope_theta"] = rope.pop("rope_theta", 10000.0)
    if rope.get("rope_type", "default") != "default":
        fields["rope_scaling"] = rope
path.write_text(json.dumps(fields, indent=2) + "\n")
