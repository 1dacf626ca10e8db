"""Let files share blocks: reflink, copies inside the kernel, reserved room, what is on the disk.

Each answers False where the file system, or this pair of files, does not have the means, and
raises where it failed.
Source: ioctl_ficlonerange(2), copy_file_range(2), fallocate(2).
"""

from __future__ import annotations

import errno
import os
import struct
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

from .io import NOT_HERE, explain, open_source
from .mounts import file_system_kind

try:
    import fcntl
except ImportError:  # Windows has neither fcntl nor anything to share blocks with
    fcntl = None  # type: ignore[assignment]

_FICLONERANGE = 0x4020940D


def share_range(
    source_fd: int, source_offset: int, target_fd: int, target_offset: int, nbytes: int, path: Path
) -> bool:
    """Let the target share the source's blocks; False where the file system cannot.

    Offsets and length must be multiples of the file system's block.
    """
    if fcntl is None:
        return False
    request = struct.pack("=qQQQ", source_fd, source_offset, nbytes, target_offset)
    while True:
        try:
            fcntl.ioctl(target_fd, _FICLONERANGE, request)
            return True
        except InterruptedError:
            continue
        except OSError as error:
            if error.errno in NOT_HERE:
                return False
            raise explain("share blocks with", path, error) from error


def can_share(source: Path, folder: Path) -> bool:
    """Try whether files in `folder` can share blocks with `source`; leaves nothing behind."""
    source_fd = open_source(source)
    try:
        nbytes = os.fstat(source_fd).st_size
        block = os.statvfs(folder).f_bsize if hasattr(os, "statvfs") else 0
        if not block or nbytes < block:
            return False
        with tempfile.TemporaryFile(dir=folder) as probe:
            return share_range(source_fd, 0, probe.fileno(), 0, block, folder)
    except OSError as error:
        raise explain("write to", folder, error) from error
    finally:
        os.close(source_fd)


def copy_in_kernel(
    source_fd: int, source_offset: int, target_fd: int, target_offset: int, nbytes: int, path: Path
) -> bool:
    """Copy a range without bringing it into the process; False where the system cannot.

    Raises: TransferError also for a source that ends too early.
    """
    if not hasattr(os, "copy_file_range"):
        return False
    done = 0
    while done < nbytes:
        try:
            moved = os.copy_file_range(
                source_fd, target_fd, nbytes - done, source_offset + done, target_offset + done
            )
        except InterruptedError:
            continue
        except OSError as error:
            if error.errno in NOT_HERE:
                return False
            raise explain("copy to", path, error) from error
        if moved == 0:
            # Some file systems answer 0 for files that they cannot copy: let a read decide.
            return False
        done += moved
    return True


def reserve(fd: int, offset: int, nbytes: int, path: Path) -> None:
    """Give a range of a file its blocks before it is written, where the file system can.

    Threads that write past the page cache then need not wait for each other to get blocks, and a
    full disk is known at once. Not `os.posix_fallocate`: where the file system cannot, the C
    library would write to every block instead.
    Source: fallocate(2). Raises: TransferError where there is no room.
    """
    if not sys.platform.startswith("linux"):
        return
    import ctypes

    fallocate = getattr(ctypes.CDLL(None, use_errno=True), "fallocate", None)
    if fallocate is None:
        return
    fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
    while fallocate(fd, 0, offset, nbytes) != 0:
        code = ctypes.get_errno()
        if code in NOT_HERE:
            return
        if code != errno.EINTR:
            raise explain("reserve room for", path, OSError(code, os.strerror(code)))


def prefers_kernel_copy(path: Path) -> bool:
    """Tell whether a file lies on a network file system, where a server can copy by itself."""
    return file_system_kind(path) in {"nfs4", "cifs", "smb3", "ceph"}


def count_held(status: os.stat_result) -> int:
    """Return how many bytes of a file are on the disk, holes left out; 0 where nothing tells."""
    return int(getattr(status, "st_blocks", 0)) * 512


def file_system_block(folder: Path) -> int:
    """Return the block size to which data is aligned: at least 4096 bytes."""
    with suppress(OSError, AttributeError):
        block = os.statvfs(folder).f_bsize
        if 4096 < block <= 1 << 16 and block & (block - 1) == 0:
            return block
    return 4096
