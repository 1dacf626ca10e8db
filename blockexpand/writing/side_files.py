"""Copy a plan's side files, of which there may be tens of thousands, and sync them together.

Always done here, whoever writes the shards: they are small, and one sync for all of them costs less
than one for each.
"""

from __future__ import annotations

import os
from pathlib import Path

from ..fs.io import (
    make_folders,
    open_source,
    open_target,
    read_into,
    sync_files,
    write_from,
)
from ..fs.reading import FileStat, check_same
from ..planning.plan import Plan
from ..progress import Report

_BUFFER_NBYTES = 1 << 20


def copy_side_files(plan: Plan, folder: Path, report: Report) -> None:
    """Copy them all into a folder and force them onto the disk; `report` is told of their bytes.

    Raises: TransferError, SourceChangedError.
    """
    buffer = memoryview(bytearray(_BUFFER_NBYTES))
    root, target_root = os.fspath(plan.root), os.fspath(folder)
    targets, made = [], {""}
    for file in plan.side_files:
        above = file.name.rpartition("/")[0]
        if above not in made:
            make_folders(folder / above)
            made.add(above)
        target = f"{target_root}/{file.name}"
        elsewhere = plan.paths.get(file.name)
        source = f"{root}/{file.name}" if elsewhere is None else os.fspath(elsewhere)
        _copy(file, source, target, buffer)
        targets.append(target)
        report(file.nbytes)
    sync_files(targets)


def _copy(file: FileStat, source: str, target: str, buffer: memoryview) -> None:
    source_fd = open_source(source)
    try:
        check_same(source, file, os.fstat(source_fd))
        fd = open_target(target, empty=True)
        try:
            for offset in range(0, file.nbytes, _BUFFER_NBYTES):
                data = buffer[: min(_BUFFER_NBYTES, file.nbytes - offset)]
                read_into(source_fd, data, offset, source)
                write_from(fd, data, offset, target)
        finally:
            os.close(fd)
        check_same(source, file, os.fstat(source_fd))
    finally:
        os.close(source_fd)
