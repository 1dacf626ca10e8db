"""Open, read, write and sync files, each call tried again as it may be, each failure one line.

Direct I/O past the page cache is here, blocks that files share are in sharing.py. What a file
system does not have is told from what failed: "not here" leads to the next means of moving bytes,
a full disk or a broken one never does. Knows nothing of tensors.
Source: open(2) O_DIRECT.
"""

from __future__ import annotations

import errno
import mmap
import os
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from ..errors import TransferError

try:
    import fcntl
except ImportError:  # Windows has neither fcntl nor anything to share blocks with
    fcntl = None  # type: ignore[assignment]

try:
    import resource
except ImportError:
    resource = None  # type: ignore[assignment]

_Result = TypeVar("_Result")

# Text where there are so many files that an object for each path would cost as much as the work.
FilePath = Path | str

# From so many files on, one call for the whole file system costs less than one for each of them.
_MANY_FILES = 200

# The alignment that direct I/O needs of offsets, lengths and memory: a page satisfies every disk.
DIRECT_ALIGNMENT = mmap.PAGESIZE

_O_DIRECT = getattr(os, "O_DIRECT", 0)

_O_BINARY = getattr(os, "O_BINARY", 0)

# What a system call answers where the file system, or this pair of files, does not have the means.
NOT_HERE = frozenset(
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


def attempt(what: str, path: FilePath, call: Callable[..., _Result], *arguments: object) -> _Result:
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


def explain(what: str, path: FilePath, error: OSError) -> TransferError:
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


def open_source(path: FilePath) -> int:
    """Open a file to read."""
    return attempt("open", path, os.open, path, os.O_RDONLY | _O_BINARY)


def open_target(path: FilePath, *, empty: bool = False) -> int:
    """Open a file to write, made anew if need be; its mode follows the umask."""
    flags = os.O_RDWR | os.O_CREAT | _O_BINARY | (os.O_TRUNC if empty else 0)
    return attempt("create", path, os.open, path, flags, 0o666)


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


def read_into(fd: int, buffer: memoryview, offset: int, path: FilePath) -> None:
    """Fill the buffer from a file. Raises: TransferError where the file ends too early."""
    done = read_available(fd, buffer, offset, path)
    if done < len(buffer):
        raise TransferError(
            f"{path}: ends at byte {offset + done}, expected at least {offset + len(buffer)}: "
            "the file was cut short while it was read"
        )


def read_available(fd: int, buffer: memoryview, offset: int, path: FilePath) -> int:
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


def write_from(fd: int, buffer: memoryview, offset: int, path: FilePath) -> None:
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


def sync_file(fd: int, path: FilePath) -> None:
    """Force a file's bytes and size onto the disk."""
    attempt("fsync", path, os.fsync, fd)


def sync_files(paths: Sequence[FilePath]) -> None:
    """Force files of one file system, written before and closed, onto the disk."""
    if len(paths) >= _MANY_FILES and _sync_file_system(paths[0]):
        return
    for path in paths:
        fd = open_source(path)
        try:
            sync_file(fd, path)
        finally:
            os.close(fd)


def _sync_file_system(path: FilePath) -> bool:
    """Force all that a file system holds onto the disk; False where failures would not be told.

    Source: syncfs(2): errors are reported since Linux 5.8.
    """
    release = re.match(r"(\d+)\.(\d+)", os.uname().release) if sys.platform == "linux" else None
    if release is None or (int(release[1]), int(release[2])) < (5, 8):
        return False
    import ctypes

    syncfs = getattr(ctypes.CDLL(None, use_errno=True), "syncfs", None)
    if syncfs is None:
        return False
    fd = open_source(path)
    try:
        while syncfs(fd) != 0:
            code = ctypes.get_errno()
            if code in NOT_HERE:
                return False
            if code != errno.EINTR:
                raise explain("sync", path, OSError(code, os.strerror(code)))
    finally:
        os.close(fd)
    return True


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
    if folder.is_dir():
        return
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    for path in reversed(missing):
        attempt("create", path, lambda path=path: path.mkdir(exist_ok=True))
        sync_folder(path.parent)


def _is_not_here(error: TransferError) -> bool:
    return isinstance(error.__cause__, OSError) and error.__cause__.errno in NOT_HERE


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


# More than any checkpoint has shards. macOS calls the hard limit infinite, and refuses that.
_ENOUGH = 10_240


def allow_more_files() -> bool:
    """Raise the limit of open files as far as is of use; returns whether that changed anything."""
    if resource is None:
        return False
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _ENOUGH if hard == resource.RLIM_INFINITY else min(hard, _ENOUGH)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return False
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    except (OSError, ValueError):
        return False
    return True
