"""One norm, and attention and MLP side by side; the stem's dots are those of `transformer.h`."""

from torch import nn
from torch.nn import functional as F
from transformers import PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

from .configuration_mixformer import MixFormerConfig


class MHA(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.n_head = config.n_head
        self.Wqkv = nn.Linear(config.n_embd, 3 * config.n_embd)
        self.out_proj = nn.Linear(config.n_embd, config.n_embd)

    def forward(self, x):
        batch, length, width = x.shape
        q, k, v = (
            part.view(batch, length, self.n_head, -1).transpose(1, 2)
            for part in self.Wqkv(x).chunk(3, -1)
        )
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.out_proj(out.transpose(1, 2).reshape(batch, length, width))


class MLP(nn.Module):
    def __init__(self, config):
        super().__init__()
        inner = config.n_inner or 4 * config.n_embd
        self.fc1 = nn.Linear(config.n_embd, inner)
        self.fc2 = nn.Linear(inner, config.n_embd)

    def forward(self, x):
        return self.fc2(F.gelu(self.fc1(x)))


class ParallelBlock(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.ln = nn.LayerNorm(config.n_embd)
        self.mixer = MHA(config)
        self.mlp = MLP(config)

    def forward(self, x):
        normed = self.ln(x)
        return self.mixer(normed) + self.mlp(normed) + x


class Embedding(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.wte = nn.Embedding(config.vocab_size, config.n_embd)


class Head(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.ln = nn.LayerNorm(config.n_embd)
        self.linear = nn.Linear(config.n_embd, config.vocab_size)


class MixFormerModel(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.embd = Embedding(config)
        self.h = nn.ModuleList(ParallelBlock(config) for _ in range(config.n_layer))


class MixFormerForCausalLM(PreTrainedModel):
    config_class = MixFormerConfig
    base_model_prefix = "transformer"

    def __init__(self, config):
        super().__init__(config)
        self.transformer = MixFormerModel(config)
        self.lm_head = Head(config)
        self.post_init()

    def _init_weights(self, module):
        pass

    def forward(self, input_ids=None, **rest):
        x = self.transformer.embd.wte(input_ids)
        for block in self.transformer.h:
            x = block(x)
        return CausalLMOutputWithPast(logits=self.lm_head.linear(self.lm_head.ln(x)))
