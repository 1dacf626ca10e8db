"""Compare tensors of an output's files with what their origins say, byte for byte.

It only reads, and knows no recipe. Both sides are read once, in flat memory.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from ..formats.safetensors import DTYPE_BITS, Header
from ..fs.reading import FileStat, Reader, make_buffer
from ..fs.threads import work_through
from ..planning.origins import Convert, Copy, Fill, Scale, Zeros, compute_slice
from ..planning.plan import Plan
from ..planning.segments import Segment, merge_tensors
from ..planning.shards import PlannedTensor
from ..progress import Report

_SLICE_NBYTES = 2 << 20

_PIECE_NBYTES = 1 << 18


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One difference. `offset` is the first differing byte, from the start of the tensor."""

    file: str
    message: str
    tensor: str | None = None
    offset: int | None = None

    def __str__(self) -> str:
        where = f"{self.file}: " + (f"tensor {self.tensor!r}: " if self.tensor else "")
        return where + self.message


def differing_byte(one: bytes, other: bytes) -> int:
    """Return where two texts part, or where the shorter ends."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(one), len(other)))


class Comparer:
    """Compares tensors of the output's files with their origins, slice by slice, on threads."""

    def __init__(
        self,
        plan: Plan,
        out: Path,
        headers: Mapping[str, tuple[Header, FileStat]],
        report: Report,
    ) -> None:
        self._source = (plan.root, {file.name: file for file in plan.source_files}, plan.paths)
        self._output = (out, {name: file for name, (_, file) in headers.items()})
        self._report = report
        self._lock = threading.Lock()

    def compare(self, file: str, tensors: list[PlannedTensor]) -> list[Finding]:
        """Return a finding for each tensor that differs, with its first differing byte."""
        tensors = sorted(tensors, key=lambda tensor: tensor.offset)
        slices = _cut(merge_tensors(tensors))
        worst: dict[str, Finding] = {}

        with Reader(*self._source) as source, Reader(*self._output) as output:

            def begin() -> Callable[[tuple[Segment, int, int]], None]:
                mine, theirs = make_buffer(_SLICE_NBYTES), make_buffer(_SLICE_NBYTES)
                converted = bytearray(_SLICE_NBYTES)

                def compare(slice_: tuple[Segment, int, int]) -> None:
                    segment, start, nbytes = slice_
                    found = output.read(file, start, nbytes, mine)
                    expected = _expect(segment, start, nbytes, source, theirs, converted)
                    if not _equal(found, expected):
                        with self._lock:
                            _locate(file, tensors, start, expected, found, worst)
                    self._report(nbytes)

                return compare

            work_through(slices, begin)
            source.check_unchanged()
        return list(worst.values())


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


def _expect(
    segment: Segment,
    start: int,
    nbytes: int,
    source: Reader,
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
        case _:
            raise AssertionError(f"{segment.origin} is no tensor's origin")


def _locate(
    file: str,
    tensors: list[PlannedTensor],
    start: int,
    expected: memoryview,
    found: memoryview,
    worst: dict[str, Finding],
) -> None:
    """Add a finding for each tensor that differs within a slice, unless an earlier byte did."""
    for tensor in tensors:
        first = max(tensor.offset, start)
        last = min(tensor.offset + tensor.spec.nbytes, start + len(found))
        if first >= last:
            continue
        one = bytes(expected[first - start : last - start])
        other = bytes(found[first - start : last - start])
        if one == other:
            continue
        at = differing_byte(one, other)
        offset = first + at - tensor.offset
        known = worst.get(tensor.name)
        if known is None or known.offset is None or offset < known.offset:
            worst[tensor.name] = Finding(
                file=file,
                tensor=tensor.name,
                offset=offset,
                message=(
                    f"differs at byte {offset} of the tensor (byte {first + at} of the file): "
                    f"expected 0x{one[at]:02x}, found 0x{other[at]:02x}"
                ),
            )
