"""Branches are scaled by the root of the depth, embeddings by a factor, logits by the width."""

import math

import torch
from torch import nn
from torch.nn import functional as F
from transformers import PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

from .configuration_minicpm import MiniCPMConfig


class MiniCPMRMSNorm(nn.Module):
    def __init__(self, size):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))

    def forward(self, x):
        return self.weight * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)


class MiniCPMAttention(nn.Module):
    def __init__(self, config, layer_idx):
        super().__init__()
        self.layer_idx = layer_idx
        self.heads, self.groups = config.num_attention_heads, config.num_key_value_heads
        size = config.hidden_size // self.heads
        self.q_proj = nn.Linear(config.hidden_size, self.heads * size, bias=False)
        self.k_proj = nn.Linear(config.hidden_size, self.groups * size, bias=False)
        self.v_proj = nn.Linear(config.hidden_size, self.groups * size, bias=False)
        self.o_proj = nn.Linear(self.heads * size, config.hidden_size, bias=False)

    def forward(self, x):
        batch, length, width = x.shape
        q, k, v = (
            project(x).view(batch, length, count, -1).transpose(1, 2)
            for project, count in (
                (self.q_proj, self.heads),
                (self.k_proj, self.groups),
                (self.v_proj, self.groups),
            )
        )
        k, v = (t.repeat_interleave(self.heads // self.groups, 1) for t in (k, v))
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.o_proj(out.transpose(1, 2).reshape(batch, length, width))


class MiniCPMMLP(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x):
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class MiniCPMDecoderLayer(nn.Module):
    def __init__(self, config, layer_idx):
        super().__init__()
        self.self_attn = MiniCPMAttention(config, layer_idx)
        self.mlp = MiniCPMMLP(config)
        self.input_layernorm = MiniCPMRMSNorm(config.hidden_size)
        self.post_attention_layernorm = MiniCPMRMSNorm(config.hidden_size)
        self.scale_depth = config.scale_depth
        self.num_hidden_layers = config.num_hidden_layers

    def forward(self, x):
        factor = self.scale_depth / math.sqrt(self.num_hidden_layers)
        x = x + self.self_attn(self.input_layernorm(x)) * factor
        return x + self.mlp(self.post_attention_layernorm(x)) * factor


class MiniCPMModel(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.scale_emb = config.scale_emb
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(
            MiniCPMDecoderLayer(config, index) for index in range(config.num_hidden_layers)
        )
        self.norm = MiniCPMRMSNorm(config.hidden_size)

    def forward(self, ids):
        x = self.embed_tokens(ids) * self.scale_emb
        for layer in self.layers:
            x = layer(x)
        return self.norm(x)


class MiniCPMForCausalLM(PreTrainedModel):
    config_class = MiniCPMConfig
    base_model_prefix = "model"

    def __init__(self, config):
        super().__init__(config)
        self.model = MiniCPMModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def _init_weights(self, module):
        pass

    def forward(self, input_ids=None, **rest):
        x = self.model(input_ids) / (self.config.hidden_size / self.config.dim_model_base)
        return CausalLMOutputWithPast(logits=self.lm_head(x))
