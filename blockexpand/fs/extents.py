"""On which blocks of the disk the bytes of two files lie: what both share need not be read twice.

It only looks, and answers "nothing is shared" wherever that is not certain: only for file systems
that are known to tell the truth about blocks, never for those on a network or over another one.
Source: Documentation/filesystems/fiemap.rst of Linux, statfs(2), ioctl_xfs_fsgetxattr(2).
"""

from __future__ import annotations

import ctypes
import os
import struct
import sys
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from typing import NamedTuple

try:
    import fcntl
except ImportError:  # Windows tells nothing of blocks here
    fcntl = None  # type: ignore[assignment]

_FS_IOC_FIEMAP = 0xC020660B
_FS_IOC_FSGETXATTR = 0x801C581F

_FIEMAP = struct.Struct("=QQLLLL")
_FIEMAP_EXTENT = struct.Struct("=QQQ16xL12x")

# What was written and not yet given its blocks is given them first.
_FIEMAP_FLAG_SYNC = 0x1

_EXTENT_LAST = 0x1
_EXTENT_MERGED = 0x1000
_EXTENT_SHARED = 0x2000

# An XFS file may lie on a second disk, whose blocks are counted from 0 too.
_XFLAG_REALTIME = 0x1

_EXTENTS_PER_CALL = 1024

_XFS, _BTRFS = 0x58465342, 0x9123683E

# Here one address is one place: XFS has one disk for data, Btrfs one address space over all disks.
# Overlays hand on the addresses of several file systems, bcachefs those of several disks.
_ONE_ADDRESS_SPACE = frozenset({_XFS, _BTRFS})

# ext2 to ext4, tmpfs, F2FS, ZFS: here one number is one file. A server may give two files one.
_LOCAL = _ONE_ADDRESS_SPACE | {0xEF53, 0x01021994, 0xF2F52010, 0x2FC12FC1}


class BlockRange(NamedTuple):
    """`nbytes` of a file from `offset` on, which lie at `address` of the disk without a gap."""

    offset: int
    address: int
    nbytes: int


class SharedBytes:
    """What two open files share. Valid as long as neither is written to: the caller checks that."""

    def __init__(self, one: Sequence[BlockRange], other: Sequence[BlockRange]) -> None:
        self._one = one
        self._other = other
        self._one_offsets = [blocks.offset for blocks in one]
        self._other_offsets = [blocks.offset for blocks in other]

    def find(self, offset: int, other_offset: int, nbytes: int) -> Iterator[tuple[int, int]]:
        """Yield the parts (start, end), counted from `offset`, that both have on the same blocks.

        They are the `nbytes` at `offset` of the first file and at `other_offset` of the second.
        """
        mine = _cut(self._one, self._one_offsets, offset, nbytes)
        theirs = _cut(self._other, self._other_offsets, other_offset, nbytes)
        here, there = next(mine, None), next(theirs, None)
        while here is not None and there is not None:
            start, end = max(here.offset, there.offset), min(_end(here), _end(there))
            is_same = here.address - here.offset == there.address - there.offset
            if is_same and start < end:
                yield start, end
            if _end(here) <= _end(there):
                here = next(mine, None)
            else:
                there = next(theirs, None)


def find_shared(fd: int, other_fd: int) -> SharedBytes | None:
    """Tell what two open files share; None where that is nothing, or nothing is certain."""
    if fcntl is None or not sys.platform.startswith("linux"):
        return None
    one, other = os.fstat(fd), os.fstat(other_fd)
    kind = _file_system(fd)
    if one.st_dev != other.st_dev or kind is None or kind != _file_system(other_fd):
        return None
    if one.st_ino == other.st_ino:
        whole = [BlockRange(0, 0, one.st_size)]
        return SharedBytes(whole, whole) if kind in _LOCAL else None
    if kind not in _ONE_ADDRESS_SPACE:
        return None
    blocks = _map_shared(fd)
    others = _map_shared(other_fd) if blocks else None
    return SharedBytes(blocks, others) if blocks and others else None


def _map_shared(fd: int) -> list[BlockRange] | None:
    """Return the blocks of a file that others have too, in order; None where nothing tells.

    Left out is all whose bytes do not stand on the disk as they are read: compressed, packed into
    metadata, on their way to the disk, or not yet given a place.
    """
    found: list[BlockRange] = []
    offset = 0
    try:
        attributes = fcntl.ioctl(fd, _FS_IOC_FSGETXATTR, bytes(28))
        if struct.unpack_from("=L", attributes)[0] & _XFLAG_REALTIME:
            return None
        while True:
            request = bytearray(_FIEMAP.size + _EXTENTS_PER_CALL * _FIEMAP_EXTENT.size)
            limit = (1 << 63) - 1 - offset
            _FIEMAP.pack_into(request, 0, offset, limit, _FIEMAP_FLAG_SYNC, 0, _EXTENTS_PER_CALL, 0)
            fcntl.ioctl(fd, _FS_IOC_FIEMAP, request)
            mapped = _FIEMAP.unpack_from(request)[3]
            flags = _EXTENT_LAST
            for number in range(mapped):
                at = _FIEMAP.size + number * _FIEMAP_EXTENT.size
                start, address, nbytes, flags = _FIEMAP_EXTENT.unpack_from(request, at)
                if start < offset or not nbytes:
                    return None
                offset = start + nbytes
                if flags & ~(_EXTENT_LAST | _EXTENT_MERGED) == _EXTENT_SHARED:
                    found.append(BlockRange(start, address, nbytes))
            if flags & _EXTENT_LAST:
                return found
    except OSError:
        return None


def _cut(
    blocks: Sequence[BlockRange], offsets: Sequence[int], offset: int, nbytes: int
) -> Iterator[BlockRange]:
    """Yield what of the blocks lies within a range, with offsets counted from its start."""
    end = offset + nbytes
    at = max(bisect_right(offsets, offset) - 1, 0)
    while at < len(blocks) and blocks[at].offset < end:
        block = blocks[at]
        first, last = max(block.offset, offset), min(_end(block), end)
        if first < last:
            yield BlockRange(first - offset, block.address + first - block.offset, last - first)
        at += 1


def _end(blocks: BlockRange) -> int:
    return blocks.offset + blocks.nbytes


def _file_system(fd: int) -> int | None:
    """Return the number by which Linux tells kinds of file systems apart."""
    call = getattr(ctypes.CDLL(None, use_errno=True), "fstatfs", None)
    # More room than the structure has anywhere; the kind is its first field.
    answer = ctypes.create_string_buffer(512)
    if call is None or call(fd, ctypes.byref(answer)) != 0:
        return None
    return ctypes.c_long.from_buffer(answer).value & 0xFFFFFFFF
