"""A small file of a finished output, replaced in one step. It writes no weights."""

from __future__ import annotations

import os
from pathlib import Path

from .locking import short_name


def replace_document(out: Path, name: str, data: bytes) -> None:
    """Replace a file of OUT: at every moment it is there whole, the old or the new one.

    Raises: OSError; the file is then as it was.
    """
    # Beside the output, so that a run that is killed here leaves nothing too much in it.
    new = out.parent / f".{short_name(out)}.{name}"
    try:
        with new.open("wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        new.replace(out / name)
    except BaseException:
        new.unlink(missing_ok=True)
        raise
