"""Whether a file holds what the Hub lists: by its length and, where it is listed, its digest.

The Hub lists the sha256 of a large file and the id of the git blob of a small one. A file that was
found right is noted, so that it is not read again while it stays as it is. The notes lie in the
user's own cache: nobody else's word is taken for it. It changes no file but the notes.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

from ...fs.paths import expand_home
from .files import RepoFile

_BUFFER_NBYTES = 1 << 20

# A smaller file is read again sooner than its note is found.
_WORTH_NOTING_NBYTES = 16 << 20

# Some 60,000 notes. What is forgotten is checked once more.
_MOST_NOTES_NBYTES = 8 << 20


def is_whole(path: Path, file: RepoFile, *, noted: bool = False) -> bool:
    """Tell whether a file is what the Hub lists; with `noted`, also by what an earlier call found.

    Raises: OSError.
    """
    status = path.stat()
    if status.st_size != file.nbytes:
        return False
    expected = file.sha256 or file.blob_id
    if expected is None:
        return True
    note = _describe(expected, status)
    noted = noted and file.nbytes >= _WORTH_NOTING_NBYTES
    if noted and note in _read_notes():
        return True
    digest = hashlib.sha256() if file.sha256 else hashlib.sha1(usedforsecurity=False)
    if file.sha256 is None:
        digest.update(b"blob %d\0" % file.nbytes)
    buffer = bytearray(_BUFFER_NBYTES)
    with path.open("rb", buffering=0) as stream:
        while count := stream.readinto(buffer):
            digest.update(memoryview(buffer)[:count])
    if digest.hexdigest() != expected:
        return False
    if noted and _describe(expected, path.stat()) == note:
        _append_note(note)
    return True


def holds(data: bytes, file: RepoFile) -> bool:
    """Tell whether these bytes are the whole file that the Hub lists."""
    if len(data) != file.nbytes:
        return False
    found = describe_bytes(file.name, data)
    if file.sha256 is not None:
        return found.sha256 == file.sha256
    return file.blob_id in (None, found.blob_id)


def describe_bytes(name: str, data: bytes) -> RepoFile:
    """Return bytes as the Hub would list them: it tells one of the two digests."""
    blob = hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False)
    return RepoFile(
        name=name,
        nbytes=len(data),
        sha256=hashlib.sha256(data).hexdigest(),
        blob_id=blob.hexdigest(),
    )


def describe_path(
    name: str, path: Path, report: Callable[[int], object] = lambda nbytes: None
) -> RepoFile:
    """Return a file of this machine as the Hub would list it, with both digests, read once.

    Raises: OSError.
    """
    nbytes = path.stat().st_size
    whole = hashlib.sha256()
    blob = hashlib.sha1(b"blob %d\0" % nbytes, usedforsecurity=False)
    buffer = bytearray(_BUFFER_NBYTES)
    with path.open("rb", buffering=0) as stream:
        while count := stream.readinto(buffer):
            piece = memoryview(buffer)[:count]
            whole.update(piece)
            blob.update(piece)
            report(count)
    return RepoFile(name=name, nbytes=nbytes, sha256=whole.hexdigest(), blob_id=blob.hexdigest())


def describe_digest(file: RepoFile) -> str:
    """Return the digest as messages call it."""
    return f"sha256 {file.sha256}" if file.sha256 else f"git blob {file.blob_id}"


def _describe(digest: str, status: os.stat_result) -> str:
    """Return a note: the digest, and the file as it was then. A change sets its ctime."""
    return f"{digest} {status.st_ino} {status.st_size} {status.st_mtime_ns} {status.st_ctime_ns}"


def _notes_path() -> Path:
    return expand_home(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "blockexpand" / "checked"


def _read_notes() -> frozenset[str]:
    try:
        with _notes_path().open("rb") as stream:
            status = os.fstat(stream.fileno())
            # What another user calls checked was not checked.
            is_own = os.name == "nt" or status.st_uid == os.geteuid()
            if is_own and status.st_size <= _MOST_NOTES_NBYTES:
                return frozenset(stream.read().decode("ascii", "replace").splitlines())
    except OSError:
        pass
    return frozenset()


def _append_note(note: str) -> None:
    """Keep a note. Where there is no home to write to, the file is checked again next time."""
    path = _notes_path()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists() and path.stat().st_size > _MOST_NOTES_NBYTES:
            path.unlink()
        # One short write: those of other runs do not cut it in two.
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            os.write(fd, f"{note}\n".encode("ascii"))
        finally:
            os.close(fd)
    except OSError:
        return
