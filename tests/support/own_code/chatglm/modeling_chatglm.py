"""Megatron's names; queries, keys and values in one module; a layer keeps its number from 1."""

import math

import torch
from torch import nn
from torch.nn import functional as F
from transformers import PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

from .configuration_chatglm import ChatGLMConfig


class RMSNorm(nn.Module):
    def __init__(self, size):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))

    def forward(self, x):
        return self.weight * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-5)


class CoreAttention(nn.Module):
    def __init__(self, config, layer_number):
        super().__init__()
        self.layer_number = max(1, layer_number)
        self.coeff = None
        self.norm_factor = math.sqrt(config.kv_channels)
        if config.apply_query_key_layer_scaling:
            # What scaled_dot_product_attention does in float32 anyway: kept, and not used.
            self.coeff = self.layer_number
            self.norm_factor *= self.coeff

    def forward(self, q, k, v):
        return F.scaled_dot_product_attention(q, k, v, is_causal=True)


class SelfAttention(nn.Module):
    def __init__(self, config, layer_number):
        super().__init__()
        self.layer_number = max(1, layer_number)
        self.heads, self.size = config.num_attention_heads, config.kv_channels
        self.groups = config.multi_query_group_num
        self.query_key_value = nn.Linear(
            config.hidden_size, (self.heads + 2 * self.groups) * self.size, bias=config.add_qkv_bias
        )
        self.core_attention = CoreAttention(config, layer_number)
        self.dense = nn.Linear(self.heads * self.size, config.hidden_size, bias=False)

    def forward(self, x):
        batch, length, _ = x.shape
        parts = [count * self.size for count in (self.heads, self.groups, self.groups)]
        q, k, v = (
            part.view(batch, length, -1, self.size).transpose(1, 2)
            for part in self.query_key_value(x).split(parts, -1)
        )
        k, v = (t.repeat_interleave(self.heads // self.groups, 1) for t in (k, v))
        out = self.core_attention(q, k, v)
        return self.dense(out.transpose(1, 2).reshape(batch, length, -1))


class MLP(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.dense_h_to_4h = nn.Linear(config.hidden_size, 2 * config.ffn_hidden_size, bias=False)
        self.dense_4h_to_h = nn.Linear(config.ffn_hidden_size, config.hidden_size, bias=False)

    def forward(self, x):
        gate, up = self.dense_h_to_4h(x).chunk(2, -1)
        return self.dense_4h_to_h(F.silu(gate) * up)


class GLMBlock(nn.Module):
    def __init__(self, config, layer_number):
        super().__init__()
        self.layer_number = layer_number
        self.input_layernorm = RMSNorm(config.hidden_size)
        self.self_attention = SelfAttention(config, layer_number)
        self.post_attention_layernorm = RMSNorm(config.hidden_size)
        self.mlp = MLP(config)

    def forward(self, x):
        x = x + self.self_attention(self.input_layernorm(x))
        return x + self.mlp(self.post_attention_layernorm(x))


class GLMTransformer(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.layers = nn.ModuleList(
            GLMBlock(config, number) for number in range(1, config.num_layers + 1)
        )
        self.final_layernorm = RMSNorm(config.hidden_size)

    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
        return self.final_layernorm(x)


class Embedding(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.word_embeddings = nn.Embedding(config.padded_vocab_size, config.hidden_size)


class ChatGLMModel(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.embedding = Embedding(config)
        self.encoder = GLMTransformer(config)
        self.output_layer = nn.Linear(config.hidden_size, config.padded_vocab_size, bias=False)


class ChatGLMForConditionalGeneration(PreTrainedModel):
    config_class = ChatGLMConfig
    base_model_prefix = "transformer"

    def __init__(self, config):
        super().__init__(config)
        self.transformer = ChatGLMModel(config)
        self.post_init()

    def _init_weights(self, module):
        pass

    def forward(self, input_ids=None, **rest):
        inner = self.transformer
        x = inner.encoder(inner.embedding.word_embeddings(input_ids))
        return CausalLMOutputWithPast(logits=inner.output_layer(x))
