"""Which dtype each tensor of the output has, and what the config says of it. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from ..checkpoints.checkpoint import Checkpoint
from ..errors import RecipeError
from ..formats.json_object import JsonEdit, JsonObject
from ..formats.tensor_spec import DTYPE_BITS, FLOAT_DTYPES, TensorSpec
from ..models.decoder import Decoder, keeps_float32
from .origins import Convert, Copy, Extent, Origin, Scale, Zeros

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

    Tensors of the dtypes `unchanged` are never converted; of the others a float32 tensor is not
    that the model computes with in float32.
    """

    target: str | None
    unchanged: frozenset[str]
    output_dtype: str
    decoder: Decoder

    @property
    def weight_dtype(self) -> str:
        """The dtype of weights that are unpacked."""
        return SAFETENSORS_DTYPES[self.output_dtype]

    def plan(self, name: str, spec: TensorSpec, copy: Copy) -> tuple[TensorSpec, Copy | Convert]:
        """Return what a source tensor becomes; `copy` is where it is, to be taken as it is."""
        target = self.target
        dtype = spec.dtype
        if target is None or dtype in self.unchanged:
            return spec, copy
        if dtype == "F32" and keeps_float32(self.decoder, name):
            return spec, copy
        nbytes = spec.nbytes * DTYPE_BITS[target] // DTYPE_BITS[dtype]
        converted = TensorSpec(dtype=target, shape=spec.shape, nbytes=nbytes)
        return converted, Convert(extent=copy, from_dtype=dtype, to_dtype=target)

    def config_edits(self, config: JsonObject) -> tuple[JsonEdit, ...]:
        """Return the edits that keep `torch_dtype` and `dtype` true, in the spelling they have."""
        return () if self.target is None else _dtype_edits(config, self.output_dtype)


def make_dtype_policy(checkpoint: Checkpoint, dtype: str, decoder: Decoder) -> DtypePolicy:
    """Resolve the name of a dtype for one checkpoint.

    Raises: RecipeError for a name that is none.
    """
    if dtype not in OUTPUT_DTYPES:
        raise RecipeError(f"dtype {dtype!r}: expected one of {', '.join(OUTPUT_DTYPES)}")
    main = _find_main_dtype(checkpoint, decoder)
    target = SAFETENSORS_DTYPES.get(dtype)
    return DtypePolicy(
        target=target,
        unchanged=_find_unchanged(target, main),
        output_dtype=_NAMES[target or main],
        decoder=decoder,
    )


def _find_unchanged(target: str | None, main: str) -> frozenset[str]:
    """Return the dtypes of which no tensor is converted, of a source that mostly is in `main`."""
    if target is None:
        return frozenset(DTYPE_BITS)
    unchanged = DTYPE_BITS.keys() - FLOAT_DTYPES | {target}
    if main == target:
        # What the source stores wider than that (routers, biases) it stores so on purpose.
        unchanged |= {dtype for dtype in FLOAT_DTYPES if DTYPE_BITS[dtype] > DTYPE_BITS[target]}
    return frozenset(unchanged)


def _find_main_dtype(checkpoint: Checkpoint, decoder: Decoder) -> str:
    """Return the dtype of most float bytes; of a quantised source, of what is not quantised.

    Where that is float32 alone, weights were narrower before they were quantised: bfloat16, or what
    the config says.
    """
    quantization = decoder.quantization
    if quantization is None:
        return SAFETENSORS_DTYPES[name_main_dtype(checkpoint.specs.values())]
    plain = (spec for name, spec in checkpoint.specs.items() if name not in quantization.members)
    main = SAFETENSORS_DTYPES[name_main_dtype(plain)]
    stated = str(checkpoint.config.get("dtype") or checkpoint.config.get("torch_dtype"))
    narrow = {"bfloat16": "BF16", "float16": "F16"}.get(stated, "BF16")
    return narrow if main in ("F32", "F64") else main


@dataclass(frozen=True, slots=True, kw_only=True)
class MergeDtypes:
    """What a recipe's `dtype` and `out_dtype` make of tensors; None keeps the dtype that is there.

    A tensor that the model computes with in float32 whatever its dtype stays float32.
    """

    dtype: str | None
    out_dtype: str | None

    def plan(
        self, decoder: Decoder, name: str, spec: TensorSpec, extent: Extent, factor: float
    ) -> tuple[TensorSpec, Origin]:
        """Return what a source tensor times `factor` becomes."""
        if spec.dtype not in FLOAT_DTYPES:
            return spec, Copy(*extent)
        math_dtype, to_dtype = self._chain(spec.dtype)
        if self.stays_float32(decoder, name, spec):
            math_dtype = to_dtype = spec.dtype
        result = TensorSpec(
            dtype=to_dtype,
            shape=spec.shape,
            nbytes=spec.nbytes * DTYPE_BITS[to_dtype] // DTYPE_BITS[spec.dtype],
        )
        if factor == 0:
            return result, Zeros(nbytes=result.nbytes)
        if factor != 1 or not _is_one_step(spec.dtype, math_dtype, to_dtype):
            return result, Scale(
                extent=extent,
                from_dtype=spec.dtype,
                math_dtype=math_dtype,
                to_dtype=to_dtype,
                factor=factor,
            )
        if spec.dtype == to_dtype:
            return result, Copy(*extent)
        return result, Convert(extent=extent, from_dtype=spec.dtype, to_dtype=to_dtype)

    def stays_float32(self, decoder: Decoder, name: str, spec: TensorSpec) -> bool:
        """Tell whether a tensor is left float32 that the recipe asks to be narrower."""
        return (
            spec.dtype == "F32"
            and self._chain("F32") != ("F32", "F32")
            and keeps_float32(decoder, name)
        )

    def rounds_twice(self, dtype: str) -> bool:
        """Tell whether a tensor changes otherwise than by rounding it to the output's dtype."""
        return dtype in FLOAT_DTYPES and not _is_one_step(dtype, *self._chain(dtype))

    def config_edits(self, config: JsonObject) -> tuple[JsonEdit, ...]:
        """Return the edits that keep `torch_dtype` and `dtype` true, in the spelling they have."""
        name = self.out_dtype or self.dtype
        return () if name is None else _dtype_edits(config, name)

    def _chain(self, dtype: str) -> tuple[str, str]:
        """Return the dtype that a tensor is scaled in, and the one that it is stored in."""
        math_dtype = SAFETENSORS_DTYPES[self.dtype] if self.dtype else dtype
        return math_dtype, SAFETENSORS_DTYPES[self.out_dtype] if self.out_dtype else math_dtype


def name_main_dtype(specs: Iterable[TensorSpec]) -> str:
    """Return the name of the float dtype that most bytes have."""
    nbytes: Counter[str] = Counter()
    for spec in specs:
        if spec.dtype in FLOAT_DTYPES:
            nbytes[spec.dtype] += spec.nbytes
    return _NAMES[nbytes.most_common(1)[0][0] if nbytes else "BF16"]


def _is_one_step(from_dtype: str, math_dtype: str, to_dtype: str) -> bool:
    """Tell whether two conversions are the same as the one from the first to the last dtype."""
    widens = math_dtype == "F64" or (math_dtype == "F32" and from_dtype != "F64")
    return math_dtype in (from_dtype, to_dtype) or widens


def _dtype_edits(config: JsonObject, name: str) -> tuple[JsonEdit, ...]:
    return tuple(
        JsonEdit(path=path, value=name)
        for path in _dtype_fields(config, ())
        if _value_at(config, path) != name
    )


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
