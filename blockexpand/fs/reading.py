"""Read ranges of a folder's files, past the page cache where that pays; opened once, checked once.

It only reads. Buffers belong to the caller, so that memory stays what the caller gave.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import threading
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import NamedTuple

from ..errors import SourceChangedError
from .io import FilePath, attempt, open_direct, open_source, read_direct, read_into

PAGE_NBYTES = mmap.PAGESIZE

# Less than this is not worth going past the page cache for.
WORTH_DIRECT_NBYTES = 1 << 18

# The size on most systems; where it is another, buffers only begin at a rounder address than need
# be.
_HUGE_PAGE_NBYTES = 2 << 20


def make_buffer(nbytes: int) -> memoryview:
    """Return memory that begins on a page, with room for two pages more, as `Reader.read` needs.

    It lies in huge pages where the system has them: a disk takes a request in a limited number of
    pieces, so memory scattered over small pages makes many small requests of a large one.
    Raises: MemoryError.
    """
    room = nbytes + 2 * PAGE_NBYTES
    try:
        if not hasattr(mmap, "MADV_HUGEPAGE"):
            return memoryview(mmap.mmap(-1, room))
        # Only private memory gets huge pages by default, and only where all of one is in it.
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
        memory = mmap.mmap(-1, room + _HUGE_PAGE_NBYTES, flags=flags)
    except OSError as error:
        raise MemoryError from error
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    begin = -address % _HUGE_PAGE_NBYTES
    # A kernel may be built without them.
    with suppress(OSError):
        memory.madvise(mmap.MADV_HUGEPAGE, begin, nbytes)
    return memoryview(memory)[begin : begin + room]


class Place(NamedTuple):
    """Files to read from: those in `root`, but for the ones whose path `elsewhere` has."""

    root: Path
    files: Mapping[str, FileStat]
    elsewhere: Mapping[str, Path] = MappingProxyType({})

    def path(self, name: str) -> Path:
        """Return where a file is."""
        return self.elsewhere.get(name) or self.root / name


class Reader:
    """The files of a place, each opened when it is first read. Threads may share a reader."""

    def __init__(self, place: Place) -> None:
        self._place = place
        self._stack = ExitStack()
        self._lock = threading.Lock()
        self._fds: dict[str, tuple[int, int | None]] = {}

    def __enter__(self) -> Reader:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.close()

    def fd(self, name: str) -> int:
        """Return a file's descriptor. Raises: SourceChangedError where it is another file now."""
        return self._open(name)[0]

    def read(self, name: str, offset: int, nbytes: int, buffer: memoryview) -> memoryview:
        """Return bytes of a file as a view into a buffer of `make_buffer`.

        The view begins on a page if `offset` does. Raises: TransferError.
        """
        fd, direct_fd = self._open(name)
        path = self._place.path(name)
        if direct_fd is not None and nbytes >= WORTH_DIRECT_NBYTES:
            skipped = offset % PAGE_NBYTES
            span = -(-(skipped + nbytes) // PAGE_NBYTES) * PAGE_NBYTES
            count = read_direct(direct_fd, buffer[:span], offset - skipped, path)
            if count >= skipped + nbytes:
                return buffer[skipped : skipped + nbytes]
        read_into(fd, buffer[:nbytes], offset, path)
        return buffer[:nbytes]

    def check_unchanged(self) -> None:
        """Raises: SourceChangedError where a file that was opened is no longer what it was."""
        for name, (fd, _) in self._fds.items():
            path = self._place.path(name)
            check_same(path, self._place.files[name], os.fstat(fd))
            check_same(path, self._place.files[name], attempt("read", path, os.stat, path))

    def _open(self, name: str) -> tuple[int, int | None]:
        with self._lock:
            if name not in self._fds:
                path = self._place.path(name)
                fd = open_source(path)
                self._stack.callback(os.close, fd)
                check_same(path, self._place.files[name], os.fstat(fd))
                direct_fd = open_direct(path, os.O_RDONLY)
                if direct_fd is not None:
                    self._stack.callback(os.close, direct_fd)
                self._fds[name] = fd, direct_fd
            return self._fds[name]


@dataclass(frozen=True, slots=True, kw_only=True)
class FileStat:
    """A file as it was found, so that a later change of it can be told.

    `ctime_ns`, `inode` and `links` are None where the file is not on a disk yet.
    """

    name: str
    nbytes: int
    mtime_ns: int
    ctime_ns: int | None = None
    inode: int | None = None
    links: int | None = None


def describe_file(name: str, status: os.stat_result) -> FileStat:
    """Return what is known of a file from what the system says of it."""
    return FileStat(
        name=name,
        nbytes=status.st_size,
        mtime_ns=status.st_mtime_ns,
        ctime_ns=status.st_ctime_ns,
        inode=status.st_ino,
        links=status.st_nlink,
    )


def find_change(before: FileStat, after: FileStat) -> str | None:
    """Say what tells that a file is another, or has changed, between two looks; None for neither.

    Anybody may set the time of modification back, but not that of the last change. Where a file
    has several hard links that time says nothing, since making and removing one counts as a
    change; there the inode tells whether it is another file.
    """
    if before.nbytes != after.nbytes:
        return f"expected {before.nbytes} bytes, found {after.nbytes}"
    if before.mtime_ns != after.mtime_ns:
        return "its time of change is another"
    if before.ctime_ns is None or after.ctime_ns is None:
        return None
    if (before.links or 1) > 1 or (after.links or 1) > 1:
        return None if before.inode == after.inode else "it is another file of the same name"
    if before.ctime_ns != after.ctime_ns:
        return "it was written to, replaced or given other permissions meanwhile"
    return None


def check_same(path: FilePath, file: FileStat, status: os.stat_result) -> None:
    """Raises: SourceChangedError where a file is no longer what was planned with."""
    if (file.nbytes, file.mtime_ns, file.ctime_ns, file.inode, file.links) == (
        *(status.st_size, status.st_mtime_ns, status.st_ctime_ns),
        *(status.st_ino, status.st_nlink),
    ):
        return  # as nearly all are, of which there may be tens of thousands
    what = find_change(file, describe_file(file.name, status))
    if what is not None:
        raise SourceChangedError(
            f"{path}: the file changed after it was planned with: {what}; run again when nothing "
            "writes to it"
        )
