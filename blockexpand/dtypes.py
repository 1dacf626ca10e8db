"""Which dtype each tensor of the output has, and what the config says of it. Pure."""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .checkpoint import Checkpoint, Extent
from .decoder import Decoder, keeps_float32
from .errors import RecipeError
from .json_document import JsonEdit, JsonObject
from .layout import Convert, Copy
from .safetensors_header import DTYPE_BITS, FLOAT_DTYPES, TensorSpec

# The names of `--dtype` and of config.json, and the format's own.
SAFETENSORS_DTYPES: Mapping[str, str] = {
    "bfloat16": "BF16",
    "float16": "F16",
    "float32": "F32",
    "float64": "F64",
}
_NAMES = {code: name for name, code in SAFETENSORS_DTYPES.items()}
OUTPUT_DTYPES = ("bfloat16", "float16", "float32", "source")


@dataclass(frozen=True, slots=True, kw_only=True)
class DtypePolicy:
    """`target` is the dtype that float tensors are converted to, None to keep each one's own.

    `keeps_wider` is set where the source already has the target: what it stores wider than that
    (routers, biases) it stores so on purpose.
    """

    target: str | None
    keeps_wider: bool
    output_dtype: str
    decoder: Decoder

    def plan(
        self, name: str, spec: TensorSpec, extent: Extent
    ) -> tuple[TensorSpec, Copy | Convert]:
        """Return what a source tensor becomes."""
        target = self.target
        dtype = spec.dtype
        if target is None or dtype == target or dtype not in FLOAT_DTYPES:
            return spec, Copy(extent=extent)
        bits = DTYPE_BITS[dtype]
        if self.keeps_wider and bits > DTYPE_BITS[target]:
            return spec, Copy(extent=extent)
        if dtype == "F32" and keeps_float32(self.decoder, name):
            return spec, Copy(extent=extent)
        converted = TensorSpec(
            dtype=target, shape=spec.shape, nbytes=spec.nbytes * DTYPE_BITS[target] // bits
        )
        return converted, Convert(extent=extent, from_dtype=dtype, to_dtype=target)

    def config_edits(self, config: JsonObject) -> tuple[JsonEdit, ...]:
        """Return the edits that keep `torch_dtype` and `dtype` true, in the spelling they have."""
        if self.target is None:
            return ()
        return tuple(
            JsonEdit(path=path, value=self.output_dtype)
            for path in _dtype_fields(config, ())
            if _value_at(config, path) != self.output_dtype
        )


def make_dtype_policy(checkpoint: Checkpoint, dtype: str, decoder: Decoder) -> DtypePolicy:
    """Resolve the name of a dtype for one checkpoint.

    Raises: RecipeError for a name that is none.
    """
    if dtype not in OUTPUT_DTYPES:
        raise RecipeError(f"dtype {dtype!r}: expected one of {', '.join(OUTPUT_DTYPES)}")
    nbytes: Counter[str] = Counter()
    for spec in checkpoint.specs.values():
        if spec.dtype in FLOAT_DTYPES:
            nbytes[spec.dtype] += spec.nbytes
    main = nbytes.most_common(1)[0][0] if nbytes else "BF16"
    target = SAFETENSORS_DTYPES.get(dtype)
    return DtypePolicy(
        target=target,
        keeps_wider=main == target,
        output_dtype=_NAMES[target or main],
        decoder=decoder,
    )


def encode_element(dtype: str, value: float) -> bytes:
    """Return one element's little-endian bytes, for a value that the dtype holds exactly.

    Source: IEEE 754; bfloat16 is the upper half of float32.
    """
    match dtype:
        case "F64":
            return struct.pack("<d", value)
        case "F32":
            return struct.pack("<f", value)
        case "F16":
            return struct.pack("<e", value)
        case "BF16":
            return struct.pack("<f", value)[2:]
        case _:
            raise RecipeError(f"a tensor of dtype {dtype} cannot be set to {value:g}")


def _dtype_fields(config: Mapping[str, Any], path: tuple[str, ...]) -> list[tuple[str, ...]]:
    """Return the paths of all dtype fields, of the model itself and of its sub-models."""
    found = []
    for key, value in config.items():
        if key in ("torch_dtype", "dtype") and str(value) in SAFETENSORS_DTYPES:
            found.append((*path, key))
        elif isinstance(value, dict) and key.endswith("_config") and key != "quantization_config":
            found += _dtype_fields(value, (*path, key))
    return found


def _value_at(config: Mapping[str, Any], path: tuple[str, ...]) -> Any:
    value: Any = config
    for key in path:
        value = value[key]
    return value
