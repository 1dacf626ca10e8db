"""One file of a plan as a task that can be pickled: done here, or by a worker on another machine.

A task writes its own file in the staging folder and nothing else, and decides nothing.
"""

from __future__ import annotations

import os
import socket
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ..errors import OutputError
from ..fs.io import (
    attempt,
    make_folders,
    open_source,
    open_target,
    read_into,
    sync_file,
    write_from,
)
from ..fs.journal import remove_journal
from ..fs.reading import FileStat, check_same
from ..planning.origins import sources_of
from ..planning.plan import Plan
from ..planning.shards import PlannedFile
from ..progress import Report
from .finished import is_finished, note_finished, take_back
from .shard import Moved, write_file
from .staging import Staging

_BUFFER_NBYTES = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class FileTask:
    """A planned shard, or a side file to copy, with all that is needed to write it.

    `sources` are the files that it takes from, below `root` or where `paths` says. `is_link`
    makes a hard link of a shard that repeats its source's.
    """

    file: PlannedFile | FileStat
    root: Path
    paths: Mapping[str, Path]
    sources: tuple[FileStat, ...]
    staging: Staging
    reflink: str
    block_nbytes: int
    is_link: bool

    @property
    def name(self) -> str:
        return self.file.name

    def path(self, name: str) -> Path:
        """Return where a source file is."""
        return self.paths.get(name, self.root / name)


def make_tasks(
    plan: Plan, staging: Staging, *, reflink: str, hardlink: bool
) -> tuple[FileTask, ...]:
    """Return the tasks of a plan, shards first; its documents are none."""
    known = {file.name: file for file in plan.source_files}

    def make(file: PlannedFile | FileStat, sources: tuple[FileStat, ...]) -> FileTask:
        return FileTask(
            file=file,
            root=plan.root,
            paths={s.name: plan.path(s.name) for s in sources if s.name in plan.paths},
            sources=sources,
            staging=staging,
            reflink=reflink,
            block_nbytes=plan.options.block_nbytes,
            is_link=hardlink and isinstance(file, PlannedFile) and file.identical_to is not None,
        )

    shards = tuple(
        make(file, tuple(known[name] for name in sorted(_sources_of(file)))) for file in plan.files
    )
    return shards + tuple(make(file, (file,)) for file in plan.side_files)


def do_task(task: FileTask, report: Report) -> Moved:
    """Write one file into the staging folder; go on with one that was begun.

    A shard is then forced onto the disk; side files are for the caller to force there together.
    Raises: TransferError, SourceChangedError, OutputError.
    """
    final = task.staging.files / task.name
    if isinstance(task.file, FileStat):
        _copy_side_file(task.path(task.name), task.file, final, report, sync=False)
        return Moved()
    partial = task.staging.partial / task.file.name
    return _add_shard(task, task.file, partial, task.staging.journals / task.file.name, report)


def do_task_apart(task: FileTask) -> Moved:
    """Do a task on a worker, of which another may have been given the same task.

    A scheduler that hears no more of a worker gives its task to another one, while the first may be
    at work still: so each writes under a name of its own, and the rename decides. What both write
    is the same. Raises: as `do_task`.
    """
    if not task.staging.files.is_dir():
        raise OutputError(
            f"{task.staging.folder}: not there on {socket.gethostname()}, which was to write "
            f"{task.file.name}; the output has to lie on a file system that all workers share, "
            "under the same path"
        )
    name = uuid.uuid4().hex
    partial, journal = task.staging.partial / name, task.staging.journals / name
    if isinstance(task.file, FileStat):
        _copy_side_file(task.path(task.name), task.file, partial, _ignore, sync=True)
        final = task.staging.files / task.name
        make_folders(final.parent)
        attempt("rename", final, os.rename, partial, final)
        return Moved()
    return _add_shard(task, task.file, partial, journal, _ignore)


def _sources_of(file: PlannedFile) -> set[str]:
    if file.identical_to is not None:
        return {file.identical_to}
    return {extent.file for tensor in file.tensors for extent in sources_of(tensor.origin)}


def _ignore(nbytes: int) -> None:
    return None


def _add_shard(
    task: FileTask, file: PlannedFile, partial: Path, journal: Path, report: Report
) -> Moved:
    final, note = task.staging.files / file.name, task.staging.note(file.name)
    sources = {source.name: source for source in task.sources}
    if task.is_link:
        return _link_shard(task, file, final, sources, report)
    if is_finished(final, note, file.nbytes):
        report(file.nbytes)
        return Moved(reused=file.nbytes)
    take_back(final, partial, journal)
    moved = write_file(
        file,
        task.root,
        sources,
        partial,
        journal,
        reflink=task.reflink,
        block_nbytes=task.block_nbytes,
        report=report,
        paths=task.paths,
    )
    attempt("rename", final, os.rename, partial, final)
    note_finished(final, note)
    remove_journal(journal)
    return moved


def _link_shard(
    task: FileTask,
    file: PlannedFile,
    final: Path,
    sources: Mapping[str, FileStat],
    report: Report,
) -> Moved:
    assert file.identical_to is not None
    source = Path(os.path.realpath(task.path(file.identical_to)))
    check_same(source, sources[file.identical_to], source.stat())
    report(file.nbytes)
    if final.exists():
        if final.samefile(source):
            return Moved(reused=file.nbytes)
        attempt("remove", final, os.unlink, final)
    attempt("link", final, os.link, source, final)
    return Moved(linked=file.nbytes)


def _copy_side_file(
    source: Path, file: FileStat, target: Path, report: Report, *, sync: bool
) -> None:
    make_folders(target.parent)
    source_fd = open_source(source)
    try:
        check_same(source, file, os.fstat(source_fd))
        fd = open_target(target)
        try:
            attempt("truncate", target, os.ftruncate, fd, 0)
            buffer = memoryview(bytearray(min(_BUFFER_NBYTES, file.nbytes)))
            for offset in range(0, file.nbytes, _BUFFER_NBYTES):
                data = buffer[: min(_BUFFER_NBYTES, file.nbytes - offset)]
                read_into(source_fd, data, offset, source)
                write_from(fd, data, offset, target)
            if sync:
                sync_file(fd, target)
        finally:
            os.close(fd)
        check_same(source, file, os.fstat(source_fd))
    finally:
        os.close(source_fd)
    report(file.nbytes)
