"""What is known of a plan's output before anything is fetched or written: for runs and dry runs."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from ..checkpoints.sources import HubOptions, ModelRef, OpenedSource
from ..errors import OutputError
from ..fs.paths import existing_folder
from ..planning.plan import Plan
from ..planning.segments import tally_file
from ..writing.preflight import WriteCheck, check_write
from ..writing.shard import Moved, count_unshared
from ..writing.space import would_share
from ..writing.target import WriteOptions


@dataclass(frozen=True, slots=True, kw_only=True)
class Preview:
    """What a run would do. `finished` is the note on an output that is there already; else `write`
    has what is known of the writing before its first byte."""

    plan: Plan
    source: ModelRef
    write: WriteCheck | None
    finished: str | None

    @property
    def moved(self) -> Moved:
        """How the bytes of the shards would get there, as far as can be told."""
        if self.write is None:
            return Moved(reused=sum(file.nbytes for file in self.plan.files))
        return _foresee(self.plan, self.write)


def _foresee(plan: Plan, write: WriteCheck) -> Moved:
    block = plan.options.block_nbytes
    moved = Moved()
    for file in plan.files:
        if write.linked and file.identical_to is not None:
            moved += Moved(linked=file.nbytes)
            continue
        unshared = count_unshared(file, block, shares=False)
        needed = count_unshared(file, block, shares=True) if write.shares else unshared
        tally = tally_file(file)
        computed = tally.converted + tally.scaled
        moved += Moved(
            shared=unshared - needed,
            copied=needed - computed,
            converted=computed,
            holes=file.nbytes - unshared,
        )
    return moved


def check_output(
    plan: Plan,
    target: Path,
    options: WriteOptions,
    source: OpenedSource,
    hub: HubOptions,
    *,
    stream: bool,
) -> WriteCheck:
    """Refuse what can be known to fail before anything is fetched or written.

    Raises: OutputError, TransferError.
    """
    if source.snapshot is None:
        return check_write(plan, target, options)
    if stream:
        largest = max(file.nbytes for file in plan.source_files)
        return check_write(
            plan, target, options, is_here=False, shares=False, further_nbytes=largest
        )
    from ..checkpoints.hub.client import cache_folder
    from ..checkpoints.hub.download import count_uncached

    folder = existing_folder(target.parent)
    cache = existing_folder(cache_folder(hub.cache_dir))
    names = [file.name for file in plan.source_files + plan.side_files]
    missing = count_uncached(source.snapshot, names, hub.cache_dir)
    is_apart = cache.stat().st_dev != folder.stat().st_dev
    free = shutil.disk_usage(cache).free
    if is_apart and missing > free:
        raise OutputError(
            f"{cache}: not enough disk: {missing:,} bytes to download, {free:,} free; free some "
            "space, or name another cache with --cache-dir"
        )
    return check_write(
        plan,
        target,
        options,
        is_here=False,
        shares=would_share(cache, folder, reflink=options.reflink),
        further_nbytes=0 if is_apart else missing,
    )
