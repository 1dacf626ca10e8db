"""What a tensor is, without its bytes: dtype, shape, size. As the safetensors format has them.

Source: the `safetensors` library (0.8), whose dtypes and limits these are.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

from ..errors import HeaderError
from ..messages import show
from .serde_json import MAX_USIZE

DTYPE_BITS: Mapping[str, int] = {
    "BOOL": 8,
    "F4": 4,
    "F6_E2M3": 6,
    "F6_E3M2": 6,
    "U8": 8,
    "I8": 8,
    "F8_E5M2": 8,
    "F8_E4M3": 8,
    "F8_E8M0": 8,
    "F8_E4M3FNUZ": 8,
    "F8_E5M2FNUZ": 8,
    "I16": 16,
    "U16": 16,
    "F16": 16,
    "BF16": 16,
    "I32": 32,
    "U32": 32,
    "F32": 32,
    "C64": 64,
    "F64": 64,
    "I64": 64,
    "U64": 64,
}

FLOAT_DTYPES = frozenset({"F64", "F32", "F16", "BF16"})


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorSpec:
    """What a tensor is, without its bytes: `dtype` as the format spells it (`BF16`)."""

    dtype: str
    shape: tuple[int, ...]
    nbytes: int


# The same for all tensors of one kind, so that comparing them is one of places in memory.
@lru_cache(maxsize=4096)
def make_tensor_spec(dtype: str, shape: tuple[int, ...]) -> TensorSpec:
    """Compute what a tensor of this dtype and shape weighs.

    Raises:
        HeaderError: the dtype is unknown, the size is no whole number of bytes, or it, or a
            product of leading dimensions, exceeds 64 bits.
    """
    if dtype not in DTYPE_BITS:
        raise HeaderError(
            f"unknown dtype; expected one of {', '.join(DTYPE_BITS)}, found {show(dtype)}"
        )
    n_elements = 1
    for dim in shape:
        n_elements *= dim
        if n_elements > MAX_USIZE or not 0 <= dim <= MAX_USIZE:
            raise HeaderError(f"the shape overflows 64 bits; found {show(list(shape))}")
    n_bits = n_elements * DTYPE_BITS[dtype]
    if n_bits > MAX_USIZE:
        raise HeaderError(f"the size overflows 64 bits; found {dtype} {show(list(shape))}")
    if n_bits % 8:
        raise HeaderError(
            f"the data ends inside a byte; expected a multiple of 8 bits, found {n_bits} bits "
            f"({dtype} {show(list(shape))})"
        )
    return TensorSpec(dtype=dtype, shape=shape, nbytes=n_bits // 8)
