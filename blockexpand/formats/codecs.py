"""How the tensors of a quantised module become its weight: one plain value for each way. Pure.

A codec says what the parts of a module mean, and which bytes of them some rows of the weight need;
`dequantizing.py` computes. Parts are named by role: `q` holds the values, the others explain them.
A weight's rows are its last dimension; the dimensions before it count through.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from .tensor_spec import TensorSpec

Specs = Mapping[str, TensorSpec]

Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Blocks:
    """One value per element of `q`, one scale per block of `block` (rows, columns); 0 is all.

    `rounds_to_scale` rounds to the scale's dtype before the target's, as compressed-tensors does.
    Source: DeepSeek-V3's weights; compressed-tensors, float- and int-quantized.
    """

    block: tuple[int, int]
    rounds_to_scale: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class PackedIntegers:
    """Integers of 4 or 8 bits, offset to be unsigned, in 32-bit words along the rows.

    `group` columns share a scale, 0 is the row; a `zero` part holds a zero point for each scale,
    packed along the columns. Source: compressed-tensors, pack-quantized.
    """

    bits: int
    group: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PackedE2M1:
    """Four-bit floats, low nibble first, `group` columns to a scale.

    A `global` part divides the scale. Source: compressed-tensors, nvfp4- and mxfp4-pack-quantized.
    """

    group: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TransposedE2M1:
    """Experts of four-bit floats [experts, out, in / 32, 16], whose weight is [experts, in, out].

    Source: gpt-oss; the scale's byte b is 2 ** (b - 127).
    """


@dataclass(frozen=True, slots=True, kw_only=True)
class TableCoded:
    """Four-bit codes of a table, high nibble first, scaled by blocks of elements.

    The scale may be coded itself (`nested_*`). Source: bitsandbytes, NF4 and FP4.
    """


@dataclass(frozen=True, slots=True, kw_only=True)
class RowMaximum:
    """Bytes as parts of 127 of each row's largest magnitude. Source: bitsandbytes, int8."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Gptq:
    """Integers [in, out] packed along `in`; `zero_offset` is added to each stored zero point."""

    bits: int
    group: int
    zero_offset: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Awq:
    """Four-bit integers [in, out] packed along `out` in AWQ's order of nibbles."""

    group: int


Codec = Blocks | PackedIntegers | PackedE2M1 | TransposedE2M1 | TableCoded | RowMaximum | Gptq | Awq

Range = tuple[int, int]
"""The first byte of a part and the one after the last, from the part's start."""


def find_ranges(
    codec: Codec, specs: Specs, shape: Shape, first: int, last: int
) -> dict[str, Range]:
    """Return which bytes of each part rows `first` to `last` (not included) of a weight need.

    What explains the values is small and needed whole, or goes by rows as they do.
    """
    ranges = {role: (0, spec.nbytes) for role, spec in specs.items()}
    rows = math.prod(shape[:-1])
    match codec:
        case Blocks() | PackedIntegers() | PackedE2M1() | RowMaximum():
            by_row = [role for role in ("q", "scale") if _goes_by_rows(specs[role], rows)]
            for role in by_row:
                width = specs[role].nbytes // rows
                ranges[role] = first * width, last * width
        case TableCoded():
            elements = first * shape[-1], last * shape[-1]
            ranges["q"] = elements[0] // 2, -(-elements[1] // 2)
        case TransposedE2M1():
            # The rows of the weight are columns here: whole experts are read.
            experts = first // shape[-2], -(-last // shape[-2])
            for role in ("q", "scale"):
                width = specs[role].nbytes // specs[role].shape[0]
                ranges[role] = experts[0] * width, experts[1] * width
        case Gptq() | Awq():
            pass
    return ranges


def _goes_by_rows(spec: TensorSpec, rows: int) -> bool:
    """Tell whether a part has a row for each of the weight's, in whole bytes."""
    leading = math.prod(spec.shape[:-1]) if len(spec.shape) > 1 else 0
    return rows > 0 and leading == rows and spec.nbytes % rows == 0
