"""Move ranges of one output file chunk by chunk, on several threads, and keep a journal of it.

It takes segments and ranges as they come and decides nothing about either.
"""

from __future__ import annotations

import os
import threading
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from typing_extensions import assert_never

from ..formats.tensor_spec import DTYPE_BITS
from ..fs.io import open_direct, sync_file, write_direct, write_from
from ..fs.journal import Range, append_journal, count_nbytes
from ..fs.ranges import RangeReader
from ..fs.reading import PAGE_NBYTES, WORTH_DIRECT_NBYTES, Reader, make_buffer
from ..fs.sharing import copy_in_kernel, prefers_kernel_copy, reserve
from ..fs.threads import THREADS, work_through
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
from ..planning.segments import Literal, Segment
from ..progress import Report

_CHUNK_NBYTES = 8 << 20

_PIECE_NBYTES = 4 << 20

# At least this much is written between two lines of the journal.
_JOURNAL_NBYTES = 16 << 20

_JOURNAL_LINES = 32


class ChunkMover:
    """Moves ranges of one file chunk by chunk, on several threads that share nothing but a list."""

    def __init__(
        self,
        segments: tuple[Segment, ...],
        source: Reader,
        fd: int,
        target: Path,
        journal: Path,
        report: Report,
    ) -> None:
        self._segments = segments
        self._starts = [segment.offset for segment in segments]
        self._source = source
        self._ranges = RangeReader(source)
        self._fd = fd
        self._target = target
        self._journal = journal
        self._report = report
        self._lock = threading.Lock()
        self._converted = 0
        self._unrecorded: list[Range] = []
        self._unrecorded_nbytes = 0
        self._journal_nbytes = _JOURNAL_NBYTES
        self._direct_fd: int | None = None
        self._in_kernel = False

    def move(self, ranges: list[Range]) -> int:
        """Bring the ranges into the file; returns how many bytes of them were converted."""
        total = count_nbytes(ranges)
        self._journal_nbytes = max(_JOURNAL_NBYTES, total // _JOURNAL_LINES)
        if total > _CHUNK_NBYTES:
            self._in_kernel = prefers_kernel_copy(self._target)
            self._direct_fd = open_direct(self._target, os.O_WRONLY)
        try:
            if self._direct_fd is not None:
                for start, end in ranges:
                    reserve(self._fd, start, end - start, self._target)
            threads = THREADS if total > _CHUNK_NBYTES else 1
            work_through(_cut(ranges), self._begin, threads)
        finally:
            if self._direct_fd is not None:
                os.close(self._direct_fd)
        return self._converted

    def _begin(self) -> Callable[[Range], None]:
        # One buffer for the chunk, one for what has to be read and moved into it.
        chunk, scratch = make_buffer(_CHUNK_NBYTES), make_buffer(_CHUNK_NBYTES)

        def move(range_: Range) -> None:
            self._move_chunk(*range_, chunk, scratch)
            self._record(range_)
            self._report(range_[1] - range_[0])

        return move

    def _record(self, range_: Range) -> None:
        """Note a finished chunk in the journal, once there are enough to be worth a sync."""
        with self._lock:
            self._unrecorded.append(range_)
            self._unrecorded_nbytes += range_[1] - range_[0]
            if self._unrecorded_nbytes < self._journal_nbytes:
                return
            ranges, self._unrecorded, self._unrecorded_nbytes = self._unrecorded, [], 0
        sync_file(self._fd, self._target)
        with self._lock:
            append_journal(self._journal, ranges)

    def _move_chunk(self, start: int, end: int, chunk: memoryview, scratch: memoryview) -> None:
        segments = self._segments_of(start, end)
        if len(segments) == 1 and self._copy_whole(segments[0], start, end, chunk):
            return
        out = chunk[: end - start]
        for segment in segments:
            first, last = max(start, segment.offset), min(end, segment.end)
            self._fill(segment, first, out[first - start : last - start], scratch)
        self._write(out, start)

    def _segments_of(self, start: int, end: int) -> list[Segment]:
        first = bisect_right(self._starts, start) - 1
        return list(self._segments[first : bisect_left(self._starts, end, first)])

    def _copy_whole(self, segment: Segment, start: int, end: int, chunk: memoryview) -> bool:
        """Copy a chunk that is all of one source file by a means that needs no second buffer."""
        if not isinstance(segment.origin, Copy):
            return False
        extent = segment.origin.extent
        offset = extent.offset + start - segment.offset
        if self._in_kernel or self._direct_fd is None:
            source_fd, path = self._source.fd(extent.file), self._target
            if copy_in_kernel(source_fd, offset, self._fd, start, end - start, path):
                return True
        if offset % PAGE_NBYTES:
            return False
        self._write(self._source.read(extent.file, offset, end - start, chunk), start)
        return True

    def _fill(self, segment: Segment, start: int, out: memoryview, scratch: memoryview) -> None:
        """Fill `out` with the segment's bytes from `start` (absolute in the output) on."""
        skipped = start - segment.offset
        match segment.origin:
            case Literal(data=data):
                out[:] = data[skipped : skipped + len(out)]
            case Zeros():
                out[:] = bytes(len(out))
            case Fill(element=element):
                repeated = element * (len(out) // len(element) + 2)
                phase = skipped % len(element)
                out[:] = repeated[phase : phase + len(out)]
            case Copy(extent=extent):
                # Piece by piece: memory that is never touched is never taken.
                for begin in range(0, len(out), _PIECE_NBYTES):
                    piece = out[begin : begin + _PIECE_NBYTES]
                    offset = extent.offset + skipped + begin
                    piece[:] = self._source.read(extent.file, offset, len(piece), scratch)
            case Convert() | Scale():
                self._compute(segment, segment.origin, skipped, out, scratch)
            case Dequantize():
                fetch = self._ranges.fetch_into(scratch)
                dequantize_slice(segment.origin, skipped, out, fetch, segment.tensor or "")
                with self._lock:
                    self._converted += len(out)
            case Gather(values=values):

                def read(extent: Extent) -> memoryview:
                    return self._source.read(extent.file, extent.offset, extent.nbytes, scratch)

                room = len(scratch) - 2 * PAGE_NBYTES
                gather_slice(segment.origin, skipped, out, read, room, segment.tensor or "")
                if not isinstance(values, Copy):
                    with self._lock:
                        self._converted += len(out)
            case _:
                assert_never(segment.origin)

    def _compute(
        self,
        segment: Segment,
        origin: Convert | Scale,
        skipped: int,
        out: memoryview,
        scratch: memoryview,
    ) -> None:
        from_nbytes = DTYPE_BITS[origin.from_dtype] // 8
        to_nbytes = DTYPE_BITS[origin.to_dtype] // 8
        # Chunks are cut by bytes: an element may be split between two, and is computed for both.
        first = skipped // to_nbytes
        last = -(-(skipped + len(out)) // to_nbytes)
        half = len(scratch) // 2 // PAGE_NBYTES * PAGE_NBYTES
        per_slice = (half - 2 * PAGE_NBYTES) // max(from_nbytes, to_nbytes)
        for begin in range(first, last, per_slice):
            count = min(per_slice, last - begin)
            offset = origin.extent.offset + begin * from_nbytes
            values = self._source.read(
                origin.extent.file, offset, count * from_nbytes, scratch[:half]
            )
            result = scratch[half : half + count * to_nbytes]
            compute_slice(values, origin, result, segment.tensor or "")
            at = begin * to_nbytes - skipped
            target = out[max(at, 0) : at + len(result)]
            target[:] = result[max(-at, 0) :][: len(target)]
        with self._lock:
            self._converted += len(out)

    def _write(self, data: memoryview, offset: int) -> None:
        direct_fd = self._direct_fd
        done = 0
        if direct_fd is not None and len(data) >= WORTH_DIRECT_NBYTES:
            whole = len(data) // PAGE_NBYTES * PAGE_NBYTES
            done = write_direct(direct_fd, data[:whole], offset, self._target)
        write_from(self._fd, data[done:], offset + done, self._target)


def _cut(ranges: Iterable[Range]) -> Iterator[Range]:
    """Cut ranges at the multiples of the chunk's size."""
    for start, end in ranges:
        while start < end:
            stop = min(end, (start // _CHUNK_NBYTES + 1) * _CHUNK_NBYTES)
            yield start, stop
            start = stop
