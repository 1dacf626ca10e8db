"""A path as a user types it → one that the system understands."""

from __future__ import annotations

from pathlib import Path


def expand_home(path: str | Path) -> Path:
    """Replace `~` and `~user` by a home folder. Where no such user is, `~` is part of a name, as
    it is to a shell."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        return Path(path)
