"""Tiny checkpoints quantised by the formats' own libraries: compressed-tensors and bitsandbytes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import quantized_zoo as zoo
import torch

# compressed-tensors' presets, and the format that each is stored in.
PRESETS = {
    "W4A16": "pack-quantized",
    "W4A16_ASYM": "pack-quantized",
    "W8A16": "pack-quantized",
    "FP8_DYNAMIC": "float-quantized",
    "FP8_BLOCK": "float-quantized",
    "INT8": "int-quantized",
    "NVFP4A16": "nvfp4-pack-quantized",
    # Quantises activations too, with a scale of its own for each module.
    "NVFP4": "nvfp4-pack-quantized",
    "MXFP4A16": "mxfp4-pack-quantized",
}


def write_compressed(folder: Path, preset: str, *, ignore: tuple[str, ...] = ("lm_head",)) -> Path:
    """Quantise a checkpoint's projections with compressed-tensors."""
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.quantization import preset_name_to_scheme

    scheme = preset_name_to_scheme(preset, ["Linear"])
    compressor = BaseCompressor.get_value_from_registry(PRESETS[preset])

    def pack(module: str, weight: torch.Tensor) -> zoo.Tensors:
        state = {"weight": weight} | _parameters(weight, scheme.weights)
        compressed = compressor.compress(state, scheme)
        parts = {f".{name}": part.detach() for name, part in compressed.items()}
        if preset == "NVFP4":
            parts[".input_global_scale"] = torch.tensor([700.0])
        return parts

    ignored = tuple(entry for entry in ignore if not entry.startswith("re:"))
    tensors = zoo.quantize(
        zoo.read_tensors(folder),
        pack,
        lambda name: zoo.is_linear(name) and not name.startswith(ignored),
    )
    settings = {
        "quant_method": "compressed-tensors",
        "format": PRESETS[preset],
        "quantization_status": "compressed",
        "ignore": list(ignore),
        "config_groups": {
            "group_0": {
                "targets": ["Linear"],
                "weights": scheme.weights.model_dump(mode="json"),
                "input_activations": scheme.input_activations
                and scheme.input_activations.model_dump(mode="json"),
                "format": PRESETS[preset],
            }
        },
    }
    return zoo.write_quantized(folder, tensors, settings, shards=2)


def _parameters(weight: torch.Tensor, args: Any) -> zoo.Tensors:
    """Return scales and zero points from the extremes of what shares them."""
    from compressed_tensors.quantization.utils import calculate_qparams, generate_gparam

    rows, cols = weight.shape
    if args.strategy == "channel":
        low, high = weight.amin(1, keepdim=True), weight.amax(1, keepdim=True)
    elif args.strategy == "block":
        height, width = args.block_structure
        blocks = weight.view(rows // height, height, cols // width, width)
        low, high = blocks.amin((1, 3)), blocks.amax((1, 3))
    elif args.strategy in ("group", "tensor_group"):
        groups = weight.view(rows, -1, args.group_size)
        low, high = groups.amin(-1), groups.amax(-1)
    else:
        low, high = weight.min().view(1), weight.max().view(1)
    shared: zoo.Tensors = {}
    if args.strategy == "tensor_group":
        factor = generate_gparam(weight.min(), weight.max()).view(1)
        shared["weight_global_scale"] = factor
        scale, zero = calculate_qparams(low, high, args, global_scale=factor)
    else:
        scale, zero = calculate_qparams(low, high, args)
    scale = scale if scale.dtype == torch.float8_e4m3fn else scale.to(weight.dtype)
    return shared | {"weight_scale": scale, "weight_zero_point": zero.to(torch.int8)}


def write_bitsandbytes(folder: Path, out: Path, **options: Any) -> Path:
    """Quantise a checkpoint as transformers does it with bitsandbytes."""
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.bfloat16, quantization_config=BitsAndBytesConfig(**options)
    )
    model.save_pretrained(out)
    return out
