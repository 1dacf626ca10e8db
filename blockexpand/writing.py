"""Carry out a plan: all refusals first, then every file into a staging folder, then one rename.

The only writer of checkpoints. It decides nothing about content: that is all in the plan.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from .checkpoint import SourceFile, check_same
from .copying import (
    attempt,
    can_share,
    explain,
    open_source,
    open_target,
    read_into,
    sync_file,
    sync_folder,
    write_document,
    write_from,
)
from .errors import BlockExpandError, OutputError
from .file_writing import Moved, count_unshared, write_file
from .journal import remove_journal
from .plan import Plan
from .planned_files import PlannedFile
from .progress import Report
from .staging import (
    Staging,
    check_target,
    discard,
    find_leftovers,
    holds_work,
    is_published,
    lock_target,
    open_staging,
    publish,
    restore_replaced,
)

_BUFFER_NBYTES = 1 << 20


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
    places = {root} | {resolve_target(root / file.name).parent for file in plan.source_files}
    for place in places:
        if out == place:
            raise OutputError(f"{out}: is the source itself; choose another output folder")
        if out.is_relative_to(place) or place.is_relative_to(out):
            raise OutputError(
                f"{out}: the output and the source ({place}) may not lie inside each other; "
                "choose another output folder"
            )
    if options.hardlink:
        _check_links(plan, out)


def write(plan: Plan, out: Path, options: WriteOptions, report: Report) -> Written:
    """Make the output folder. `report` is told of bytes as they are done, from any thread.

    Raises: OutputError, TransferError, SourceChangedError; then OUT is what it was before, and
    finished parts wait in a staging folder for the next run of the same plan.
    """
    out = resolve_target(out)
    check_write(plan, out, options)
    _make_folders(out.parent)
    identity = {
        "fingerprint": plan.fingerprint,
        "out": out.name,
        "sources": [[file.name, file.nbytes, file.mtime_ns] for file in plan.source_files],
    }
    with lock_target(out):
        restored = restore_replaced(out)
        staging, found = open_staging(out, identity)
        notes = tuple(
            f"left by a run of another plan: {path}; remove it if you do not want to go on with it"
            for path in find_leftovers(out, staging.folder)
        )
        if restored:
            notes = (_RESTORED, *notes)
        try:
            if found and is_published(staging.folder, out) and _holds(out, plan):
                discard(staging)
                return Written(out=out, moved=Moved(reused=plan.nbytes), notes=(_FINISHED, *notes))
            # Another run may have published since the first check, which the lock now rules out.
            check_target(out, overwrite=options.overwrite, locked=True)
            _check_space(plan, staging, options)
            moved = _fill(plan, staging, options, report)
            published = publish(staging, out, overwrite=options.overwrite)
        except BaseException as error:
            remark = _settle(staging, out)
            if isinstance(error, OSError):
                raise explain("use", Path(error.filename or out), error) from error
            if remark and isinstance(error, BlockExpandError | KeyboardInterrupt):
                raise type(error)(f"{error} ({remark})" if str(error) else remark) from error
            raise
    if moved.reused:
        published += (f"{moved.reused} bytes were there from an earlier run of the same plan",)
    return Written(out=out, moved=moved, notes=published + notes)


_FINISHED = "an earlier run had finished this output; nothing was left to do but to tidy up"
_RESTORED = "an earlier run was killed while it replaced the output, which was put back as it was"


def _settle(staging: Staging, out: Path) -> str | None:
    """Remove what a failed run leaves, but for what a rerun can use; return what stays, in words.

    A failure here must not hide the one that led here.
    """
    with suppress(BlockExpandError, OSError):
        published = is_published(staging.folder, out)
        if not published and holds_work(staging):
            return f"finished parts stay in {staging.folder} for a rerun of the same command"
        with suppress(BlockExpandError):
            discard(staging)
        if not published:
            return None
        left = f"; {staging.folder} can be removed" if staging.folder.exists() else ""
        return f"the new output is complete and in its place{left}"
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


def _make_folders(folder: Path) -> None:
    """Make a folder and those above it, each forced onto the disk."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    for path in reversed(missing):
        attempt("create", path, lambda path=path: path.mkdir(exist_ok=True))
        sync_folder(path.parent)


def _check_links(plan: Plan, out: Path) -> None:
    folder = next(parent for parent in out.parents if parent.exists())
    for file in plan.files:
        if file.identical_to is not None:
            source = resolve_target(plan.root / file.identical_to)
            if source.stat().st_dev != folder.stat().st_dev:
                raise OutputError(
                    f"{out}: --hardlink needs the output on the file system of the source "
                    f"({source}); leave --hardlink out"
                )


def _check_space(plan: Plan, staging: Staging, options: WriteOptions) -> None:
    shares = options.reflink != "never" and any(
        can_share(plan.root / file.name, staging.folder) for file in plan.source_files[:1]
    )
    needed = sum(len(document.data) for document in plan.documents)
    needed += sum(file.nbytes for file in plan.side_files)
    for file in plan.files:
        if _is_linked(file, options) or (staging.files / file.name).exists():
            continue
        unshared = count_unshared(file, plan.recipe.block_nbytes, shares=shares)
        partial = staging.partial / file.name
        present = partial.stat().st_blocks * 512 if partial.exists() else 0
        needed += max(unshared - present, 0)
    free = shutil.disk_usage(staging.folder).free
    if needed > free:
        raise OutputError(
            f"{staging.folder.parent}: not enough disk: {needed:,} bytes to write, {free:,} free; "
            "free some space or choose another folder"
        )


def _is_linked(file: PlannedFile, options: WriteOptions) -> bool:
    return options.hardlink and file.identical_to is not None


def _fill(plan: Plan, staging: Staging, options: WriteOptions, report: Report) -> Moved:
    """Bring every file of the plan into the staging folder, each forced onto the disk."""
    sources = {file.name: file for file in plan.source_files}
    moved = Moved()
    for file in plan.files:
        moved += _add_shard(file, plan, sources, staging, options, report)
    for side_file in plan.side_files:
        _copy_side_file(side_file, plan.root, staging.files / side_file.name, report)
    for document in plan.documents:
        write_document(staging.files / document.name, document.data)
        report(len(document.data))
    for folder in [staging.files, *(path for path in staging.files.rglob("*") if path.is_dir())]:
        sync_folder(folder)
    return moved


def _add_shard(
    file: PlannedFile,
    plan: Plan,
    sources: Mapping[str, SourceFile],
    staging: Staging,
    options: WriteOptions,
    report: Report,
) -> Moved:
    final = staging.files / file.name
    if final.exists() and not options.hardlink and final.stat().st_nlink > 1:
        # An earlier run was asked to link; this one is not.
        attempt("remove", final, os.unlink, final)
    if final.exists():
        report(file.nbytes)
        return Moved(reused=file.nbytes)
    if _is_linked(file, options):
        assert file.identical_to is not None
        source = resolve_target(plan.root / file.identical_to)
        check_same(source, sources[file.identical_to], source.stat())
        attempt("link", final, os.link, source, final)
        report(file.nbytes)
        return Moved(linked=file.nbytes)
    partial = staging.partial / file.name
    journal = staging.journals / file.name
    moved = write_file(
        file,
        plan.root,
        sources,
        partial,
        journal,
        reflink=options.reflink,
        block_nbytes=plan.recipe.block_nbytes,
        report=report,
    )
    attempt("rename", final, os.rename, partial, final)
    remove_journal(journal)
    return moved


def _copy_side_file(file: SourceFile, root: Path, target: Path, report: Report) -> None:
    _make_folders(target.parent)
    source = root / file.name
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
            sync_file(fd, target)
        finally:
            os.close(fd)
        check_same(source, file, os.fstat(source_fd))
    finally:
        os.close(source_fd)
    report(file.nbytes)
