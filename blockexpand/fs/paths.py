"""Paths as users type them; whether two folders are one, or lie inside each other.

A bind mount, or a file system that does not tell capitals, gives a folder several paths: the folder
itself has to be looked at, too. It only looks.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path


def expand_home(path: str | Path) -> Path:
    """Replace `~` and `~user` by a home folder. Where no such user is, `~` is part of a name, as
    it is to a shell."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        return Path(path)


def existing_folder(path: Path) -> Path:
    """Return the folder, or the nearest one above it that there is."""
    absolute = path.absolute()
    return next(folder for folder in (absolute, *absolute.parents) if folder.is_dir())


def overlaps(out: Path, place: Path) -> bool:
    """Tell whether an output that is there, or is to be, shares a folder with another place."""
    if out.is_relative_to(place) or place.is_relative_to(out):
        return True
    below = [Path(folder) for folder, _, _ in os.walk(out)]
    return bool(
        _identify([place]) & _identify([*out.parents, *below])
        or _identify([out]) & _identify(place.parents)
    )


def _identify(folders: Iterable[Path]) -> set[tuple[int, int]]:
    """Return the numbers of those folders that there are."""
    numbers = set()
    for folder in folders:
        try:
            status = folder.stat()
        except OSError:
            continue
        if status.st_ino:
            numbers.add((status.st_dev, status.st_ino))
    return numbers
