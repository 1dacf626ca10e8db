"""What is known of a plan's output before anything is fetched or written: for runs and dry runs."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from ..checkpoints.sources import HubOptions, ModelRef, OpenedSource
from ..errors import OutputError
from ..fs.paths import existing_folder
from ..planning.plan import Plan
from ..writing.preflight import WriteCheck, check_write
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
