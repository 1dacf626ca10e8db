"""Where the bytes of an output tensor come from: five kinds of origin, and nothing else.

A consumer matches on all of them, so that a new kind cannot be forgotten anywhere. Values only;
`compute_slice` alone brings bytes of a source into what they are in the output.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from ..formats.elements import convert_slice, scale_slice
from ..formats.safetensors import TensorSpec


class Extent(NamedTuple):
    """A byte range: `offset` is absolute in `file`, a name relative to the checkpoint's root."""

    file: str
    offset: int
    nbytes: int


class Copy(NamedTuple):
    """The bytes of the source, unchanged."""

    extent: Extent


class Zeros(NamedTuple):
    """Bytes that are all zero: +0 in every dtype that can be planned."""

    nbytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Fill:
    """One element repeated: a norm's weight of -1, a residual's factor of 1."""

    element: bytes
    nbytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Convert:
    """The source's values, each rounded to the nearest value of another dtype."""

    extent: Extent
    from_dtype: str
    to_dtype: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Scale:
    """The source's values, each converted to `math_dtype`, multiplied there, and converted again.

    Each of the three steps rounds to the nearest value, as `torch` does it. A `shift` that is not 0
    is added before the last.
    """

    extent: Extent
    from_dtype: str
    math_dtype: str
    to_dtype: str
    factor: float
    shift: float = 0.0


Origin = Copy | Zeros | Fill | Convert | Scale


def source_of(origin: Origin) -> Extent | None:
    """Return where the origin's bytes are in a source file; None for a constant."""
    match origin:
        case Copy(extent=extent) | Convert(extent=extent) | Scale(extent=extent):
            return extent
        case Zeros() | Fill():
            return None


class Part(NamedTuple):
    """An output tensor that has no place yet."""

    name: str
    spec: TensorSpec
    origin: Origin


def compute_slice(
    source: memoryview, origin: Convert | Scale, target: memoryview, tensor: str
) -> None:
    """Bring a slice of an origin's source values into what they are in the output."""
    if isinstance(origin, Scale):
        scale_slice(
            source,
            origin.from_dtype,
            target,
            origin.to_dtype,
            tensor,
            math_dtype=origin.math_dtype,
            factor=origin.factor,
            shift=origin.shift,
        )
    else:
        convert_slice(source, origin.from_dtype, target, origin.to_dtype, tensor)
