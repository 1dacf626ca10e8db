"""Which byte ranges of a half-written file are on the disk already, for a rerun after a kill.

A line is appended only after the ranges that it names were forced onto the disk, and it carries a
checksum, so a torn line is no line. Knows files and ranges, nothing of their content.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from ..errors import TransferError
from .io import attempt, sync_file

Range = tuple[int, int]


class Begun(NamedTuple):
    """A file that grows at `path`, and the journal of which bytes of it are on the disk."""

    path: Path
    journal: Path


def read_journal(path: Path) -> list[Range]:
    """Return the ranges (start, end) that are done; of a damaged journal, what is sound."""
    try:
        lines = attempt("read", path, path.read_bytes).split(b"\n")
    except TransferError as error:
        if isinstance(error.__cause__, FileNotFoundError):
            return []
        raise
    ranges: list[Range] = []
    for line in lines:
        body, _, checksum = line.rpartition(b" ")
        if checksum != _checksum(body):
            continue
        numbers = [int(word) for word in body.split()]
        ranges += zip(numbers[::2], numbers[1::2], strict=True)
    return ranges


def append_journal(path: Path, ranges: Iterable[Range]) -> None:
    """Add ranges that are on the disk."""
    body = b" ".join(b"%d %d" % range_ for range_ in ranges)
    # The newline before it closes a line that a killed run may have left torn.
    line = b"\n" + body + b" " + _checksum(body) + b"\n"
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
    fd = attempt("create", path, os.open, path, flags, 0o666)
    try:
        attempt("write", path, os.write, fd, line)
        sync_file(fd, path)
    finally:
        os.close(fd)


def remove_journal(path: Path) -> None:
    """Remove a journal, if there is one: what it says of its file no longer holds, or matters."""
    attempt("remove", path, lambda: path.unlink(missing_ok=True))


def subtract(ranges: Iterable[Range], done: Iterable[Range]) -> list[Range]:
    """Return what of the ranges is not covered by what is done; all in order, none overlapping."""
    covered = iter(merge(done))
    current = next(covered, None)
    left: list[Range] = []
    for start, end in ranges:
        while current is not None and current[1] <= start:
            current = next(covered, None)
        while current is not None and current[0] < end:
            if start < current[0]:
                left.append((start, current[0]))
            start = current[1]
            if start >= end:
                break
            current = next(covered, None)
        if start < end:
            left.append((start, end))
    return left


def merge(ranges: Iterable[Range]) -> list[Range]:
    """Return the same bytes as the fewest ranges, in order."""
    merged: list[Range] = []
    for start, end in sorted(ranges):
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        elif start < end:
            merged.append((start, end))
    return merged


def count_nbytes(ranges: Iterable[Range]) -> int:
    """Return how many bytes ranges that do not overlap have."""
    return sum(end - start for start, end in ranges)


def _checksum(body: bytes) -> bytes:
    return b"%08x" % zlib.crc32(body)
