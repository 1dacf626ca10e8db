"""Expansions whose new blocks were trained, as far as a test has to care: their values moved."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from checkpoints import read_header

import blockexpand

_WIDTHS: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 320,
    "max_position_embeddings": 256,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
_EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 32}

# By model type: what differs from the widths above.
CONFIGS: dict[str, dict[str, Any]] = {
    "llama": {"num_hidden_layers": 4},
    "qwen3_moe": {"num_hidden_layers": 4, "head_dim": 16, "num_experts": 4, **_EXPERTS},
    "gemma3_text": {"num_hidden_layers": 6, "head_dim": 16},
    "olmo2": {"num_hidden_layers": 4},
    "gpt_oss": {
        "num_hidden_layers": 4,
        "head_dim": 16,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
    },
    "deepseek_v3": {
        "num_hidden_layers": 4,
        "num_key_value_heads": 4,
        "first_k_dense_replace": 1,
        "n_routed_experts": 4,
        "n_shared_experts": 1,
        "q_lora_rank": 24,
        "kv_lora_rank": 32,
        "qk_nope_head_dim": 16,
        "qk_rope_head_dim": 8,
        "v_head_dim": 16,
        "n_group": 1,
        "topk_group": 1,
        **_EXPERTS,
    },
    "qwen3_next": {
        "num_hidden_layers": 4,
        "head_dim": 16,
        "num_experts": 4,
        "shared_expert_intermediate_size": 32,
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 4,
        "linear_key_head_dim": 16,
        "linear_value_head_dim": 16,
        **_EXPERTS,
    },
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Trained:
    """Folders of a base, its expansion, and that expansion with other values in its new blocks."""

    base: Path
    expanded: Path
    trained: Path


def move_values(model: Any, seed: int = 0) -> None:
    """Add noise to every trainable parameter."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                noise = torch.randn(parameter.shape, generator=generator) * 0.05
                parameter.add_(noise.to(parameter.dtype))


def make_base(folder: Path, model_type: str = "llama", **changes: Any) -> Path:
    """Make a tiny base in float32, every parameter random."""
    import torch
    import transformers

    fields = {**_WIDTHS, **CONFIGS[model_type], **changes}
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(model_type, **fields)
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    move_values(model, seed=1)
    model.save_pretrained(folder)
    (folder / "README.md").write_text("---\nlicense: mit\n---\n# Base\n")
    return folder


def train(expanded: Path, out: Path, *, dtype: str = "float32", seed: int = 2) -> Path:
    """Save an expansion with other values in its new blocks, as a trainer saves it."""
    import torch
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(expanded, dtype=getattr(torch, dtype))
    blockexpand.freeze_original_layers(model, expanded)
    move_values(model, seed)
    model.save_pretrained(out)
    shutil.copy(expanded / "block_expansion.json", out)
    return out


def make_trained(
    folder: Path, model_type: str = "llama", *, position: str = "interleaved", **changes: Any
) -> Trained:
    """Make a base, its expansion by two layers, and that expansion trained."""
    base = make_base(folder / "base", model_type, **changes)
    new_layers = None if "," in position else 2
    blockexpand.expand(
        base, folder / "expanded", new_layers=new_layers, position=position, dtype="source"
    )
    return Trained(
        base=base,
        expanded=folder / "expanded",
        trained=train(folder / "expanded", folder / "trained"),
    )


def load(folder: Path) -> Any:
    """Load a model in float32, ready to compute."""
    import torch
    import transformers

    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def logits(model: Any) -> Any:
    """Return the logits of a fixed row of tokens."""
    import torch

    tokens = torch.arange(3, 43).unsqueeze(0)
    with torch.no_grad():
        return model(tokens).logits


def generate(model: Any) -> list[int]:
    """Return what follows a fixed prompt, with the cache."""
    import torch

    tokens = torch.arange(3, 23).unsqueeze(0)
    answer = model.generate(tokens, max_new_tokens=8, do_sample=False)
    result: list[int] = answer[0].tolist()
    return result


def move_new_blocks(base: Path, out: Path) -> Path:
    """Expand a base by two layers, and move every byte of the new ones, by hand."""
    result = blockexpand.expand(base, out, new_layers=2, dtype="source")
    for path in out.glob("*.safetensors"):
        header, start = read_header(path)
        data = bytearray(path.read_bytes())
        for name, entry in header.items():
            if any(f"layers.{layer}." in name for layer in result.plan.new_layers):
                first, last = (start + offset for offset in entry["data_offsets"])
                data[first:last] = bytes((byte + 7) % 64 for byte in data[first:last])
        path.write_bytes(data)
    return out
