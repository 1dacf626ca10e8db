"""Read slices of a table whose parts are in another order than in the source, in flat memory.

Such a table has a part for every layer in each of its rows (per-layer embeddings), so that its
rows become wider where layers are added. Whole rows of the source are read as long as they fit the
caller's buffer, pieces of one otherwise.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from ..formats.tensor_spec import DTYPE_BITS
from .origins import Copy, Extent, Gather, compute_slice

# Elements that are computed with at once.
_ELEMENTS = 1 << 18

Read = Callable[[Extent], memoryview]
"""Returns a range of a source file, which is overwritten by the next."""


class _Run(NamedTuple):
    """Neighbouring parts of a row that are neighbours in the source too; offsets in the rows."""

    target: int
    source: int
    nbytes: int


def gather_slice(
    origin: Gather, start: int, target: memoryview, read: Read, room: int, tensor: str
) -> None:
    """Fill `target` with bytes of a gathered table, from byte `start` of it on.

    `read` returns at most `room` bytes. Raises: RecipeError where a finite value is too large for
    the dtype.
    """
    values = origin.values
    if isinstance(values, Copy):
        _gather(origin, start, target, read, room)
        return
    before, after = DTYPE_BITS[values.from_dtype] // 8, DTYPE_BITS[values.to_dtype] // 8
    # A slice may begin or end within an element: it is computed whole, and cut.
    first, last = start // after, -(-(start + len(target)) // after)
    for begin in range(first, last, _ELEMENTS):
        count = min(_ELEMENTS, last - begin)
        gathered, result = (memoryview(bytearray(count * size)) for size in (before, after))
        _gather(origin, begin * before, gathered, read, room)
        compute_slice(gathered, values, result, tensor)
        at = begin * after - start
        into = target[max(at, 0) : at + len(result)]
        into[:] = result[max(-at, 0) :][: len(into)]


def _gather(origin: Gather, start: int, target: memoryview, read: Read, room: int) -> None:
    """Fill `target` with the source's bytes in their new order, from byte `start` of that on."""
    extent = origin.values.extent
    part = extent.nbytes // (origin.rows * origin.of)
    row_nbytes, width = part * origin.of, part * len(origin.parts)
    runs = _find_runs(origin.parts, part)
    end = start + len(target)
    rows = range(start // width, -(-end // width))
    step = room // row_nbytes
    for first in range(rows.start, rows.stop, max(step, 1)):
        block = range(first, min(first + max(step, 1), rows.stop))
        begin = extent.offset + first * row_nbytes
        data = read(Extent(extent.file, begin, len(block) * row_nbytes)) if step else None
        for row in block:
            for run in runs:
                here = row * width + run.target
                low, high = max(here, start), min(here + run.nbytes, end)
                if low >= high:
                    continue
                at = (row - first) * row_nbytes + run.source + low - here
                if data is not None:
                    target[low - start : high - start] = data[at : at + high - low]
                    continue
                for piece in range(low, high, room):
                    nbytes = min(room, high - piece)
                    found = read(Extent(extent.file, begin + at + piece - low, nbytes))
                    target[piece - start : piece - start + nbytes] = found


def _find_runs(parts: tuple[int, ...], part: int) -> list[_Run]:
    runs: list[_Run] = []
    for index, number in enumerate(parts):
        if runs and number and parts[index - 1] == number - 1:
            runs[-1] = runs[-1]._replace(nbytes=runs[-1].nbytes + part)
        else:
            runs.append(_Run(index * part, number * part, part))
    return runs
