"""Move a byte range between files by the cheapest means that the system has.

The tiers: share the blocks (reflink), direct I/O past the page cache, a copy inside the kernel,
read and write. A tier that the file system does not have is told from one that failed: "not here"
leads to the next tier, a full disk or a broken one never does. Knows nothing of tensors.
Source: ioctl_ficlonerange(2), open(2) O_DIRECT, copy_file_range(2).
"""

from __future__ import annotations

import errno
import mmap
import os
import struct
import sys
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

try:
    import fcntl
except ImportError:  # Windows has neither fcntl nor anything to share blocks with
    fcntl = None  # type: ignore[assignment]

from .errors import TransferError
from .open_files import allow_more_files

_Result = TypeVar("_Result")

# The alignment that direct I/O needs of offsets, lengths and memory: a page satisfies every disk.
DIRECT_ALIGNMENT = mmap.PAGESIZE

_FICLONERANGE = 0x4020940D
_O_DIRECT = getattr(os, "O_DIRECT", 0)
_O_BINARY = getattr(os, "O_BINARY", 0)

# What a system call answers where the file system, or this pair of files, does not have the means.
_NOT_HERE = frozenset(
    {
        errno.EXDEV,
        errno.EOPNOTSUPP,
        errno.ENOTSUP,
        errno.EINVAL,
        errno.ENOTTY,
        errno.ENOSYS,
        errno.ETXTBSY,
        errno.EPERM,
        errno.EBADF,
    }
)


def attempt(what: str, path: Path, call: Callable[..., _Result], *arguments: object) -> _Result:
    """Make one system call, again if a signal broke it or a limit that can be raised ended it.

    Raises: TransferError that says what failed, where, and what to do.
    """
    while True:
        try:
            return call(*arguments)
        except InterruptedError:
            continue
        except OSError as error:
            if error.errno == errno.EMFILE and allow_more_files():
                continue
            raise explain(what, path, error) from error


def explain(what: str, path: Path, error: OSError) -> TransferError:
    """Return the one-line error for a failed system call."""
    advice = {
        errno.ENOSPC: "free some space and run the same command again",
        errno.EDQUOT: "your quota is used up; free some space and run the same command again",
        errno.EACCES: "check the permissions",
        errno.EPERM: "check the permissions",
        errno.EROFS: "the file system is mounted read-only; choose another output folder",
        errno.EMFILE: "allow more open files (ulimit -n) and run the same command again",
        errno.EIO: "the disk reports a fault; check it before you trust the file",
    }.get(error.errno or 0, "run the same command again when the cause is mended")
    return TransferError(f"{path}: cannot {what}: {error.strerror or error}; {advice}")


def open_source(path: Path) -> int:
    """Open a file to read."""
    return attempt("open", path, os.open, path, os.O_RDONLY | _O_BINARY)


def open_target(path: Path) -> int:
    """Open a file to write, made anew if need be; its mode follows the umask."""
    return attempt("create", path, os.open, path, os.O_RDWR | os.O_CREAT | _O_BINARY, 0o666)


def open_direct(path: Path, flags: int) -> int | None:
    """Open a file past the page cache; None where that is not possible."""
    if not _O_DIRECT:
        return None
    try:
        return attempt("open", path, os.open, path, flags | _O_DIRECT)
    except TransferError as error:
        if _is_not_here(error):
            return None
        raise


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
            if error.errno in _NOT_HERE:
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
            if error.errno in _NOT_HERE:
                return False
            raise explain("copy to", path, error) from error
        if moved == 0:
            # Some file systems answer 0 for files that they cannot copy: let a read decide.
            return False
        done += moved
    return True


def read_into(fd: int, buffer: memoryview, offset: int, path: Path) -> None:
    """Fill the buffer from a file. Raises: TransferError where the file ends too early."""
    done = read_available(fd, buffer, offset, path)
    if done < len(buffer):
        raise TransferError(
            f"{path}: ends at byte {offset + done}, expected at least {offset + len(buffer)}: "
            "the file was cut short while it was read"
        )


def read_available(fd: int, buffer: memoryview, offset: int, path: Path) -> int:
    """Fill the buffer from a file as far as the file goes; returns the bytes read."""
    done = 0
    while done < len(buffer):
        count = attempt("read", path, _read_at, fd, buffer[done:], offset + done)
        if count == 0:
            break
        done += count
    return done


def read_direct(fd: int, buffer: memoryview, offset: int, path: Path) -> int:
    """Read past the page cache; returns the bytes read, fewer at the file's end or where the
    system refuses. Memory, offset and length must be multiples of a page."""
    done = 0
    while done < len(buffer) and done % DIRECT_ALIGNMENT == 0:
        try:
            count = attempt("read", path, _read_at, fd, buffer[done:], offset + done)
        except TransferError as error:
            if _is_not_here(error):
                break
            raise
        if count == 0:
            break
        done += count
    return done


def write_direct(fd: int, buffer: memoryview, offset: int, path: Path) -> int:
    """Write past the page cache; returns the bytes written, fewer where the system refuses.

    Memory, offset and length must be multiples of a page.
    """
    done = 0
    while done < len(buffer) and done % DIRECT_ALIGNMENT == 0:
        try:
            done += attempt("write", path, _write_at, fd, buffer[done:], offset + done)
        except TransferError as error:
            if _is_not_here(error):
                break
            raise
    return done


def write_from(fd: int, buffer: memoryview, offset: int, path: Path) -> None:
    """Write the whole buffer at an offset."""
    done = 0
    while done < len(buffer):
        count = attempt("write", path, _write_at, fd, buffer[done:], offset + done)
        if count == 0:
            raise TransferError(f"{path}: cannot write: the system takes no more bytes")
        done += count


def write_document(path: Path, data: bytes) -> None:
    """Make a small file, or replace what it holds, and force it onto the disk."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | _O_BINARY
    fd = attempt("create", path, os.open, path, flags, 0o666)
    try:
        write_from(fd, memoryview(data), 0, path)
        sync_file(fd, path)
    finally:
        os.close(fd)


def sync_file(fd: int, path: Path) -> None:
    """Force a file's bytes and size onto the disk."""
    attempt("fsync", path, os.fsync, fd)


def sync_folder(path: Path) -> None:
    """Force a folder's entries onto the disk, where the system lets folders be opened."""
    if os.name == "nt":
        return
    fd = attempt("open", path, os.open, path, os.O_RDONLY)
    try:
        attempt("fsync", path, os.fsync, fd)
    except TransferError as error:
        # Some network file systems do not know fsync of a folder; they are durable by themselves.
        if not _is_not_here(error):
            raise
    finally:
        os.close(fd)


def make_folders(folder: Path) -> None:
    """Make a folder and those above it, each forced onto the disk."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    for path in reversed(missing):
        attempt("create", path, lambda path=path: path.mkdir(exist_ok=True))
        sync_folder(path.parent)


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
        if code in _NOT_HERE:
            return
        if code != errno.EINTR:
            raise explain("reserve room for", path, OSError(code, os.strerror(code)))


def prefers_kernel_copy(path: Path) -> bool:
    """Tell whether a file lies on a network file system, where a server can copy by itself."""
    kinds = {"nfs4", "cifs", "smb3", "ceph"}
    try:
        # The names of mounts are bytes, in whatever encoding.
        lines = os.fsdecode(Path("/proc/self/mountinfo").read_bytes()).split("\n")[:-1]
    except OSError:
        return False
    device = path.stat().st_dev
    name = f"{os.major(device)}:{os.minor(device)}"
    for line in lines:
        mount, _, source = line.partition(" - ")
        if mount.split()[2] == name and source.split()[0] in kinds:
            return True
    return False


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


def _is_not_here(error: TransferError) -> bool:
    return isinstance(error.__cause__, OSError) and error.__cause__.errno in _NOT_HERE


if hasattr(os, "preadv"):

    def _read_at(fd: int, buffer: memoryview, offset: int) -> int:
        return os.preadv(fd, [buffer], offset)

    def _write_at(fd: int, buffer: memoryview, offset: int) -> int:
        return os.pwrite(fd, buffer, offset)

else:  # Windows: every thread has descriptors of its own, so moving the position is safe

    def _read_at(fd: int, buffer: memoryview, offset: int) -> int:
        os.lseek(fd, offset, os.SEEK_SET)
        data = os.read(fd, len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def _write_at(fd: int, buffer: memoryview, offset: int) -> int:
        os.lseek(fd, offset, os.SEEK_SET)
        return os.write(fd, buffer)
