"""Make a tiny checkpoint as an older release of transformers saves it: MODEL_TYPE FOLDER."""

import sys

import torch
from transformers import AutoConfig, AutoModelForCausalLM

SHAPE = {
    **{"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 8, "vocab_size": 96},
    **{"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8},
    **{"max_position_embeddings": 128, "sliding_window": 6},
    **{"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2},
}

MORE = {"cohere2": {"sliding_window_pattern": 4}, "gemma3_text": {"sliding_window_pattern": 6}}

torch.manual_seed(0)
kind, folder = sys.argv[1:]
config = AutoConfig.for_model(kind, **SHAPE, **MORE.get(kind, {}))
model = AutoModelForCausalLM.from_config(config)
with torch.no_grad():
    for parameter in model.parameters():
        parameter.add_(0.3 * torch.randn_like(parameter))
model.to(torch.bfloat16).save_pretrained(folder)
