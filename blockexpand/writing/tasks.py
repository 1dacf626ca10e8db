"""One shard of a plan as a task that can be pickled: done here, or by a worker on another machine.

A task writes its own file in the staging folder and nothing else, and decides nothing.
"""

from __future__ import annotations

import os
import socket
import uuid
from dataclasses import dataclass
from pathlib import Path

from ..errors import OutputError
from ..fs.io import attempt
from ..fs.journal import Begun, remove_journal
from ..fs.reading import Place, check_same
from ..planning.origins import sources_of
from ..planning.plan import Plan
from ..planning.shards import PlannedFile
from ..progress import Report
from .finished import is_finished, note_finished, take_back
from .shard import Moved, write_file
from .staging import Staging


@dataclass(frozen=True, slots=True, kw_only=True)
class FileTask:
    """A planned shard with all that is needed to write it.

    `sources` are the files that it takes from. `is_link` makes a hard link of a shard that repeats
    its source's.
    """

    file: PlannedFile
    sources: Place
    staging: Staging
    reflink: str
    block_nbytes: int
    is_link: bool

    @property
    def name(self) -> str:
        return self.file.name


def make_tasks(
    plan: Plan, staging: Staging, *, reflink: str, hardlink: bool
) -> tuple[FileTask, ...]:
    """Return a task for each shard of a plan."""
    known = plan.sources.files

    def make(file: PlannedFile) -> FileTask:
        names = sorted(_sources_of(file))
        return FileTask(
            file=file,
            # A task has what its own file needs, so that it stays small.
            sources=Place(
                plan.root,
                {name: known[name] for name in names},
                {name: plan.paths[name] for name in names if name in plan.paths},
            ),
            staging=staging,
            reflink=reflink,
            block_nbytes=plan.options.block_nbytes,
            is_link=hardlink and file.identical_to is not None,
        )

    return tuple(map(make, plan.files))


def do_task(task: FileTask, report: Report) -> Moved:
    """Write one shard into the staging folder, and force it onto the disk; go on with a begun one.

    Raises: TransferError, SourceChangedError, OutputError.
    """
    return _add_shard(task, task.staging.begun(task.name), report)


def do_task_apart(task: FileTask) -> Moved:
    """Do a task on a worker, of which another may have been given the same task.

    A scheduler that hears no more of a worker gives its task to another one, while the first may be
    at work still: so each writes under a name of its own, and the rename decides. What both write
    is the same. Raises: as `do_task`.
    """
    if not task.staging.files.is_dir():
        raise OutputError(
            f"{task.staging.folder}: not there on {socket.gethostname()}, which was to write "
            f"{task.name}; the output has to lie on a file system that all workers share, "
            "under the same path"
        )
    return _add_shard(task, task.staging.begun(uuid.uuid4().hex), _ignore)


def _sources_of(file: PlannedFile) -> set[str]:
    if file.identical_to is not None:
        return {file.identical_to}
    return {extent.file for tensor in file.tensors for extent in sources_of(tensor.origin)}


def _ignore(nbytes: int) -> None:
    return None


def _add_shard(task: FileTask, begun: Begun, report: Report) -> Moved:
    file, final, note = task.file, task.staging.files / task.name, task.staging.note(task.name)
    if task.is_link:
        return _link_shard(task, final, report)
    if is_finished(final, note, file.nbytes):
        report(file.nbytes)
        return Moved(reused=file.nbytes)
    take_back(final, *begun)
    moved = write_file(
        file,
        task.sources,
        begun,
        reflink=task.reflink,
        block_nbytes=task.block_nbytes,
        report=report,
    )
    attempt("rename", final, os.rename, begun.path, final)
    note_finished(final, note)
    remove_journal(begun.journal)
    return moved


def _link_shard(task: FileTask, final: Path, report: Report) -> Moved:
    name, nbytes = task.file.identical_to, task.file.nbytes
    assert name is not None
    source = Path(os.path.realpath(task.sources.path(name)))
    check_same(source, task.sources.files[name], source.stat())
    report(nbytes)
    if final.exists():
        if final.samefile(source):
            return Moved(reused=nbytes)
        attempt("remove", final, os.unlink, final)
    attempt("link", final, os.link, source, final)
    return Moved(linked=nbytes)
