"""Write a plan: all refusals first, then every file into a staging folder, then one rename.

The only writer of checkpoints. It decides nothing about content: that is all in the plan.
"""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Sequence
from concurrent.futures import Executor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..checkpoints.sources import ShardStream
from ..errors import BlockExpandError, OutputError, RecipeError
from ..fs.io import attempt, explain, make_folders, sync_folder, write_document
from ..fs.paths import existing_folder, overlaps
from ..fs.reading import FileStat
from ..planning.plan import Plan
from ..progress import Progress
from .executors import run_tasks
from .locking import lock_target
from .shard import Moved
from .space import count_missing, shares_blocks
from .staging import (
    Staging,
    check_target,
    clear_begun,
    discard,
    find_leftovers,
    holds_work,
    is_published,
    name_staging,
    open_staging,
    publish,
    restore_replaced,
    was_published,
)
from .stream import write_from_stream
from .tasks import FileTask, do_task, do_task_apart, make_tasks

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class WriteOptions:
    """How bytes may be moved, and whether an output that exists is replaced.

    `reflink` is `auto`, `always` or `never`, as `cp` has it; `hardlink` links shards that repeat
    the source's byte for byte.
    """

    reflink: str = "auto"
    hardlink: bool = False
    overwrite: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Written:
    """A published output. `moved` counts the bytes of its shards; `notes` are for the user."""

    out: Path
    moved: Moved
    notes: tuple[str, ...]


def resolve_target(out: Path) -> Path:
    """Return the absolute path of an output, links followed, whether it exists or not."""
    return Path(os.path.realpath(out))


def check_write(plan: Plan, out: Path, options: WriteOptions) -> None:
    """Refuse, before a byte is written, what can be known to fail.

    Raises: OutputError.
    """
    check_target(out, overwrite=options.overwrite)
    root = resolve_target(plan.root)
    files = {file.name for file in plan.source_files}.union(plan.paths)
    places = {root} | {resolve_target(plan.path(name)).parent for name in files}
    for place in places:
        if out == place:
            raise OutputError(f"{out}: is the source itself; choose another output folder")
        if overlaps(out, place):
            raise OutputError(
                f"{out}: the output and the source ({place}) may not lie inside each other; "
                "choose another output folder"
            )
    _check_names(plan)
    if options.hardlink:
        _check_links(plan, out)


def _check_names(plan: Plan) -> None:
    """Refuse a folder of the source that is called what a file of the output has to be called."""
    names = {file.name for file in plan.files} | {file.name for file in plan.documents}
    for file in plan.side_files:
        folder, slash, _ = file.name.partition("/")
        if slash and folder in names:
            raise OutputError(
                f"{plan.path(file.name).parents[file.name.count('/') - 1]}: is a folder, and the "
                "output has a file of that name; rename the folder"
            )


def write(
    plan: Plan,
    out: Path,
    options: WriteOptions,
    progress: Progress,
    executor: Executor | None = None,
    stream: ShardStream | None = None,
) -> Written:
    """Make the output folder. `progress` is told of bytes and files as they are done.

    The workers of an `executor` write one file each at a time, and have to see the same folders
    under the same paths; `progress` is then told of whole files. Of a source that comes as a
    `stream` only the side files are in the plan's folder.
    Raises: OutputError, TransferError, SourceChangedError; then OUT is what it was before, and
    finished parts wait in a staging folder for the next run of the same plan.
    """
    out = resolve_target(out)
    check_write(plan, out, options)
    make_folders(out.parent)
    identity = identify(plan, out, stream)
    written: Written | None = None
    try:
        with lock_target(out):
            written = _write_alone(plan, out, identity, options, progress, executor, stream)
    except KeyboardInterrupt as interrupt:
        if written is None:
            raise
        raise KeyboardInterrupt(_COMPLETE) from interrupt
    return written


def identify(plan: Plan, out: Path, stream: ShardStream | None = None) -> dict[str, Any]:
    """Return what has to be equal for the files of an earlier run to be used again."""
    sources: list[list[object]] = []
    for file in plan.source_files if stream is None else ():
        path = resolve_target(plan.path(file.name))
        # Not the time of change alone: some archives and file systems give every file the same.
        inode = attempt("read", path, os.stat, path).st_ino
        sources.append([os.fspath(path), inode, file.nbytes, file.mtime_ns])
    return {
        "fingerprint": plan.fingerprint,
        "out": out.name,
        "side_files": [[file.name, file.nbytes] for file in plan.side_files],
        # Of shards that are still to be fetched there is nothing else to know them by.
        "sources": sources if stream is None else stream.commit,
    }


def _write_alone(
    plan: Plan,
    out: Path,
    identity: dict[str, Any],
    options: WriteOptions,
    progress: Progress,
    executor: Executor | None,
    stream: ShardStream | None,
) -> Written:
    """Make an output that no other run is at work on. `identity` tells what can be used again."""
    restored = restore_replaced(out)
    staging = name_staging(out, identity)
    complete = False
    try:
        staging, found = open_staging(staging)
        notes = tuple(
            f"left by a run of another plan: {path}; remove it if you do not want to go on with it"
            for path in find_leftovers(out, staging.folder)
        )
        if restored:
            notes = (_RESTORED, *notes)
        if found and was_published(staging, out) and _holds(out, plan):
            complete = True
            discard(staging)
            return Written(out=out, moved=Moved(reused=plan.nbytes), notes=(_FINISHED, *notes))
        # Another run may have published since the first check, which the lock now rules out.
        check_target(out, overwrite=options.overwrite, locked=True)
        if executor is not None:
            clear_begun(staging)
        _check_space(plan, staging, options, stream)
        moved = _fill(plan, staging, options, progress, executor, stream)
        published = publish(staging, out, overwrite=options.overwrite)
    except BaseException as error:
        # A value that a dtype cannot hold will be there in every run of the same plan.
        remark = _settle(
            staging,
            out,
            complete=complete or is_published(staging, out),
            hopeless=isinstance(error, RecipeError),
        )
        failure = error
        if isinstance(error, OSError):
            failure = explain("use", Path(error.filename or out), error)
        if remark and isinstance(failure, BlockExpandError | KeyboardInterrupt):
            failure = type(failure)(f"{failure} ({remark})" if str(failure) else remark)
        if failure is error:
            raise
        raise failure from error
    if moved.reused:
        published += (f"{moved.reused} bytes were there from an earlier run of the same plan",)
    return Written(out=out, moved=moved, notes=published + notes)


_COMPLETE = "the new output is complete and in its place"

_FINISHED = "an earlier run had finished this output; nothing was left to do but to tidy up"

_RESTORED = "an earlier run was killed while it replaced the output, which was put back as it was"


def _settle(staging: Staging, out: Path, *, complete: bool, hopeless: bool) -> str | None:
    """Remove what a failed run leaves, but for what a rerun can use; return what stays, in words.

    `complete` says that the output had been published, `hopeless` that no rerun can succeed. A
    failure here must not hide the one that led here.
    """
    with suppress(BlockExpandError, OSError):
        if not (complete or hopeless) and holds_work(staging):
            return f"finished parts stay in {staging.folder} for a rerun of the same command"
        with suppress(BlockExpandError):
            discard(staging)
        left = f"; {staging.folder} can be removed" if staging.folder.exists() else ""
        return _COMPLETE + left if complete else None
    return f"what was written stays in {staging.folder}"


def _holds(out: Path, plan: Plan) -> bool:
    """Tell whether a folder that seems to be the finished output has not been tampered with since.

    A folder's number is used again once it is removed, so that is not enough to know it by.
    """
    with suppress(FileNotFoundError):
        return all((out / file.name).stat().st_size == file.nbytes for file in plan.files) and all(
            (out / document.name).read_bytes() == document.data for document in plan.documents
        )
    return False


def _check_links(plan: Plan, out: Path) -> None:
    folder = existing_folder(out.parent)
    for file in plan.files:
        if file.identical_to is not None:
            source = resolve_target(plan.path(file.identical_to))
            if source.stat().st_dev != folder.stat().st_dev:
                raise OutputError(
                    f"{out}: --hardlink needs the output on the file system of the source "
                    f"({source}); leave --hardlink out"
                )


def _check_space(
    plan: Plan, staging: Staging, options: WriteOptions, stream: ShardStream | None
) -> None:
    shares = shares_blocks(plan, staging.folder, reflink=options.reflink)
    needed = count_missing(
        plan, staging.files, staging.partial, hardlink=options.hardlink, shares=shares
    )
    if stream is not None:
        needed += max(file.nbytes for file in plan.source_files)
    free = shutil.disk_usage(staging.folder).free
    if needed > free:
        raise OutputError(
            f"{staging.folder.parent}: not enough disk: {needed:,} bytes to write, {free:,} free; "
            "free some space or choose another folder"
        )


def _fill(
    plan: Plan,
    staging: Staging,
    options: WriteOptions,
    progress: Progress,
    executor: Executor | None,
    stream: ShardStream | None,
) -> Moved:
    """Bring every file of the plan into the staging folder, each forced onto the disk."""
    tasks = make_tasks(plan, staging, reflink=options.reflink, hardlink=options.hardlink)
    moved = Moved()
    if stream is not None:
        shards, tasks = tasks[: len(plan.files)], tasks[len(plan.files) :]
        moved += write_from_stream(plan, staging, shards, stream, progress)
    if executor is None:
        for task in tasks:
            moved += _do_here(task, progress)
    else:
        moved = _fill_apart(executor, tasks, progress)
    for document in plan.documents:
        write_document(staging.files / document.name, document.data)
        progress.advance(len(document.data))
    for folder in [staging.files, *(path for path in staging.files.rglob("*") if path.is_dir())]:
        sync_folder(folder)
    return moved


def _do_here(task: FileTask, progress: Progress) -> Moved:
    if isinstance(task.file, FileStat):
        return do_task(task, progress.advance)
    progress.begin_file(task.name)
    moved = do_task(task, progress.advance)
    progress.end_file(task.name)
    _log.info("%s: %s", task.name, _spell(moved))
    return moved


def _spell(moved: Moved) -> str:
    """Say how the bytes of a file got there, for the log."""
    counts = {name: getattr(moved, name) for name in Moved.__dataclass_fields__}
    return ", ".join(f"{nbytes:,} bytes {name}" for name, nbytes in counts.items() if nbytes)


def _fill_apart(executor: Executor, tasks: Sequence[FileTask], progress: Progress) -> Moved:
    """Let an executor do the tasks. What its workers did not finish is no use to another run."""
    counts: list[Moved] = []

    def finished(task: FileTask, moved: Moved) -> None:
        counts.append(moved)
        progress.advance(task.file.nbytes)
        if not isinstance(task.file, FileStat):
            progress.end_file(task.name)
            _log.info("%s: %s", task.name, _spell(moved))

    run_tasks(executor, do_task_apart, tasks, finished)
    for task in tasks:
        path = task.staging.files / task.name
        if not path.is_file() or path.stat().st_size != task.file.nbytes:
            raise OutputError(
                f"{path}: a worker has written it, but it is not to be seen here; the output has "
                "to lie on a file system that all workers share, under the same path"
            )
    return sum(counts, start=Moved())
