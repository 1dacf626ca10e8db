"""Paths as users type them; whether two folders are one, or lie inside each other.

A bind mount, or a file system that does not tell capitals, gives a folder several paths: the folder
itself has to be looked at, too. It only looks.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Generic, TypeVar


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
    outs: FolderIndex[None] = FolderIndex()
    places: FolderIndex[None] = FolderIndex()
    outs.add(out, None)
    places.add(place, None, below=False)
    return bool(outs.find(place) or places.find(out))


_Owner = TypeVar("_Owner")


class FolderIndex(Generic[_Owner]):
    """Folders and whose they are, to ask in which of them others lie. Each is looked at once.

    Paths are absolute and resolved; folders need not exist yet. Of two owners of one folder the
    first is kept.
    """

    def __init__(self) -> None:
        self._paths: dict[Path, _Owner] = {}
        self._numbers: dict[tuple[int, int], _Owner] = {}
        self._known: dict[Path, tuple[int, int] | None] = {}

    def add(self, folder: Path, owner: _Owner, *, below: bool = True) -> None:
        """Note a folder; with `below` also what it has now, which other paths may lead to."""
        self._paths.setdefault(folder, owner)
        number = _identify(folder)
        if number is None:
            return
        self._numbers.setdefault(number, owner)
        for path in (path for path, _, _ in os.walk(folder)) if below else ():
            if (inner := _identify(Path(path))) is not None:
                self._numbers.setdefault(inner, owner)

    def find(self, folder: Path) -> list[_Owner]:
        """Return whose folders this one is, or lies in, the nearest first."""
        found: list[_Owner] = []
        for path in (folder, *folder.parents):
            if path in self._paths:
                found.append(self._paths[path])
            if path not in self._known:
                self._known[path] = _identify(path)
            number = self._known[path]
            if number is not None and number in self._numbers:
                found.append(self._numbers[number])
        return found


def _identify(folder: Path) -> tuple[int, int] | None:
    """Return the number of a folder, by whatever path; None where there is none."""
    try:
        status = folder.stat()
    except OSError:
        return None
    return (status.st_dev, status.st_ino) if status.st_ino else None
