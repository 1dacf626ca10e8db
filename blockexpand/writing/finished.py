"""Which shards in a staging folder are whole: noted when they are, and looked at before use.

A note says what tells a file from every other and from itself after a change: size, owner, inode,
both times, and a digest of blocks spread over it. Times and inode cost nothing and find every
change that the system knows of (nobody can set the time of change back); the digest is for file
systems that keep no such time. It is no digest of all bytes: those are moved without being read.
"""

from __future__ import annotations

import hashlib
import json
import os
import zlib
from contextlib import suppress
from pathlib import Path
from typing import Any

from ..errors import TransferError
from ..fs.io import attempt, open_source, read_available, write_document

_SAMPLES = 8

_SAMPLE_NBYTES = 512


def note_finished(file: Path, note: Path) -> None:
    """Note that a file in its place is whole and on the disk. Raises: TransferError."""
    body = json.dumps(_describe(file)).encode()
    write_document(note, body + b" %08x\n" % zlib.crc32(body))


def is_finished(file: Path, note: Path, nbytes: int) -> bool:
    """Tell whether a file is the very one that was noted, unchanged, and as long as planned."""
    with suppress(OSError):
        return is_noted(file, _parse_note(note.read_bytes()), nbytes)
    return False


def is_noted(file: Path, noted: object, nbytes: int) -> bool:
    """Tell the same where what was noted is known already; None where nothing was."""
    with suppress(OSError, TransferError):
        return noted is not None and noted == _describe(file) and file.stat().st_size == nbytes
    return False


def read_notes(folder: Path) -> dict[str, Any]:
    """Return what is noted, by the names of the shards. Raises: TransferError."""
    found = {}
    for note in attempt("list", folder, lambda: sorted(folder.iterdir())):
        noted = _parse_note(attempt("read", note, note.read_bytes))
        if noted is not None:
            found[note.name] = noted
    return found


def _parse_note(content: bytes) -> Any:
    """Return what a note says; None of one that is torn."""
    body, _, checksum = content.rpartition(b" ")
    with suppress(ValueError):
        if checksum == b"%08x\n" % zlib.crc32(body):
            return json.loads(body)
    return None


def take_back(file: Path, begun: Path, journal: Path) -> None:
    """Make a file in its place that no note vouches for a begun one again, or remove it.

    Its journal is there where a run was killed before it could write the note.
    """
    if not file.exists():
        return
    if journal.exists() and not begun.exists():
        attempt("rename", begun, os.rename, file, begun)
    else:
        attempt("remove", file, os.unlink, file)


def _describe(file: Path) -> dict[str, Any]:
    # Opened first: on a network file system only that brings what the server knows by now.
    fd = open_source(file)
    try:
        status = attempt("read", file, os.fstat, fd)
        digest = hashlib.sha256()
        sample = memoryview(bytearray(_SAMPLE_NBYTES))
        last = max(status.st_size - _SAMPLE_NBYTES, 0)
        for offset in sorted({last * index // (_SAMPLES - 1) for index in range(_SAMPLES)}):
            count = read_available(fd, sample, offset, file)
            digest.update(sample[:count])
    finally:
        os.close(fd)
    return {
        "nbytes": status.st_size,
        "owner": status.st_uid,
        "inode": status.st_ino,
        "mtime_ns": status.st_mtime_ns,
        "ctime_ns": status.st_ctime_ns,
        "samples": digest.hexdigest(),
    }
