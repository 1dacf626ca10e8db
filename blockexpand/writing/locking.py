"""Keep two runs from one output: a lock on a file beside it, which goes with the process.

Source: flock(2).
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ..errors import OutputError, TransferError
from ..fs.io import attempt

try:
    import fcntl
except ImportError:
    fcntl = None  # type: ignore[assignment]


@contextmanager
def lock_target(out: Path) -> Iterator[None]:
    """Keep every other run away from this output. Raises: OutputError where one is at work.

    The lock goes with the process, also a killed one.
    """
    if fcntl is None:
        yield
        return
    path = lock_path(out)
    fd = None
    while fd is None:
        fd = _take(path, out)
    try:
        yield
    finally:
        # A lock file that stays keeps nobody out: it is the lock on it that counts.
        with suppress(OSError):
            path.unlink()
        os.close(fd)


def _take(path: Path, out: Path) -> int | None:
    """Lock the file; None where the run before has removed it between our opening and locking."""
    fd = attempt("create", path, os.open, path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        attempt("lock", path, fcntl.flock, fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if _is_at(path, os.fstat(fd)):
            return fd
    except TransferError as error:
        os.close(fd)
        if isinstance(error.__cause__, BlockingIOError):
            raise OutputError(f"{out}: another run is writing it; wait until it ends") from None
        with suppress(OSError):
            path.unlink()
        raise
    except BaseException:
        os.close(fd)
        raise
    os.close(fd)
    return None


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
