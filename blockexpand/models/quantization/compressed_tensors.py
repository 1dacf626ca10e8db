"""The row of compressed-tensors: groups of modules, each in a format of its own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ...errors import CheckpointError, UnsupportedModelError
from ...formats.codecs import Blocks, PackedE2M1, PackedIntegers, Specs
from .blocks import check_grid
from .matchers import SKIPPED, find_group, find_group_by_end
from .scheme import Entries, Method, QuantConfig, Scheme

_FORMATS = (
    "pack-quantized",
    "float-quantized",
    "int-quantized",
    "naive-quantized",
    "nvfp4-pack-quantized",
    "mxfp4-pack-quantized",
)


def _read(config: QuantConfig, module: str, specs: Specs) -> Scheme:
    group = _group_of(config, module)
    weights: Mapping[str, Any] = group.get("weights") or {}
    known = str(group.get("format") or config.get("format"))
    if known == "mixed-precision" or known not in _FORMATS:
        raise UnsupportedModelError(
            f"compressed-tensors in format {known!r}; known are {', '.join(_FORMATS)}"
        )
    if weights.get("dynamic"):
        raise UnsupportedModelError("compressed-tensors whose weights are scaled dynamically")
    bits, symmetric = int(weights.get("num_bits") or 0), weights.get("symmetric", True) is not False
    q, scale = specs["q"], specs["scale"]
    group_size = int(weights.get("group_size") or 0)
    group_size = group_size if group_size > 0 else 0
    if known == "pack-quantized":
        return _read_packed(specs, bits, group_size, symmetric=symmetric)
    if known.endswith("fp4-pack-quantized"):
        width = 16 if known.startswith("nv") else 32
        shape = (*q.shape[:-1], q.shape[-1] * 2)
        check_grid(shape, (1, width), scale.shape)
        return Scheme(
            name="NVFP4" if width == 16 else "MXFP4",
            zero={"q": b"\0"},
            codec=PackedE2M1(group=width),
            shape=shape,
            explains=("scale", "global") if "global" in specs else ("scale",),
        )
    block = _find_block(weights, group_size)
    check_grid(q.shape, block, scale.shape)
    asymmetric = {"scale": b"\0"} if not symmetric else {}
    return Scheme(
        name="FP8" if q.dtype.startswith("F8") else f"INT{bits}",
        zero=asymmetric or {"q": b"\0"},
        codec=Blocks(block=block, rounds_to_scale=True),
        shape=q.shape,
        explains=("scale", "zero") if "zero" in specs else ("scale",),
    )


def _group_of(config: QuantConfig, module: str) -> Mapping[str, Any]:
    groups: Mapping[str, Mapping[str, Any]] = config.get("config_groups") or {}
    name = find_group(config, module)
    if name is SKIPPED and len(groups) == 1:
        # Names of the config may have another prefix than those of the tensors.
        (name,) = groups
    if name is SKIPPED:
        raise CheckpointError(
            "stored quantized, but no group of the config's 'config_groups' has it as a target"
        )
    return groups[str(name)]


def _find_block(weights: Mapping[str, Any], group_size: int) -> tuple[int, int]:
    """Return rows and columns of what shares a scale; 0 for all."""
    match weights.get("strategy"):
        case "tensor":
            return 0, 0
        case "channel":
            return 1, 0
        case "group" | "tensor_group":
            return 1, group_size
        case "block":
            structure = weights.get("block_structure") or (128, 128)
            if isinstance(structure, str):  # "128x128", in older releases
                structure = structure.split("x")
            rows, cols = structure
            return int(rows), int(cols)
        case other:
            raise UnsupportedModelError(f"compressed-tensors' strategy {other!r} of weights")


def _read_packed(specs: Specs, bits: int, group: int, *, symmetric: bool) -> Scheme:
    q, scale = specs["q"], specs["scale"]
    if q.dtype != "I32" or bits not in (4, 8) or len(q.shape) != 2:
        raise UnsupportedModelError(
            f"compressed-tensors' pack-quantized weights of {bits} bits ({q.dtype} "
            f"{list(q.shape)}); known are 4 and 8 bits in I32"
        )
    if symmetric != ("zero" not in specs):
        raise CheckpointError(
            f"{'no ' if not symmetric else ''}weight_zero_point beside symmetric: {symmetric}"
        )
    rows, cols = q.shape[0], q.shape[1] * 32 // bits
    if group and "order" not in specs:
        # Of a last word that is not full, the scales tell how much of it counts.
        cols = min(cols, scale.shape[-1] * group)
    if scale.shape != (rows, -(-cols // group) if group else 1):
        raise CheckpointError(
            f"scales of shape {list(scale.shape)} for a weight of shape {[rows, cols]} in groups "
            f"of {group or 'a whole row'}"
        )
    optional = [role for role in ("zero", "order") if role in specs]
    return Scheme(
        name=f"INT{bits}",
        # The value 0 is stored as half of the range; a zero point may be anything.
        zero={"q": b"\x88" if bits == 4 else b"\x80"} if symmetric else {"scale": b"\0"},
        codec=PackedIntegers(bits=bits, group=group),
        shape=(rows, cols),
        explains=("scale", *optional),
    )


def _check(config: QuantConfig) -> str | None:
    sparsity = config.get("sparsity_config") or {}
    if sparsity.get("format") not in (None, "dense"):
        return f"compressed-tensors with sparse weights ({sparsity.get('format')!r})"
    if config.get("transform_config"):
        return "compressed-tensors with transforms ('transform_config')"
    return None


def _entries(config: QuantConfig) -> tuple[Entries, ...]:
    groups = config.get("config_groups") or {}
    targets = (
        Entries(path=("config_groups", name, "targets"), style="targets", is_skip=False)
        for name in groups
    )
    return (Entries(path=("ignore",), style="targets"), *targets)


COMPRESSED_TENSORS = Method(
    name="compressed-tensors",
    title="compressed-tensors",
    parts={
        ".weight_packed": "q",
        ".weight": "q",
        ".weight_scale": "scale",
        ".weight_zero_point": "zero",
        ".weight_g_idx": "order",
        ".weight_global_scale": "global",
        ".weight_shape": "shape",
        **dict.fromkeys((".input_scale", ".input_zero_point", ".input_global_scale"), "input"),
    },
    extras=(".k_scale", ".v_scale", ".q_scale", ".output_scale", ".output_zero_point"),
    read=_read,
    entries=_entries,
    engines={"transformers": find_group, "vLLM": find_group, "SGLang": find_group_by_end},
    check=_check,
    library="compressed_tensors",
    loading="CompressedTensorsConfig",
)
