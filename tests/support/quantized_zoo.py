"""Tiny quantised checkpoints of each format, quantised here by the formats' own definitions.

Weights are quantised with plain torch, so that no expectation comes from the code under test.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

Tensors = dict[str, torch.Tensor]

LAYERS = 4
VOCABULARY = 96

BASES: Mapping[str, Mapping[str, Any]] = {
    "llama": {
        "hidden_size": 256,
        "intermediate_size": 384,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    },
    "qwen3_moe": {
        "hidden_size": 256,
        "intermediate_size": 384,
        "moe_intermediate_size": 128,
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 64,
    },
    # kv_a_proj_with_mqa has 128 + 64 rows: its last block is not whole.
    "deepseek_v3": {
        "hidden_size": 256,
        "intermediate_size": 384,
        "moe_intermediate_size": 128,
        "n_routed_experts": 4,
        "num_experts_per_tok": 2,
        "n_group": 2,
        "topk_group": 1,
        "n_shared_experts": 1,
        "first_k_dense_replace": 1,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "q_lora_rank": 128,
        "kv_lora_rank": 128,
        "qk_rope_head_dim": 64,
        "qk_nope_head_dim": 64,
        "v_head_dim": 64,
    },
    # Experts are one tensor [experts, in, out].
    "llama4_text": {
        "hidden_size": 256,
        "intermediate_size": 128,
        "intermediate_size_mlp": 384,
        "num_local_experts": 4,
        "num_experts_per_tok": 1,
        "interleave_moe_layer_step": 1,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 64,
    },
    # Norms close both branches.
    "olmo2": {
        "hidden_size": 256,
        "intermediate_size": 384,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    },
    "gpt_oss": {
        "hidden_size": 128,
        "intermediate_size": 128,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "sliding_window": 16,
    },
}


def make_base(folder: Path, base: str, dtype: torch.dtype = torch.bfloat16) -> Path:
    """Write an unquantised checkpoint with random weights; norms lie around 1."""
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(
        base,
        num_hidden_layers=LAYERS,
        vocab_size=VOCABULARY,
        max_position_embeddings=128,
        tie_word_embeddings=False,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        **BASES[base],
    )
    generator = torch.Generator().manual_seed(1)
    model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            is_norm = "norm" in name
            parameter.normal_(
                1.0 if is_norm else 0.0, 0.1 if is_norm else 0.08, generator=generator
            )
    model.save_pretrained(folder)
    return folder


def read_tensors(folder: Path) -> Tensors:
    from safetensors.torch import load_file

    tensors: Tensors = {}
    for file in sorted(folder.glob("*.safetensors")):
        tensors |= load_file(file)
    return tensors


def write_quantized(
    folder: Path,
    tensors: Tensors,
    settings: Mapping[str, Any],
    *,
    shards: int = 1,
    split: bool = True,
) -> Path:
    """Replace a checkpoint's weights; names go to shards in turn, so that modules are split.

    Without `split` they go there in order, each half (or third) of the layers together.
    """
    for file in folder.glob("*.safetensors*"):
        file.unlink()
    config = json.loads((folder / "config.json").read_text()) | {"quantization_config": settings}
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    names = sorted(tensors)
    if shards == 1:
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        return folder
    weight_map = {}
    for number in range(shards):
        file = f"model-{number + 1:05d}-of-{shards:05d}.safetensors"
        own = names[number::shards]
        if not split:
            own = [name for name in names if _shard_of(name, shards) == number]
        part = {name: tensors[name].contiguous() for name in own}
        save_file(part, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(part, file)
    index = {"metadata": {"total_size": 0}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def _shard_of(name: str, shards: int) -> int:
    layer = re.search(r"layers\.(\d+)\.", name)
    return int(layer[1]) * shards // LAYERS if layer else 0


LINEAR = re.compile(r".*layers\.\d+\..*_proj(?:_with_mqa)?\.weight|.*_[ab]_proj.*\.weight")


def is_linear(name: str) -> bool:
    return LINEAR.fullmatch(name) is not None


def quantize(
    tensors: Tensors,
    pack: Callable[[str, torch.Tensor], Tensors],
    is_chosen: Callable[[str], bool] = is_linear,
) -> Tensors:
    """Replace each chosen weight by its parts, named by their suffixes after the module's name."""
    result: Tensors = {}
    for name, tensor in tensors.items():
        if is_chosen(name):
            module = name.removesuffix(".weight")
            result |= {module + suffix: part for suffix, part in pack(module, tensor).items()}
        else:
            result[name] = tensor
    return {name: tensor.contiguous() for name, tensor in result.items()}


def fp8_blocks(
    block: int = 128, scale_dtype: torch.dtype | None = torch.float32
) -> Callable[[str, torch.Tensor], Tensors]:
    """Quantise by blocks, cut at the edges; `scale_dtype` None stores E8M0 bytes."""

    def pack(module: str, weight: torch.Tensor) -> Tensors:
        w = weight.float()
        rows, cols = w.shape
        grid = -(-rows // block), -(-cols // block)
        q = torch.empty(rows, cols, dtype=torch.float8_e4m3fn)
        scale = torch.empty(grid)
        for i in range(grid[0]):
            for j in range(grid[1]):
                part = w[i * block : (i + 1) * block, j * block : (j + 1) * block]
                s = float(part.abs().max()) / 448
                if scale_dtype is None:
                    s = 2.0 ** torch.tensor(s).log2().ceil().item()
                scale[i, j] = s
                if scale_dtype is torch.bfloat16:
                    scale[i, j] = scale[i, j].to(torch.bfloat16).float()
                q[i * block : (i + 1) * block, j * block : (j + 1) * block] = (
                    part / scale[i, j]
                ).to(torch.float8_e4m3fn)
        if scale_dtype is None:
            stored = (scale.log2().round() + 127).to(torch.uint8).view(torch.float8_e8m0fnu)
        else:
            stored = scale.to(scale_dtype)
        return {".weight": q, ".weight_scale_inv": stored}

    return pack


def fp8_experts(tensors: Tensors) -> Tensors:
    """Quantise experts that are one tensor: the scales' name is the weight's and `_scale_inv`."""
    pack = fp8_blocks()
    result: Tensors = {}
    for name, tensor in tensors.items():
        if not re.fullmatch(r".*experts\.(gate_up|down)_proj", name):
            result[name] = tensor
            continue
        experts = [pack(name, expert) for expert in tensor]
        result[name] = torch.stack([expert[".weight"] for expert in experts])
        result[f"{name}_scale_inv"] = torch.stack([e[".weight_scale_inv"] for e in experts])
    return result


def fp8_settings(**more: Any) -> dict[str, Any]:
    return {
        "quant_method": "fp8",
        "activation_scheme": "dynamic",
        "fmt": "e4m3",
        "weight_block_size": [128, 128],
    } | more


def fp8_values(tensors: Tensors, module: str, block: int = 128) -> torch.Tensor:
    """Return a module's values by the definition: element by element, without slices."""
    if module in tensors:
        experts = zip(tensors[module], tensors[f"{module}_scale_inv"], strict=True)
        alone = [{".weight": weight, ".weight_scale_inv": scale} for weight, scale in experts]
        return torch.stack([fp8_values(expert, "", block) for expert in alone])
    q, scale = tensors[f"{module}.weight"], tensors[f"{module}.weight_scale_inv"]
    if scale.dtype == torch.float8_e8m0fnu:
        scale = 2.0 ** (scale.view(torch.uint8).float() - 127)
    rows, cols = q.shape
    spread = scale.float().repeat_interleave(block, 0)[:rows].repeat_interleave(block, 1)[:, :cols]
    return (q.float() * spread).to(torch.bfloat16)


# Any table with 0 at code 7 will do, as the checkpoint brings it along.
NF4_MAP = torch.cat((torch.linspace(-1, 0, 8), torch.linspace(0, 1, 9)[1:]))


def nf4(module: str, weight: torch.Tensor) -> Tensors:
    """Quantise to codes of a table, by blocks of 64 elements, as bitsandbytes stores them."""
    flat = weight.float().reshape(-1, 64)
    absmax = flat.abs().amax(1)
    codes = (flat[..., None] / absmax[:, None, None] - NF4_MAP).abs().argmin(-1).to(torch.uint8)
    codes = codes.reshape(-1, 2)
    state = {
        "quant_type": "nf4",
        "blocksize": 64,
        "dtype": "bfloat16",
        "shape": list(weight.shape),
    }
    return {
        ".weight": (codes[:, :1] << 4 | codes[:, 1:]).contiguous(),
        ".weight.absmax": absmax,
        ".weight.quant_map": NF4_MAP.clone(),
        ".weight.quant_state.bitsandbytes__nf4": torch.tensor(
            list(json.dumps(state).encode()), dtype=torch.uint8
        ),
    }


def nf4_settings(skips: list[str]) -> dict[str, Any]:
    return {
        "quant_method": "bitsandbytes",
        "load_in_4bit": True,
        "bnb_4bit_quant_type": "nf4",
        "bnb_4bit_compute_dtype": "bfloat16",
        "llm_int8_skip_modules": skips,
    }


def nf4_values(tensors: Tensors, module: str) -> torch.Tensor:
    """Return a module's values by the definition."""
    packed = tensors[f"{module}.weight"].flatten()
    codes = torch.stack((packed >> 4, packed & 15), dim=1).long()
    values = NF4_MAP[codes].reshape(-1, 64) * tensors[f"{module}.weight.absmax"][:, None]
    state = bytes(tensors[f"{module}.weight.quant_state.bitsandbytes__nf4"].tolist())
    return values.to(torch.bfloat16).reshape(json.loads(state)["shape"])


E2M1 = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6])


def mxfp4_experts(tensors: Tensors) -> Tensors:
    """Quantise gpt-oss's experts [experts, in, out] in blocks of 32 inputs."""
    result: Tensors = {}
    for name, tensor in tensors.items():
        if not re.fullmatch(r".*experts\.(gate_up|down)_proj", name):
            result[name] = tensor
            continue
        w = tensor.float().transpose(1, 2).contiguous()  # [experts, out, in]
        groups = w.view(*w.shape[:2], -1, 32)
        exponent = groups.abs().amax(-1).log2().floor() - 2
        scaled = groups / 2.0 ** exponent[..., None]
        codes = (scaled[..., None] - E2M1).abs().argmin(-1).to(torch.uint8)
        result[f"{name}_blocks"] = codes[..., 0::2] | codes[..., 1::2] << 4
        result[f"{name}_scales"] = (exponent + 127).to(torch.uint8)
    return {name: tensor.contiguous() for name, tensor in result.items()}


def mxfp4_values(tensors: Tensors, name: str) -> torch.Tensor:
    """Return experts [experts, in, out] by the definition."""
    blocks, scales = tensors[f"{name}_blocks"], tensors[f"{name}_scales"]
    codes = torch.stack((blocks & 15, blocks >> 4), dim=-1).flatten(-2).long()
    values = E2M1[codes] * 2.0 ** (scales.float() - 127)[..., None]
    return values.flatten(2).transpose(1, 2).to(torch.bfloat16).contiguous()


MXFP4_SETTINGS = {
    "quant_method": "mxfp4",
    "modules_to_not_convert": [
        "model.layers.*.self_attn",
        "model.layers.*.mlp.router",
        "model.embed_tokens",
        "lm_head",
    ],
}


def load(folder: Path, dtype: torch.dtype = torch.bfloat16, **options: Any) -> Any:
    """Load with transformers; no key may be missing or of another shape."""
    from transformers import AutoModelForCausalLM

    model, report = AutoModelForCausalLM.from_pretrained(
        folder, dtype=dtype, output_loading_info=True, attn_implementation="eager", **options
    )
    assert not report["missing_keys"], report["missing_keys"]
    assert not report["mismatched_keys"]
    return model.eval()


def logits(model: Any) -> torch.Tensor:
    ids = torch.randint(3, VOCABULARY, (2, 24), generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        return model(input_ids=ids).logits.clone()
