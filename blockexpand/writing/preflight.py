"""All that can be known to fail before a plan's first byte is written, and what a dry run shows.

The dry run and the run itself call the same function. It writes nothing but probes, of which none
stays, and decides nothing about content.
"""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import OutputError, TransferError
from ..fs.io import attempt
from ..fs.paths import existing_folder, overlaps
from ..fs.reading import describe_file
from ..messages import show
from ..planning.plan import Plan
from .leftovers import probe_prefix
from .replacing import Replaced, find_replaced
from .space import count_missing, shares_blocks
from .staging import Staging, check_owner, find_staging, name_staging, reusable
from .target import WriteOptions, check_target, resolve_target


@dataclass(frozen=True, slots=True, kw_only=True)
class WriteCheck:
    """What is known of a write that nothing speaks against.

    Of its bytes `linked` become hard links and `shares` tells whether blocks can be shared; it has
    to write `needed` bytes, of which `free` are there, and finds `found` of an earlier run. None
    where the source is still to be fetched, so that nothing tells. `replaced` is what goes.
    """

    out: Path
    needed: int | None
    free: int
    found: int
    linked: int
    shares: bool | None
    replaced: Replaced | None


def check_write(
    plan: Plan,
    out: Path,
    options: WriteOptions,
    *,
    is_here: bool = True,
    shares: bool | None = None,
    further_nbytes: int = 0,
) -> WriteCheck:
    """Refuse what can be known to fail; `out` is a resolved path.

    `is_here` says that the plan's source is on the disk; of one that is not, the caller may know
    whether its blocks can be shared. `further_nbytes` are what else is to be written there.
    Raises: OutputError, TransferError.
    """
    check_names(plan)
    check_target(out, options)
    if is_here:
        _check_apart(plan, out, options.compared)
        if options.hardlink:
            _check_links(plan, out)
    replaced = find_replaced(out, list_names(plan), options) if options.replaces else None
    if out.is_dir():
        _probe_rename(out)
    staging = find_staging(out, plan.fingerprint)
    if is_here:
        staging = name_staging(out, identify(plan, out))
    check_owner(staging.folder)
    folder = existing_folder(out.parent)
    if is_here:
        shares = shares_blocks(plan, folder, reflink=options.reflink)
        if options.reflink == "always" and not shares:
            raise OutputError(
                f"{out}: the file system cannot share blocks with the source; put the output on "
                "the same XFS or Btrfs file system, or use --reflink=auto"
            )
    free = shutil.disk_usage(folder).free
    needed = None
    if shares is not None:
        needed = check_room(plan, staging, options, shares=shares, further_nbytes=further_nbytes)
    linked = [file.nbytes for file in plan.files if options.hardlink and file.identical_to]
    return WriteCheck(
        out=out,
        needed=needed,
        free=free,
        found=sum(
            file.nbytes
            for file in plan.files
            if reusable(staging, is_here) and (staging.files / file.name).is_file()
        ),
        linked=sum(linked),
        shares=shares,
        replaced=replaced,
    )


def list_names(plan: Plan) -> frozenset[str]:
    """Return the names of all files of a plan's output, `/`-separated."""
    return frozenset(_all_names(plan))


def _all_names(plan: Plan) -> list[str]:
    shards = [file.name for file in plan.files]
    return shards + [item.name for item in plan.documents] + [f.name for f in plan.side_files]


def check_names(plan: Plan) -> None:
    """Refuse names that leave the output's folder, or stand in each other's way.

    Names are checked where they are read, too. This holds whatever made the plan: nothing of it
    leaves the staging folder. Raises: OutputError.
    """
    files = _all_names(plan)
    for name in files:
        if not _stays_inside(name):
            raise OutputError(
                f"a file of the output would be called {show(name)}, which is no name inside a "
                "folder; nothing was written"
            )
    for name, count in Counter(files).items():
        if count > 1:
            raise OutputError(f"two files of the output would be called {show(name)}")
    folders = {name.rpartition("/")[0] for name in files}
    for folder in list(folders):
        while folder:
            folder = folder.rpartition("/")[0]
            folders.add(folder)
    for name in sorted(folders.intersection(files)):
        raise OutputError(
            f"{plan.root / name}: is a folder, and the output has a file of that name; rename the "
            "folder"
        )


_NO_PARTS = frozenset({"", ".", ".."})


def _stays_inside(name: str) -> bool:
    if os.name == "nt" and any(character in name for character in "\\:"):
        return False
    return "\0" not in name and _NO_PARTS.isdisjoint(name.split("/"))


def identify(plan: Plan, out: Path, commit: str | None = None) -> dict[str, Any]:
    """Return what has to be equal for the files of an earlier run to be used again.

    Of shards that are still to be fetched there is nothing but their `commit`.
    """
    side_files = [[file.name, file.nbytes] for file in plan.side_files]
    known = {"fingerprint": plan.fingerprint, "out": out.name, "side_files": side_files}
    if commit is not None:
        return known | {"sources": commit}
    sources: list[list[object]] = []
    for file in plan.source_files:
        path = resolve_target(plan.path(file.name))
        found = describe_file(file.name, attempt("read", path, os.stat, path))
        # Not the times alone: some archives and file systems give every file the same.
        times = [file.mtime_ns, found.ctime_ns if found.links == 1 else None]
        sources.append([os.fspath(path), found.inode, file.nbytes, *times])
    return known | {"sources": sources}


def check_room(
    plan: Plan, staging: Staging, options: WriteOptions, *, shares: bool, further_nbytes: int
) -> int:
    """Return how many bytes are still to be written. Raises: OutputError without room for them."""
    folder = existing_folder(staging.folder.parent)
    needed = further_nbytes + count_missing(plan, staging, hardlink=options.hardlink, shares=shares)
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise OutputError(
            f"{folder}: not enough disk: {needed:,} bytes to write, {free:,} free; "
            "free some space or choose another folder"
        )
    return needed


def _check_apart(plan: Plan, out: Path, compared: Sequence[Path]) -> None:
    root = resolve_target(plan.root)
    files = {file.name for file in plan.source_files}.union(plan.paths)
    places = {root} | {resolve_target(plan.path(name)).parent for name in files}
    places |= {resolve_target(folder) for folder in compared}
    for place in places:
        if out == place:
            raise OutputError(f"{out}: is the source itself; choose another output folder")
        if overlaps(out, place):
            raise OutputError(
                f"{out}: the output and the source ({place}) may not lie inside each other; "
                "choose another output folder"
            )


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


def _probe_rename(out: Path) -> None:
    """Refuse a folder that the system will not rename, by trying what has to fail otherwise.

    A folder is never renamed onto one that is not empty; whatever else forbids to rename it is
    answered first, such as a layer of a container below it, or a quota of its own.
    Source: rename(2) ENOTEMPTY, EXDEV, EBUSY; overlayfs, "redirect_dir".
    """
    probe = Path(attempt("create a folder in", out.parent, _make_folder, probe_prefix(out), out))
    occupied = probe / "files"
    try:
        for folder in (occupied, occupied / "folder"):
            attempt("create", folder, folder.mkdir)
        attempt("rename", out, os.rename, out, occupied)
        attempt("rename", out, os.rename, occupied, out)
    except TransferError as error:
        cause = error.__cause__
        assert isinstance(cause, OSError)
        if cause.errno in (errno.ENOTEMPTY, errno.EEXIST):
            return
        if cause.errno == errno.EXDEV and not any(out.iterdir()):
            return  # an empty folder is replaced, not renamed
        if cause.errno not in (errno.EXDEV, errno.EBUSY, errno.EPERM, errno.EACCES):
            raise
        raise OutputError(
            f"{out}: cannot be replaced: {cause.strerror}: it is part of a container's image, in "
            "use, under a quota of its own, or another user's; choose another folder"
        ) from error
    finally:
        try:
            shutil.rmtree(probe, ignore_errors=True)
        except KeyboardInterrupt:
            # Nothing else would remove it before the next run.
            shutil.rmtree(probe, ignore_errors=True)
            raise


def _make_folder(prefix: str, out: Path) -> str:
    return tempfile.mkdtemp(prefix=prefix, dir=out.parent)
