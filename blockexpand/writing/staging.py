"""Put a finished folder in its place, in one step that a kill falls before or after.

Knows nothing of what is in the folders.
Source: rename(2), renameat2(2) RENAME_EXCHANGE.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import shutil
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..errors import OutputError, TransferError
from ..fs.io import attempt, explain, sync_folder, write_document
from .locking import lock_path, lock_target, short_name

_FILES = "files"

_PARTIAL = "partial"

_JOURNAL = "journal"

_REPLACED = "replaced"

_STATE = "state.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Staging:
    """`files` becomes OUT; a shard is in `partial` until it is whole and on the disk.

    `identity` is all that has to be equal for its files to be used again; `fingerprint` in it
    names the folder. `inode` is that of `files`, so that the folder is known again where it is
    published; None until the folder is opened.
    """

    folder: Path
    identity: dict[str, Any]
    inode: int | None = None

    @property
    def files(self) -> Path:
        return self.folder / _FILES

    @property
    def partial(self) -> Path:
        return self.folder / _PARTIAL

    @property
    def journals(self) -> Path:
        return self.folder / _JOURNAL

    @property
    def source(self) -> Path:
        """Where the shards of a source lie that is fetched while it is used."""
        return self.folder / "source"

    @property
    def replaced(self) -> Path:
        return self.folder / _REPLACED

    @property
    def state(self) -> Path:
        return self.folder / _STATE


def check_target(out: Path, *, overwrite: bool, locked: bool = False) -> None:
    """Refuse a folder that may not become the output.

    Before the target is `locked`, an output passes that a killed run had published but not tidied
    up after: whether it is what is wanted only the plan tells. Raises: OutputError.
    """
    if not out.exists():
        return
    if not out.is_dir():
        raise OutputError(f"{out}: is a file; expected a folder to make")
    if out.is_mount():
        raise OutputError(
            f"{out}: is a mount point, which no finished folder can be put in the place of; "
            f"choose a folder in it, such as {out / 'model'}"
        )
    if not any(out.iterdir()):
        return
    if not overwrite:
        if not locked and is_untidy(out):
            return
        raise OutputError(
            f"{out}: exists and is not empty; choose another folder or give --overwrite"
        )
    if out in (Path.home(), Path.cwd(), *Path.cwd().parents):
        raise OutputError(
            f"{out}: is your home, the current folder or one above it; --overwrite does not "
            "replace those"
        )


def name_staging(out: Path, identity: dict[str, Any]) -> Staging:
    """Return where a plan's files will grow. It touches nothing, so it can be known beforehand."""
    return Staging(folder=_staging_folder(out, identity["fingerprint"]), identity=identity)


def open_staging(staging: Staging) -> tuple[Staging, bool]:
    """Make the staging folder of a plan, or find the one that an earlier run left.

    Returns the staging and whether it was found. Whatever a failure leaves, `discard` removes.
    """
    folder = staging.folder
    found = _read_state(folder).get("identity") == staging.identity
    if folder.exists() and not found:
        # The same plan of a source that has changed since: nothing in it can be trusted.
        _remove(folder)
    for path in (folder, staging.files, staging.partial, staging.journals):
        attempt("create", path, lambda path=path: path.mkdir(exist_ok=True))
    inode = attempt("read", staging.files, os.stat, staging.files).st_ino
    staging = replace(staging, inode=inode)
    if not found:
        _write_state(staging, published_inode=None)
    return staging, found


def find_staging(out: Path, fingerprint: str) -> tuple[Path, Path]:
    """Return where an earlier run of a plan has left finished and begun files, if it has."""
    folder = _staging_folder(out, fingerprint)
    return folder / _FILES, folder / _PARTIAL


def clear_begun(staging: Staging) -> None:
    """Remove the files that are not whole, and with them what a lost worker may still write."""
    for folder in (staging.partial, staging.journals):
        _remove(folder)
        attempt("create", folder, folder.mkdir)


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
    """Tell whether this run has published its files."""
    return staging.inode is not None and _is_at(out, staging.inode)


def was_published(staging: Staging, out: Path) -> bool:
    """Tell whether it seems that an earlier run of the plan was killed after it had published.

    Numbers of folders are used again: what the output holds must tell. Raises: TransferError.
    """
    return _was_published(staging.folder, out)


def is_untidy(out: Path) -> bool:
    """Tell whether a run that was killed has published the output, but not tidied up after it."""
    with suppress(TransferError):
        return any(_was_published(folder, out) for folder in find_leftovers(out, None))
    return False


def restore_replaced(out: Path) -> bool:
    """Put an output back that a run was killed over between taking it away and publishing.

    That can only be where folders cannot be swapped in one step. Returns whether there was one.
    """
    if out.exists():
        return False
    for folder in find_leftovers(out, None):
        replaced = folder / _REPLACED
        if replaced.is_dir():
            attempt("rename", out, os.rename, replaced, out)
            return True
    return False


def clear_debris(out: Path) -> None:
    """Remove what a run that was killed at its very end left: its lock, an empty staging folder."""
    empty = [path for path in find_leftovers(out, None) if _is_empty(path)]
    if empty or lock_path(out).exists():
        with suppress(OutputError, TransferError), lock_target(out):
            for path in empty:
                with suppress(OSError):
                    path.rmdir()


def publish(staging: Staging, out: Path, *, overwrite: bool) -> tuple[str, ...]:
    """Make the finished files the output, in one rename, and remove the staging folder.

    Returns what the user has to know of it. Raises: OutputError where OUT has come to be meanwhile.
    """
    notes: list[str] = []
    _write_state(staging, published_inode=staging.inode)
    sync_folder(staging.folder)
    if overwrite and out.is_dir() and any(out.iterdir()):
        if not exchange(staging.files, out):
            try:
                attempt("rename", out, os.rename, out, staging.replaced)
                attempt("rename", out, os.rename, staging.files, out)
            except BaseException:
                restore_replaced(out)
                raise
            notes.append(
                "this system cannot swap two folders in one step: for a moment the output's name "
                "did not exist"
            )
    else:
        rename_to_new(staging.files, out)
    sync_folder(out.parent)
    discard(staging)
    return tuple(notes)


def discard(staging: Staging) -> None:
    """Remove a staging folder, the state last so that a killed removal is recognised."""
    for folder in (
        staging.files,
        staging.replaced,
        staging.partial,
        staging.journals,
        staging.source,
    ):
        if folder.exists():
            _remove(folder)
    _remove(staging.folder)


def holds_work(staging: Staging) -> bool:
    """Tell whether there is anything in it that a rerun would use again."""
    if _holds_any(staging.replaced):
        return True
    is_ours = _read_state(staging.folder).get("identity") == staging.identity
    return is_ours and any(map(_holds_any, (staging.files, staging.journals, staging.source)))


def _holds_any(folder: Path) -> bool:
    return folder.is_dir() and any(folder.iterdir())


def _was_published(folder: Path, out: Path) -> bool:
    inode = _read_state(folder).get("published_inode")
    return isinstance(inode, int) and _is_at(out, inode)


def _is_at(out: Path, inode: int) -> bool:
    try:
        return out.is_dir() and out.stat().st_ino == inode
    except OSError:
        return False


def _is_empty(folder: Path) -> bool:
    with suppress(OSError):
        return not any(folder.iterdir())
    return False


def _staging_folder(out: Path, fingerprint: str) -> Path:
    return out.parent / f"{_staging_prefix(out)}{fingerprint[:12]}"


def _staging_prefix(out: Path) -> str:
    return f".{short_name(out)}.blockexpand-"


def _read_state(folder: Path) -> dict[str, Any]:
    path = folder / _STATE
    try:
        state = json.loads(attempt("read", path, path.read_bytes))
    except TransferError as error:
        # A state that is there and cannot be read must not be taken for none: none is discarded.
        if isinstance(error.__cause__, FileNotFoundError | NotADirectoryError):
            return {}
        raise
    except ValueError:
        return {}
    return state if isinstance(state, dict) else {}


def _write_state(staging: Staging, *, published_inode: int | None) -> None:
    data = json.dumps({"identity": staging.identity, "published_inode": published_inode})
    fresh = staging.state.with_suffix(".new")
    write_document(fresh, data.encode())
    attempt("write", staging.state, os.replace, fresh, staging.state)


def _remove(folder: Path) -> None:
    attempt("remove", folder, shutil.rmtree, folder)


_AT_FDCWD = -100

_RENAME_EXCHANGE = 2

_IN_THE_WAY = frozenset({errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR})


def rename_to_new(files: Path, out: Path) -> None:
    """Make a folder the output in one step. Raises: OutputError where OUT is there by now."""
    if os.name == "nt" and out.is_dir():
        out.rmdir()
    try:
        attempt("rename", out, os.rename, files, out)
    except TransferError as error:
        cause = error.__cause__
        if isinstance(cause, OSError) and cause.errno in _IN_THE_WAY:
            raise OutputError(
                f"{out}: came to be while the run was at work; it is left as it is"
            ) from error
        raise


def exchange(one: Path, other: Path) -> bool:
    """Swap two folders in one step; False where the system cannot."""
    library = None if os.name == "nt" else ctypes.CDLL(None, use_errno=True)
    renameat2 = getattr(library, "renameat2", None)
    if renameat2 is None:
        return False
    names = _AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other)
    code = errno.EINTR
    while code == errno.EINTR:
        if renameat2(*names, _RENAME_EXCHANGE) == 0:
            return True
        code = ctypes.get_errno()
    if code in (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP):
        return False
    raise explain("rename", other, OSError(code, os.strerror(code)))
