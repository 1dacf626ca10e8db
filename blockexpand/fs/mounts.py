"""Which file systems are mounted where, bind mounts too. It only looks.

A bind mount has the device of the folder that it shows, so only the system's own list tells it.
Source: proc_pid_mountinfo(5).
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from ..errors import TransferError
from .io import explain


@dataclass(frozen=True, slots=True, kw_only=True)
class Mount:
    """A mounted file system: the folder that it is seen at, its device and its kind (`ext4`)."""

    point: Path
    device: tuple[int, int]
    kind: str


def read_mounts(file: Path = Path("/proc/self/mountinfo")) -> tuple[Mount, ...] | None:
    """Return all mounts of this process; None on a system that has no list of them."""
    try:
        # The names of mounts are bytes, in whatever encoding.
        lines = file.read_bytes().split(b"\n")
    except OSError:
        return None
    mounts = []
    for line in lines:
        before, _, after = line.partition(b" - ")
        fields, kind = before.split(b" "), after.partition(b" ")[0]
        if len(fields) < 6 or not kind:
            continue
        major, _, minor = fields[2].partition(b":")
        point = re.sub(rb"\\([0-7]{3})", lambda found: bytes([int(found[1], 8)]), fields[4])
        mounts.append(
            Mount(
                point=Path(os.fsdecode(point)),
                device=(int(major), int(minor)),
                kind=os.fsdecode(kind),
            )
        )
    return tuple(mounts)


def find_mounts_in(folder: Path) -> tuple[Path, ...]:
    """Return the places at or below a folder at which something is mounted.

    Raises: TransferError for a folder that cannot be looked through where there is no list.
    """
    folder = Path(os.path.realpath(folder))
    mounts = read_mounts()
    if mounts is not None:
        points = {mount.point for mount in mounts if mount.point.is_relative_to(folder)}
        return tuple(sorted(points))

    def refuse(error: OSError) -> None:
        raise explain("list", Path(error.filename or folder), error) from error

    try:
        below = [Path(name) for name, _, _ in os.walk(folder, onerror=refuse)]
    except TransferError:
        if not folder.exists():
            return ()
        raise
    return tuple(path for path in below if path.is_mount())


def file_system_kind(path: Path) -> str | None:
    """Return the kind of the file system that a file or folder lies on, None where none tells."""
    device = path.stat().st_dev
    number = os.major(device), os.minor(device)
    for mount in read_mounts() or ():
        if mount.device == number:
            return mount.kind
    return None
