"""Write a plan: all refusals first, then every file into a staging folder, then one rename.

The only writer of checkpoints. It decides nothing about content: that is all in the plan.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..checkpoints.sources import ShardStream
from ..errors import BlockExpandError, OutputError, RecipeError
from ..fs.io import explain, make_folders, sync_folder, write_document
from ..planning.plan import Plan
from ..progress import Progress
from .completeness import check_complete, holds_output
from .executors import run_tasks
from .leftovers import find_leftovers, restore_replaced
from .locking import lock_target
from .preflight import check_room, check_write, identify, list_names
from .replacing import find_replaced
from .shard import Moved
from .side_files import copy_side_files
from .space import shares_blocks
from .staging import (
    Staging,
    clear_begun,
    discard,
    holds_work,
    is_published,
    name_staging,
    open_staging,
    publish,
    was_published,
)
from .stream import write_from_stream
from .target import WriteOptions, check_target, resolve_target
from .tasks import FileTask, do_task, do_task_apart, make_tasks

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Written:
    """A published output. `moved` counts the bytes of its shards; `notes` are for the user."""

    out: Path
    moved: Moved
    notes: tuple[str, ...]


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
    check_write(
        plan,
        out,
        options,
        is_here=stream is None,
        shares=None if stream is None else False,
        further_nbytes=_largest_shard(plan, stream),
    )
    make_folders(out.parent)
    identity = identify(plan, out, None if stream is None else stream.commit)
    written: Written | None = None
    try:
        with lock_target(out) as check_lock:
            written = _write_alone(
                plan, out, identity, options, progress, executor, stream, check_lock
            )
    except KeyboardInterrupt as interrupt:
        if written is None:
            raise
        raise KeyboardInterrupt(_COMPLETE) from interrupt
    return written


def _write_alone(
    plan: Plan,
    out: Path,
    identity: dict[str, Any],
    options: WriteOptions,
    progress: Progress,
    executor: Executor | None,
    stream: ShardStream | None,
    check_lock: Callable[[], None],
) -> Written:
    """Make an output that no other run is at work on. `identity` tells what can be used again."""
    restored = restore_replaced(out)
    staging = name_staging(out, identity)
    complete = False
    try:
        staging, found = open_staging(staging)
        notes = tuple(
            f"{path} holds an unfinished run with other options; delete it if you do not need it"
            for path in find_leftovers(out, staging.folder)
        )
        if restored:
            notes = (_RESTORED, *notes)
        if found and was_published(staging.folder, out):
            if holds_output(out, plan, staging, hardlink=options.hardlink):
                complete = True
                discard(staging)
                return Written(out=out, moved=Moved(reused=plan.nbytes), notes=(_FINISHED, *notes))
            if not options.replaces:
                raise OutputError(f"{out}: {_CHANGED}")
        # Another run may have published since the first check, which the lock now rules out.
        _check_replaced(plan, out, options)
        if executor is not None:
            clear_begun(staging)
        shares = shares_blocks(plan, staging.folder, reflink=options.reflink)
        further = _largest_shard(plan, stream)
        check_room(plan, staging, options, shares=shares, further_nbytes=further)
        moved = _fill(plan, staging, options, progress, executor, stream)
        check_complete(plan, staging)
        check_lock()
        # Whatever came to be in the old output meanwhile is not to be lost either.
        _check_replaced(plan, out, options)
        published = publish(staging, out, overwrite=options.replaces)
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
        published += (f"{moved.reused:,} bytes were there from an earlier run of the same plan",)
    return Written(out=out, moved=moved, notes=published + notes)


_COMPLETE = "the new output is complete and in its place"

_FINISHED = "an earlier run had finished this output; nothing was left to do but to tidy up"

_CHANGED = (
    "exists, and is not, or no longer, what an earlier run of this plan made there; choose another "
    "folder (--overwrite would replace what is there, trained or not)"
)

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


def _check_replaced(plan: Plan, out: Path, options: WriteOptions) -> None:
    check_target(out, options, locked=True)
    if options.replaces:
        find_replaced(out, list_names(plan), options)


def _largest_shard(plan: Plan, stream: ShardStream | None) -> int:
    """Return the room that a source takes which is fetched shard by shard."""
    return 0 if stream is None else max(file.nbytes for file in plan.source_files)


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
    if stream is not None:
        moved = write_from_stream(plan, staging, tasks, stream, progress)
    elif executor is not None:
        moved = _fill_apart(executor, tasks, progress)
    else:
        moved = sum((_do_here(task, progress) for task in tasks), start=Moved())
    copy_side_files(plan, staging.files, progress.advance)
    for document in plan.documents:
        write_document(staging.files / document.name, document.data)
        progress.advance(len(document.data))
    for folder, _, _ in os.walk(staging.files):
        sync_folder(Path(folder))
    return moved


def _do_here(task: FileTask, progress: Progress) -> Moved:
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
