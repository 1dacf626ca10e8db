"""Put a finished folder in its place, in one step that a kill falls before or after.

Knows nothing of what is in the folders.
"""

from __future__ import annotations

import os
import shutil
import stat
import tempfile
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..errors import OutputError, TransferError
from ..fs.io import attempt, sync_folder
from ..fs.journal import Begun
from ..fs.mounts import find_mounts_in
from .finished import read_notes
from .locking import short_name
from .renaming import exchange, rename_to_new
from .state import is_same, read_state, write_state

_FILES = "files"

_PARTIAL = "partial"

_JOURNAL = "journal"

_REPLACED = "replaced"

_FINISHED = "finished"


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

    def begun(self, name: str) -> Begun:
        """Return where a shard grows."""
        return Begun(self.partial / name, self.journals / name)

    @property
    def notes(self) -> Path:
        return self.folder / _FINISHED

    def note(self, name: str) -> Path:
        """Return where it is noted that a shard in `files` is whole."""
        return self.notes / name

    @property
    def source(self) -> Path:
        """Where the shards of a source lie that is fetched while it is used."""
        return self.folder / "source"

    @property
    def replaced(self) -> Path:
        return self.folder / _REPLACED


def name_staging(out: Path, identity: dict[str, Any]) -> Staging:
    """Return where a plan's files will grow. It touches nothing, so it can be known beforehand."""
    return Staging(folder=_staging_folder(out, identity["fingerprint"]), identity=identity)


def open_staging(staging: Staging) -> tuple[Staging, bool]:
    """Make the staging folder of a plan, or find the one that an earlier run left.

    Returns the staging and whether it was found. Whatever a failure leaves, `discard` removes.
    """
    folder = staging.folder
    check_owner(folder)
    state = read_state(folder)
    found = is_same(state.get("identity"), staging.identity)
    if folder.exists() and not found:
        # The same plan of a source that has changed since: nothing in it can be trusted.
        _remove(folder)
    published = state.get("published_inode")
    if published is not None and staging.files.exists() and not _is_at(staging.files, published):
        # A run was killed after it had swapped them with the output: these are the old one's.
        _remove(staging.files)
    for path in (folder, staging.files, staging.partial, staging.journals, staging.notes):
        attempt("create", path, lambda path=path: path.mkdir(exist_ok=True))
    inode = attempt("read", staging.files, os.stat, staging.files).st_ino
    staging = replace(staging, inode=inode)
    if not found:
        write_state(folder, staging.identity)
    return staging, found


def find_staging(out: Path, fingerprint: str) -> Staging:
    """Return where an earlier run of a plan has left finished and begun files, if it has."""
    return name_staging(out, {"fingerprint": fingerprint})


def check_owner(folder: Path) -> None:
    """Refuse a staging folder that somebody else has made: what is in it would be published.

    Raises: OutputError.
    """
    if os.path.lexists(folder) and not is_own(folder):
        raise OutputError(
            f"{folder}: is another user's, or no folder: what others have made is never gone on "
            "with; have it removed, or choose another output folder"
        )


def is_own(folder: Path) -> bool:
    status = folder.lstat()
    if not stat.S_ISDIR(status.st_mode):
        return False
    if os.name == "nt" or status.st_uid == os.geteuid():
        return True
    # On a network file system this user may go by another number.
    with tempfile.TemporaryFile(dir=folder.parent) as probe:
        return os.fstat(probe.fileno()).st_uid == status.st_uid


def reusable(staging: Staging, is_known: bool = True) -> bool:
    """Tell whether an earlier run's files can be used; where the source is not known, perhaps."""
    with suppress(TransferError, OSError):
        if not is_own(staging.folder):
            return False
        found = read_state(staging.folder).get("identity")
        if not is_known:
            return isinstance(found, dict)
        return is_same(found, staging.identity)
    return False


def clear_begun(staging: Staging) -> None:
    """Remove the files that are not whole, and with them what a lost worker may still write."""
    for folder in (staging.partial, staging.journals):
        _remove(folder)
        attempt("create", folder, folder.mkdir)


def is_published(staging: Staging, out: Path) -> bool:
    """Tell whether this run has published its files."""
    return staging.inode is not None and _is_at(out, staging.inode)


def was_published(folder: Path, out: Path) -> bool:
    """Tell whether it seems that a run was killed after it had published from a staging folder.

    Numbers of folders are used again: what the output holds must tell. Raises: TransferError.
    """
    inode = read_state(folder).get("published_inode")
    return isinstance(inode, int) and _is_at(out, inode)


def put_back(folder: Path, out: Path) -> bool:
    """Put an output back that a run had taken away; returns whether there was one.

    None is put back once the new one had its place, whatever has become of that since.
    """
    replaced = folder / _REPLACED
    if out.exists() or not replaced.is_dir():
        return False
    published = read_state(folder).get("published_inode")
    if isinstance(published, int) and not _is_at(folder / _FILES, published):
        return False
    attempt("rename", out, os.rename, replaced, out)
    return True


def publish(staging: Staging, out: Path, *, overwrite: bool) -> tuple[str, ...]:
    """Make the finished files the output, in one rename, and remove the staging folder.

    Returns what the user has to know of it. Raises: OutputError where OUT has come to be meanwhile.
    """
    notes: list[str] = []
    # With what was noted of the shards: the folder of the notes may be left half removed.
    write_state(
        staging.folder,
        staging.identity,
        published_inode=staging.inode,
        finished=read_notes(staging.notes),
    )
    sync_folder(staging.folder)
    if overwrite and out.is_dir() and any(out.iterdir()):
        if not exchange(staging.files, out):
            try:
                attempt("rename", out, os.rename, out, staging.replaced)
                attempt("rename", out, os.rename, staging.files, out)
            except BaseException:
                put_back(staging.folder, out)
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
    if staging.folder.exists() and not is_own(staging.folder):
        return
    for folder in (
        staging.files,
        staging.replaced,
        staging.partial,
        staging.journals,
        staging.notes,
        staging.source,
    ):
        if folder.exists():
            _remove(folder)
    _remove(staging.folder)


def holds_work(staging: Staging) -> bool:
    """Tell whether there is anything in it that a rerun would use again."""
    if _holds_any(staging.replaced):
        return True
    is_ours = is_same(read_state(staging.folder).get("identity"), staging.identity)
    return is_ours and any(map(_holds_any, (staging.files, staging.journals, staging.source)))


def _holds_any(folder: Path) -> bool:
    return folder.is_dir() and any(folder.iterdir())


def _is_at(out: Path, inode: int) -> bool:
    try:
        return out.is_dir() and out.stat().st_ino == inode
    except OSError:
        return False


def _staging_folder(out: Path, fingerprint: str) -> Path:
    return out.parent / f"{staging_prefix(out)}{fingerprint[:12]}"


def staging_prefix(out: Path) -> str:
    return f".{short_name(out)}.blockexpand-"


def _remove(folder: Path) -> None:
    """Remove a folder of ours with all that is in it, but never what is mounted there."""
    mounts = find_mounts_in(folder)
    if mounts:
        raise TransferError(
            f"{folder}: cannot remove: another file system is mounted in it, at {mounts[0]}; "
            "unmount it first"
        )
    attempt("remove", folder, shutil.rmtree, folder)
