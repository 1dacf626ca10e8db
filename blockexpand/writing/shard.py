"""Write one planned shard: share what can be shared, leave holes, have the rest moved.

It decides nothing about content, and writes only the file that it is given and its journal.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from ..errors import OutputError
from ..fs.io import attempt, open_target, sync_file, sync_folder
from ..fs.journal import (
    Begun,
    Range,
    append_journal,
    count_nbytes,
    read_journal,
    remove_journal,
    subtract,
)
from ..fs.reading import Place, Reader
from ..fs.sharing import share_range
from ..planning.origins import Copy, Zeros, source_of
from ..planning.segments import Literal, Segment, make_segments
from ..planning.shards import PlannedFile
from ..progress import Report
from .chunks import ChunkMover

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Moved:
    """Bytes of finished output by how they got there; `reused` stem from an earlier, killed run."""

    shared: int = 0
    copied: int = 0
    converted: int = 0
    holes: int = 0
    linked: int = 0
    reused: int = 0

    def __add__(self, other: Moved) -> Moved:
        return Moved(
            shared=self.shared + other.shared,
            copied=self.copied + other.copied,
            converted=self.converted + other.converted,
            holes=self.holes + other.holes,
            linked=self.linked + other.linked,
            reused=self.reused + other.reused,
        )


def write_file(
    file: PlannedFile,
    sources: Place,
    begun: Begun,
    *,
    reflink: str,
    block_nbytes: int,
    report: Report,
    taking: frozenset[str] | None = None,
) -> Moved:
    """Write a planned shard and force it onto the disk.

    `reflink` is `auto`, `always` or `never`; `report` is told of bytes as they are done, from any
    thread. One that an earlier run has `begun` is gone on with where its journal ends.
    `taking` limits this pass to what comes from these source files or from none; the journal then
    has all that was written, for the next pass. Without it the file is whole at the end.
    Raises: TransferError, SourceChangedError; OutputError where blocks must be shared and cannot.
    """
    segments = make_segments(file)
    target, journal = begun
    with ExitStack() as stack:
        source = stack.enter_context(Reader(sources))
        fd = open_target(target)
        stack.callback(os.close, fd)
        done = _resume(fd, target, journal, file.nbytes)
        holes, shareable = _plan_ranges(segments, file.nbytes, block_nbytes)
        if reflink != "never":
            shared = _share(shareable, source, fd, target, required=reflink == "always")
        else:
            shared = []
        rest = subtract([(0, file.nbytes)], holes + shared)
        left = subtract(rest, done)
        if taking is None:
            report(file.nbytes - count_nbytes(left))
        else:
            others = (s for s in segments if _source_file(s) not in (None, *taking))
            left = subtract(left, [(segment.offset, segment.end) for segment in others])
        chunks = ChunkMover(segments, source, fd, target, journal, report)
        converted = chunks.move(left)
        sync_file(fd, target)
        source.check_unchanged()
        if taking is not None:
            append_journal(journal, left)
            return Moved(copied=count_nbytes(left) - converted, converted=converted)
    return Moved(
        shared=count_nbytes(shared),
        copied=count_nbytes(left) - converted,
        converted=converted,
        holes=count_nbytes(holes),
        reused=count_nbytes(rest) - count_nbytes(left),
    )


def find_sources_left(file: PlannedFile, begun: Begun, block_nbytes: int) -> set[str]:
    """Return the source files that a planned shard has still to take from, as its journal says."""
    segments = make_segments(file)
    holes, _ = _plan_ranges(segments, file.nbytes, block_nbytes)
    is_begun = begun.path.is_file() and begun.path.stat().st_size == file.nbytes
    done = read_journal(begun.journal) if is_begun else []
    left: set[str] = set()
    for segment in segments:
        source = _source_file(segment)
        if source is not None and subtract([(segment.offset, segment.end)], holes + done):
            left.add(source)
    return left


def count_taken(file: PlannedFile, source: str) -> int:
    """Return how many bytes of a planned shard come from a source file."""
    return sum(s.nbytes for s in make_segments(file) if _source_file(s) == source)


def count_unshared(file: PlannedFile, block_nbytes: int, *, shares: bool) -> int:
    """Return the bytes of a planned shard that need room on the disk."""
    holes, shareable = _plan_ranges(make_segments(file), file.nbytes, block_nbytes)
    spared = holes + [range_ for _, range_ in shareable] if shares else holes
    return file.nbytes - count_nbytes(spared)


def _resume(fd: int, target: Path, journal: Path, nbytes: int) -> list[Range]:
    """Bring a new file, or one of an earlier run, to its full size; return what it holds."""
    done = read_journal(journal)
    if done and os.fstat(fd).st_size == nbytes:
        return done
    # Whatever a killed run left without a record must not show through where holes are planned.
    if journal.exists():
        remove_journal(journal)
        # After a power cut the old journal must not be back beside the new file.
        sync_folder(journal.parent)
    attempt("truncate", target, os.ftruncate, fd, 0)
    attempt("size", target, os.ftruncate, fd, nbytes)
    return []


def _plan_ranges(
    segments: Iterable[Segment], nbytes: int, block_nbytes: int
) -> tuple[list[Range], list[tuple[Segment, Range]]]:
    """Return the whole blocks that stay holes, and those that could be shared with the source."""
    holes: list[Range] = []
    shareable: list[tuple[Segment, Range]] = []
    for segment in segments:
        start = -(-segment.offset // block_nbytes) * block_nbytes
        end = segment.end // block_nbytes * block_nbytes
        match segment.origin:
            case Zeros():
                end = segment.end if segment.end == nbytes else end
                if start < end:
                    holes.append((start, end))
            case Copy(extent=extent):
                if (extent.offset - segment.offset) % block_nbytes == 0 and start < end:
                    shareable.append((segment, (start, end)))
            case _:
                pass
    return holes, shareable


def _share(
    shareable: Iterable[tuple[Segment, Range]],
    source: Reader,
    fd: int,
    target: Path,
    *,
    required: bool,
) -> list[Range]:
    """Share blocks range by range; stop at the first that the file system does not share."""
    shared: list[Range] = []
    for segment, (start, end) in shareable:
        assert isinstance(segment.origin, Copy)
        extent = segment.origin.extent
        source_offset = extent.offset + start - segment.offset
        source_fd = source.fd(extent.file)
        if not share_range(source_fd, source_offset, fd, start, end - start, target):
            if required:
                raise OutputError(
                    f"{target.name}: the file system cannot share blocks with the source; put the "
                    "output on the same XFS or Btrfs file system, or use --reflink=auto"
                )
            _log.info("%s: blocks cannot be shared with the source here: copying", target.name)
            break
        shared.append((start, end))
    return shared


def _source_file(segment: Segment) -> str | None:
    extent = None if isinstance(segment.origin, Literal) else source_of(segment.origin)
    return None if extent is None else extent.file
