"""Keep two runs from one output: a lock on a file beside it, which goes with the process.

Where the file system knows no such locks, a lease takes its place (lease.py).
Source: flock(2).
"""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ..errors import OutputBusyError, OutputError, TransferError
from ..fs.io import attempt
from .lease import hold_lease

try:
    import fcntl
except ImportError:
    fcntl = None  # type: ignore[assignment]

# What flock answers on a file system that does not have it.
_NO_LOCKS = frozenset({errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EINVAL})

_NO_FOLLOW = getattr(os, "O_NOFOLLOW", 0)


@contextmanager
def lock_target(out: Path) -> Iterator[Callable[[], None]]:
    """Keep every other run away from this output; gives a function that checks that it still does.

    A lock goes with the process, also a killed one, so its check does nothing; that of a lease
    raises OutputError where the lease was lost. Raises: OutputBusyError where another run is at
    work; OutputError where the lock is another user's.
    """
    path = lock_path(out)
    fd = None
    while fd is None:
        fd = -1 if fcntl is None else _take(path, out)
    if fd == -1:
        with hold_lease(path.with_suffix(".lease"), out) as check:
            yield check
        return
    try:
        yield _hold
    finally:
        # A lock file that stays keeps nobody out: it is the lock on it that counts.
        with suppress(OSError):
            path.unlink()
        os.close(fd)


def _hold() -> None:
    return None


def _take(path: Path, out: Path) -> int | None:
    """Lock the file; None where the run before has removed it between our opening and locking.

    -1 where the file system knows no locks.
    """
    flags = os.O_RDWR | os.O_CREAT | _NO_FOLLOW
    try:
        fd = attempt("create", path, os.open, path, flags, 0o666)
    except TransferError as error:
        _refuse_foreign(path, error)
        raise
    try:
        attempt("lock", path, fcntl.flock, fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if _is_at(path, os.fstat(fd)):
            return fd
    except TransferError as error:
        code = error.__cause__.errno if isinstance(error.__cause__, OSError) else None
        os.close(fd)
        if isinstance(error.__cause__, BlockingIOError):
            raise OutputBusyError(f"{out}: another run is writing it; wait until it ends") from None
        with suppress(OSError):
            path.unlink()
        if code in _NO_LOCKS:
            return -1
        raise
    except BaseException:
        os.close(fd)
        raise
    os.close(fd)
    return None


def _refuse_foreign(path: Path, error: TransferError) -> None:
    """Say whose a lock is that may not be opened. In a folder of all users it may be anybody's."""
    with suppress(OSError):
        status = path.lstat()
        if path.is_symlink() or status.st_uid != os.geteuid():
            what = "a symbolic link" if path.is_symlink() else f"another user's ({status.st_uid})"
            raise OutputError(
                f"{path}: is the lock of this output, and {what}: have it removed, or choose "
                "another output folder"
            ) from error


def _is_at(path: Path, status: os.stat_result) -> bool:
    with suppress(FileNotFoundError):
        return path.stat().st_ino == status.st_ino
    return False


def lock_path(out: Path) -> Path:
    """Return the file that is locked; it is there while a run is at work, or after a kill."""
    return out.parent / f".{short_name(out)}.blockexpand.lock"


def short_name(out: Path) -> str:
    """Return the output's name, or what stands for it if more has no room in a file's name."""
    name = os.fsencode(out.name)
    return out.name if len(name) <= 200 else hashlib.sha256(name).hexdigest()
