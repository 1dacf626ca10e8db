"""The folder beside OUT in which an output grows, and the one rename that publishes it.

OUT is absent or complete at every moment. What a killed run leaves here is found again by the
next run of the same plan. Knows nothing of checkpoints.
Source: rename(2), renameat2(2) RENAME_EXCHANGE, flock(2).
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

try:
    import fcntl
except ImportError:
    fcntl = None  # type: ignore[assignment]

from .copying import attempt, explain, sync_folder
from .errors import OutputError, TransferError

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Staging:
    """`files` becomes OUT; a shard is in `partial` until it is whole and on the disk."""

    folder: Path
    identity: dict[str, Any]

    @property
    def files(self) -> Path:
        return self.folder / "files"

    @property
    def partial(self) -> Path:
        return self.folder / "partial"

    @property
    def journals(self) -> Path:
        return self.folder / "journal"

    @property
    def replaced(self) -> Path:
        return self.folder / "replaced"

    @property
    def state(self) -> Path:
        return self.folder / "state.json"


def check_target(out: Path, *, overwrite: bool) -> None:
    """Raises: OutputError for a folder that may not become the output."""
    if not out.exists():
        return
    if not out.is_dir():
        raise OutputError(f"{out}: is a file; expected a folder to make")
    if not any(out.iterdir()):
        return
    if not overwrite:
        raise OutputError(
            f"{out}: exists and is not empty; choose another folder or give --overwrite"
        )
    if out in (Path.home(), Path.cwd(), *Path.cwd().parents) or out.is_mount():
        raise OutputError(
            f"{out}: is your home, the current folder, one above it or a mount point; "
            "--overwrite does not replace those"
        )


@contextmanager
def lock_target(out: Path) -> Iterator[None]:
    """Keep every other run away from this output. Raises: OutputError where one is at work.

    The lock goes with the process, also a killed one.
    """
    if fcntl is None:
        yield
        return
    path = out.parent / f".{out.name[:100]}.blockexpand.lock"
    while True:
        fd = attempt("create", path, os.open, path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(fd)
            raise OutputError(f"{out}: another run is writing it; wait until it ends") from None
        except OSError as error:
            os.close(fd)
            raise explain("lock", path, error) from error
        with suppress(FileNotFoundError):
            # The run before may have removed the file between our opening and our locking it.
            if path.stat().st_ino == os.fstat(fd).st_ino:
                break
        os.close(fd)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(fd)


def open_staging(out: Path, identity: dict[str, Any]) -> tuple[Staging, bool]:
    """Make the staging folder of a plan, or find the one that an earlier run left.

    `identity` is all that has to be equal for its files to be used again; `fingerprint` in it
    names the folder. Returns the staging and whether it was found.
    """
    name = f"{_staging_prefix(out)}{identity['fingerprint'][:12]}"
    staging = Staging(folder=out.parent / name, identity=identity)
    found = _read_state(staging).get("identity") == identity
    if staging.folder.exists() and not found:
        # The same plan of a source that has changed since: nothing in it can be trusted.
        _remove(staging.folder)
    for folder in (staging.folder, staging.files, staging.partial, staging.journals):
        attempt("create", folder, lambda folder=folder: folder.mkdir(exist_ok=True))
    if not found:
        _write_state(staging, published_inode=None)
    return staging, found


def find_leftovers(out: Path, current: Path | None) -> tuple[Path, ...]:
    """Return the staging folders that runs of other plans left beside an output."""
    prefix = _staging_prefix(out)
    with suppress(OSError):
        return tuple(
            sorted(
                path
                for path in out.parent.iterdir()
                if path.name.startswith(prefix) and path != current
            )
        )
    return ()


def is_published(staging: Staging, out: Path) -> bool:
    """Tell whether an earlier run was killed after it published, while it tidied up."""
    inode = _read_state(staging).get("published_inode")
    return inode is not None and out.is_dir() and out.stat().st_ino == inode


def publish(staging: Staging, out: Path, *, overwrite: bool) -> tuple[str, ...]:
    """Make the finished files the output, in one rename, and remove the staging folder.

    Returns what the user has to know of it. Raises: OutputError where OUT has come to be meanwhile.
    """
    notes: list[str] = []
    _write_state(staging, published_inode=staging.files.stat().st_ino)
    sync_folder(staging.folder)
    if overwrite and out.is_dir() and any(out.iterdir()):
        if not _exchange(staging.files, out):
            attempt("rename", out, os.rename, out, staging.replaced)
            try:
                attempt("rename", out, os.rename, staging.files, out)
            except TransferError:
                staging.replaced.rename(out)
                raise
            notes.append(
                "this system cannot swap two folders in one step: for a moment the output's name "
                "did not exist"
            )
    else:
        _rename_to_new(staging.files, out)
    sync_folder(out.parent)
    discard(staging)
    return tuple(notes)


def discard(staging: Staging) -> None:
    """Remove a staging folder, the state last so that a killed removal is recognised."""
    for folder in (staging.files, staging.replaced, staging.partial, staging.journals):
        if folder.exists():
            _remove(folder)
    _remove(staging.folder)


def holds_work(staging: Staging) -> bool:
    """Tell whether there is anything in it that a rerun would use again."""
    return any(
        folder.is_dir() and any(folder.iterdir()) for folder in (staging.files, staging.journals)
    )


def _rename_to_new(files: Path, out: Path) -> None:
    if os.name == "nt" and out.is_dir():
        out.rmdir()
    try:
        files.rename(out)
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
            raise OutputError(
                f"{out}: came to be while the run was at work; it is left as it is"
            ) from error
        raise explain("rename", out, error) from error


def _exchange(one: Path, other: Path) -> bool:
    """Swap two folders in one step; False where the system cannot."""
    renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if renameat2 is None:
        return False
    result = renameat2(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE)
    if result == 0:
        return True
    code = ctypes.get_errno()
    if code in (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP):
        return False
    raise explain("rename", other, OSError(code, os.strerror(code)))


def _staging_prefix(out: Path) -> str:
    return f".{out.name[:100]}.blockexpand-"


def _read_state(staging: Staging) -> dict[str, Any]:
    try:
        state = json.loads(staging.state.read_bytes())
    except (OSError, ValueError):
        return {}
    return state if isinstance(state, dict) else {}


def _write_state(staging: Staging, *, published_inode: int | None) -> None:
    data = json.dumps({"identity": staging.identity, "published_inode": published_inode})
    fresh = staging.state.with_suffix(".new")
    try:
        with fresh.open("w") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        fresh.replace(staging.state)
    except OSError as error:
        raise explain("write", staging.state, error) from error


def _remove(folder: Path) -> None:
    try:
        shutil.rmtree(folder)
    except OSError as error:
        raise explain("remove", folder, error) from error
