"""Compare tensors as they lie in files with what their origins say, byte for byte.

The one engine of `verify` and `diff`. It only reads, and knows no recipe. Both sides are read
once, in flat memory, but for what lies on the same blocks of the disk: that is the same. What a
constant's bytes are, and where in it a slice begins, is
worked out here a second time, on purpose: the writer's own arithmetic could not find its faults.
"""

from __future__ import annotations

import threading
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from typing_extensions import assert_never

from ..formats.tensor_spec import DTYPE_BITS
from ..fs.extents import SharedBytes, find_shared
from ..fs.ranges import RangeReader
from ..fs.reading import PAGE_NBYTES, Place, Reader, make_buffer
from ..fs.threads import work_through
from ..planning.gathering import gather_slice
from ..planning.origins import (
    Convert,
    Copy,
    Dequantize,
    Extent,
    Fill,
    Gather,
    Scale,
    Zeros,
    compute_slice,
    dequantize_slice,
)
from ..planning.segments import Literal, Segment, merge_tensors
from ..planning.shards import PlannedTensor
from ..progress import Progress, Report

_SLICE_NBYTES = 2 << 20

_PIECE_NBYTES = 1 << 18

# Less is read sooner than it is found out where it lies.
_WORTH_SHARING_NBYTES = 1 << 16


class Mismatch(NamedTuple):
    """The first byte in which a tensor differs: `offset` in the tensor, `position` in its file."""

    file: str
    tensor: str
    offset: int
    position: int
    expected: int
    found: int


class Compared(NamedTuple):
    """The tensors that differ, by name; `shared` bytes were not read, being the source's own."""

    mismatches: Mapping[str, Mismatch]
    shared: int


def differing_byte(one: bytes, other: bytes) -> int:
    """Return where two texts part, or where the shorter ends."""
    low, high = 0, min(len(one), len(other))
    if one[:high] == other[:high]:
        return high
    while high - low > 1:
        middle = (low + high) // 2
        if one[low:middle] != other[low:middle]:
            high = middle
        else:
            low = middle
    return low


def compare_tensors(
    sources: Place,
    found: Place,
    tensors: Mapping[str, Sequence[PlannedTensor]],
    progress: Progress,
    *,
    paranoid: bool = False,
) -> Compared:
    """Compare tensors with what their origins say; return a mismatch for each that differs.

    `tensors` maps a file of `found` to tensors as they lie there; the files of their origins are
    those of `sources`. `progress` is told of every byte compared, and of each file. Only if
    `paranoid`, bytes are read too that both sides have on the same blocks of a disk.
    Raises: SourceChangedError where a file of either side changes meanwhile.
    """
    mismatches: dict[str, Mismatch] = {}
    shared = 0
    for file, placed in tensors.items():
        progress.begin_file(file)
        compared = _compare_file(sources, found, file, placed, progress.advance, paranoid=paranoid)
        mismatches |= compared.mismatches
        shared += compared.shared
        progress.end_file(file)
    return Compared(mismatches, shared)


def _compare_file(
    sources: Place,
    found: Place,
    file: str,
    tensors: Sequence[PlannedTensor],
    report: Report,
    *,
    paranoid: bool,
) -> Compared:
    tensors = sorted((t for t in tensors if t.spec.nbytes), key=lambda tensor: tensor.offset)
    worst: dict[str, Mismatch] = {}
    lock = threading.Lock()

    with Reader(sources) as source, Reader(found) as output:
        ranges = RangeReader(source)

        def begin() -> Callable[[tuple[Segment, int, int]], None]:
            mine, theirs = make_buffer(_SLICE_NBYTES), make_buffer(_SLICE_NBYTES)
            converted = bytearray(_SLICE_NBYTES)

            def compare(slice_: tuple[Segment, int, int]) -> None:
                segment, start, nbytes = slice_
                there = output.read(file, start, nbytes, mine)
                expected = expect_bytes(segment, start, nbytes, source, ranges, theirs, converted)
                if not _equal(there, expected):
                    with lock:
                        _locate(file, tensors, start, expected, there, worst)
                report(nbytes)

            return compare

        segments = merge_tensors(tensors)
        shared = 0
        if not paranoid:
            nbytes = sum(segment.nbytes for segment in segments)
            segments = list(_leave_out_shared(segments, source, output, file))
            shared = nbytes - sum(segment.nbytes for segment in segments)
            report(shared)
        work_through(_cut(segments), begin)
        # Also that what is shared was so all the time: a write to either side would end it.
        source.check_unchanged()
        output.check_unchanged()
    return Compared(worst, shared)


def _leave_out_shared(
    segments: Iterable[Segment], source: Reader, output: Reader, file: str
) -> Iterator[Segment]:
    """Yield what of the segments does not lie on the very blocks that it was copied from."""
    known: dict[str, SharedBytes | None] = {}
    for segment in segments:
        if not isinstance(segment.origin, Copy) or segment.nbytes < _WORTH_SHARING_NBYTES:
            yield segment
            continue
        extent = segment.origin.extent
        if extent.file not in known:
            known[extent.file] = find_shared(output.fd(file), source.fd(extent.file))
        shared = known[extent.file]
        parts = shared.find(segment.offset, extent.offset, segment.nbytes) if shared else ()
        at = 0
        for start, end in (*parts, (segment.nbytes, segment.nbytes)):
            if at < start:
                origin = Copy(extent.file, extent.offset + at, start - at)
                yield Segment(offset=segment.offset + at, nbytes=start - at, origin=origin)
            at = end


def _cut(segments: Iterable[Segment]) -> Iterator[tuple[Segment, int, int]]:
    """Cut segments into slices (segment, offset in the file, nbytes) of whole elements."""
    for segment in segments:
        step = _SLICE_NBYTES
        if isinstance(segment.origin, Convert | Scale):
            # Source and result have to fit their buffers.
            widening = DTYPE_BITS[segment.origin.from_dtype] / DTYPE_BITS[segment.origin.to_dtype]
            step = int(_SLICE_NBYTES / max(widening, 1)) // 8 * 8
        for start in range(segment.offset, segment.end, step):
            yield segment, start, min(step, segment.end - start)


def _equal(one: memoryview, other: memoryview) -> bool:
    # Views are compared item by item, bytes all at once; small pieces stay in the processor.
    return all(
        bytes(one[start : start + _PIECE_NBYTES]) == bytes(other[start : start + _PIECE_NBYTES])
        for start in range(0, len(one), _PIECE_NBYTES)
    )


def expect_bytes(
    segment: Segment,
    start: int,
    nbytes: int,
    source: Reader,
    ranges: RangeReader,
    buffer: memoryview,
    converted: bytearray,
) -> memoryview:
    """Return the bytes that must stand at `start` of the output."""
    skipped = start - segment.offset
    match segment.origin:
        case Copy(extent=extent):
            return source.read(extent.file, extent.offset + skipped, nbytes, buffer)
        case Zeros():
            return memoryview(bytes(nbytes))
        case Fill(element=element):
            phase = skipped % len(element)
            return memoryview((element * (nbytes // len(element) + 2))[phase : phase + nbytes])
        case Convert(extent=extent) | Scale(extent=extent):
            from_nbytes = DTYPE_BITS[segment.origin.from_dtype] // 8
            to_nbytes = DTYPE_BITS[segment.origin.to_dtype] // 8
            values = source.read(
                extent.file,
                extent.offset + skipped // to_nbytes * from_nbytes,
                nbytes // to_nbytes * from_nbytes,
                buffer,
            )
            result = memoryview(converted)[:nbytes]
            compute_slice(values, segment.origin, result, segment.tensor or "")
            return result
        case Dequantize():
            result = memoryview(converted)[:nbytes]
            fetch = ranges.fetch_into(buffer)
            dequantize_slice(segment.origin, skipped, result, fetch, segment.tensor or "")
            return result
        case Gather():

            def read(part: Extent) -> memoryview:
                return source.read(part.file, part.offset, part.nbytes, buffer)

            result = memoryview(converted)[:nbytes]
            room = len(buffer) - 2 * PAGE_NBYTES
            gather_slice(segment.origin, skipped, result, read, room, segment.tensor or "")
            return result
        case Literal():
            raise AssertionError("a header is no tensor")
        case _:
            assert_never(segment.origin)


def _locate(
    file: str,
    tensors: Sequence[PlannedTensor],
    start: int,
    expected: memoryview,
    found: memoryview,
    worst: dict[str, Mismatch],
) -> None:
    """Add a mismatch for each tensor that differs within a slice, unless an earlier byte did."""
    end = start + len(found)
    at = max(bisect_right(tensors, start, key=lambda tensor: tensor.offset) - 1, 0)
    for tensor in islice(tensors, at, None):
        if tensor.offset >= end:
            break
        first = max(tensor.offset, start)
        last = min(tensor.offset + tensor.spec.nbytes, end)
        if first >= last:
            continue
        one = bytes(expected[first - start : last - start])
        other = bytes(found[first - start : last - start])
        if one == other:
            continue
        byte = differing_byte(one, other)
        offset = first + byte - tensor.offset
        known = worst.get(tensor.name)
        if known is None or offset < known.offset:
            worst[tensor.name] = Mismatch(
                file, tensor.name, offset, first + byte, one[byte], other[byte]
            )


def is_zero(path: Path, extent: Extent, dtype: str) -> bool:
    """Tell whether every element of a floating-point tensor is a zero, of either sign."""
    element = DTYPE_BITS[dtype] // 8
    with path.open("rb") as stream:
        stream.seek(extent.offset)
        left = extent.nbytes
        while left:
            data = stream.read(min(left, _SLICE_NBYTES))
            if not data:
                return False
            # The last byte of each element has its sign.
            signs = data[element - 1 :: element]
            rest = [data[byte::element] for byte in range(element - 1)]
            if signs.strip(b"\x00\x80") or any(part.strip(b"\x00") for part in rest):
                return False
            left -= len(data)
    return True
