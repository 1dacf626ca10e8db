"""Convert slices of elements between floating-point dtypes, and scale them: nearest, ties to even.

The only module that computes with weights. It imports torch inside its functions, so that a run
that converts nothing does not.
Source: IEEE 754-2019, section 4.3.1 (roundTiesToEven); bfloat16 is the upper half of float32.
"""

from __future__ import annotations

import struct
import sys
import threading
from contextlib import suppress
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING

from ..errors import RecipeError

if TYPE_CHECKING:
    import torch


def load_beside() -> None:
    """Begin to load torch in a thread, which takes a second; what computes then waits for it.

    Raises: ImportError where it is not installed. What else is wrong with it shows where it is
    used.
    """
    if sys.modules.get("torch") is not None:
        return
    if find_spec("torch") is None:
        import_module("torch")
    # Where the system allows no more threads, it is loaded where it is used.
    with suppress(RuntimeError):
        threading.Thread(target=_load).start()


def _load() -> None:
    with suppress(BaseException):
        import_module("torch")


def convert_slice(
    source: memoryview, from_dtype: str, target: memoryview, to_dtype: str, tensor: str
) -> None:
    """Convert a slice of elements from one buffer into another.

    The result depends on each element alone, not on where a slice begins, so it is the same for
    every slicing. Every NaN becomes the same quiet NaN.
    Raises: RecipeError where a finite value is too large for the dtype.
    """
    import torch

    dtypes = torch_dtypes()
    # A buffer that does not start at a multiple of the element's size cannot be viewed.
    values = torch.frombuffer(source, dtype=torch.uint8).view(dtypes[from_dtype])
    result = torch.frombuffer(target, dtype=torch.uint8).view(dtypes[to_dtype])
    result.copy_(_round_to_odd(values) if from_dtype == "F64" and to_dtype != "F32" else values)
    wider = "bfloat16, float32 or source" if to_dtype == "F16" else "source"
    check_result(values, result, f"{to_dtype}; expand with --dtype {wider}", tensor)


def is_widening(from_dtype: str, to_dtype: str) -> bool:
    """Tell whether every value of one dtype is a value of another, and the dtypes differ."""
    return (from_dtype, to_dtype) in {
        ("BF16", "F32"),
        ("F16", "F32"),
        ("BF16", "F64"),
        ("F16", "F64"),
        ("F32", "F64"),
    }


def scale_slice(
    source: memoryview,
    from_dtype: str,
    target: memoryview,
    to_dtype: str,
    tensor: str,
    *,
    math_dtype: str,
    factor: float,
    shift: float = 0.0,
) -> None:
    """Scale a slice of elements from one buffer into another; like `convert_slice` otherwise.

    The factor is rounded as `torch` does it with a Python number: to float64 beside float64, else
    to float32.
    """
    import torch

    dtypes = torch_dtypes()
    values = torch.frombuffer(source, dtype=torch.uint8).view(dtypes[from_dtype])
    result = torch.frombuffer(target, dtype=torch.uint8).view(dtypes[to_dtype])
    scaled = values.to(dtypes[math_dtype]) * factor
    result.copy_(scaled + shift if shift else scaled)
    what = f"scaling it by {factor:g} in {math_dtype} and storing it as "
    check_result(values, result, f"{what}{to_dtype}; give the recipe another dtype", tensor)


def torch_dtypes() -> dict[str, torch.dtype]:
    """Return torch's floating-point dtypes by the names of the format."""
    import torch

    return {
        "F64": torch.float64,
        "F32": torch.float32,
        "F16": torch.float16,
        "BF16": torch.bfloat16,
    }


def check_result(
    values: torch.Tensor | None, result: torch.Tensor, what_for: str, tensor: str
) -> None:
    """Make every NaN the same; refuse what became infinite.

    `values` are what `result` was made of; None where that is no tensor that could be infinite.
    Raises: RecipeError.
    """
    import torch

    # One pass tells that nothing is infinite or NaN, which is the rule. The sum alone may be too
    # large for float16; in its own dtype it is the fastest.
    if torch.isfinite(result.sum()) or torch.isfinite(result.sum(dtype=torch.float32)):
        return
    result.masked_fill_(result.isnan(), float("nan"))
    if values is None:
        if result.isinf().any():
            raise RecipeError(f"tensor {tensor!r}: a value is too large for {what_for}")
        return
    overflows = result.isinf() & ~values.isinf()
    if overflows.any():
        worst = float(values[overflows].abs().max())
        raise RecipeError(f"tensor {tensor!r}: {worst:g} is too large for {what_for}")


def _round_to_odd(values: torch.Tensor) -> torch.Tensor:
    """Narrow float64 to float32 so that a second rounding gives what a single one would.

    Rounding twice to nearest can be off by one unit. Rounding first to the neighbour with the odd
    last bit keeps the information that the second rounding needs.
    Source: Boldo and Melquiond, "When double rounding is odd", 2005.
    """
    import torch

    nearest = values.to(torch.float32)
    inexact = (nearest.to(torch.float64) != values) & values.isfinite()
    bits = nearest.view(torch.int32)
    away = nearest.to(torch.float64).abs() > values.abs()
    truncated = bits - (inexact & away).to(torch.int32)
    odd = torch.where(inexact, truncated | 1, bits)
    return odd.view(torch.float32)


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
