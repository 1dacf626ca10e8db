"""Where the bytes of an output tensor come from: seven kinds of origin, and nothing else.

A consumer matches on all of them, so that a new kind cannot be forgotten anywhere. Values only;
`compute_slice` and `dequantize_slice` alone bring bytes of a source into what they are in the
output.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from ..formats.codecs import Codec, find_ranges
from ..formats.dequantizing import dequantize_rows
from ..formats.elements import convert_slice, scale_slice
from ..formats.tensor_spec import DTYPE_BITS, TensorSpec


class Extent(NamedTuple):
    """A byte range: `offset` is absolute in `file`, a name relative to the checkpoint's root."""

    file: str
    offset: int
    nbytes: int


class Copy(Extent):
    """The bytes of the source, unchanged: an extent of it, as it is."""

    __slots__ = ()

    @property
    def extent(self) -> Extent:
        """Itself: as the other origins that have one."""
        return self


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


class QuantizedPart(NamedTuple):
    """A tensor of a quantised module: what it is to the codec, and where it lies."""

    role: str
    spec: TensorSpec
    extent: Extent


@dataclass(frozen=True, slots=True, kw_only=True)
class Dequantize:
    """The weight of a quantised module, each value as its format defines it, rounded to nearest.

    The first of `parts` holds the values; the parts may lie in several files. `via_dtype` is one
    that values are rounded to before they are widened.
    """

    codec: Codec
    parts: tuple[QuantizedPart, ...]
    shape: tuple[int, ...]
    to_dtype: str
    via_dtype: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Gather:
    """A table whose every row has a part for each layer, with other parts in another order.

    The source has `rows` rows of `of` parts of one size; each row of the output has its `parts`, by
    number. A table with a block of rows for each layer is one such row. `values` tells what becomes
    of the values, of the whole table.
    """

    values: Copy | Convert | Scale
    rows: int
    of: int
    parts: tuple[int, ...]


Origin = Copy | Zeros | Fill | Convert | Scale | Dequantize | Gather


def source_of(origin: Origin) -> Extent | None:
    """Return where the origin's values are in a source file; None for a constant."""
    extents = sources_of(origin)
    return extents[0] if extents else None


def sources_of(origin: Origin) -> tuple[Extent, ...]:
    """Return all that an origin needs of source files, its values first."""
    match origin:
        case Copy(extent=extent) | Convert(extent=extent) | Scale(extent=extent):
            return (extent,)
        case Gather(values=values):
            return (values.extent,)
        case Dequantize(parts=parts):
            return tuple(part.extent for part in parts)
        case Zeros() | Fill():
            return ()


def is_computed(origin: Origin) -> bool:
    """Tell whether values become others: where they do not, bytes are moved unseen."""
    values = origin.values if isinstance(origin, Gather) else origin
    return isinstance(values, Convert | Scale | Dequantize)


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


Fetch = Callable[[Extent, bool], memoryview]
"""Returns a range of a source file; True says that other slices will ask for the same range."""


def dequantize_slice(
    origin: Dequantize, start: int, target: memoryview, fetch: Fetch, tensor: str
) -> None:
    """Fill `target` with bytes of a dequantised tensor, from byte `start` of it on.

    Raises: RecipeError where a finite value is too large for the dtype.
    """
    row_nbytes = origin.shape[-1] * DTYPE_BITS[origin.to_dtype] // 8
    end = start + len(target)
    # Whole rows go straight into the target; of a row that is cut, all is computed, and some taken.
    first, last = -(-start // row_nbytes), end // row_nbytes
    if first < last:
        inner = target[first * row_nbytes - start : last * row_nbytes - start]
        _dequantize(origin, first, last, inner, fetch, tensor)
        cut = [
            row
            for row, is_cut in ((first - 1, start % row_nbytes), (last, end % row_nbytes))
            if is_cut
        ]
    else:
        cut = list(range(start // row_nbytes, -(-end // row_nbytes)))
    for row in cut:
        whole = memoryview(bytearray(row_nbytes))
        _dequantize(origin, row, row + 1, whole, fetch, tensor)
        begin = row * row_nbytes
        into = target[max(begin - start, 0) : begin + row_nbytes - start]
        skipped = max(start - begin, 0)
        into[:] = whole[skipped : skipped + len(into)]


def _dequantize(
    origin: Dequantize, first: int, last: int, target: memoryview, fetch: Fetch, tensor: str
) -> None:
    specs = {part.role: part.spec for part in origin.parts}
    ranges = find_ranges(origin.codec, specs, origin.shape, first, last)
    parts = {}
    for role, spec, extent in origin.parts:
        begin, end = ranges[role]
        is_shared = end - begin == spec.nbytes or len(origin.shape) > 2
        part = Extent(extent.file, extent.offset + begin, end - begin)
        parts[role] = fetch(part, is_shared)
    dtype = origin.via_dtype or origin.to_dtype
    values = target
    if dtype != origin.to_dtype:
        values = memoryview(
            bytearray(len(target) * DTYPE_BITS[dtype] // DTYPE_BITS[origin.to_dtype])
        )
    rows = (first, last)
    dequantize_rows(origin.codec, specs, parts, origin.shape, rows, values, dtype, tensor)
    if dtype != origin.to_dtype:
        convert_slice(values, dtype, target, origin.to_dtype, tensor)
