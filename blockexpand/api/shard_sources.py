"""A shard of a plan, alone: what it takes from a repository is fetched, and lies in a folder.

For `--on-hub` and for the proof of what lies on the Hub, which have no room for a model. It writes
to the folder given to it, nowhere else.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path

from ..checkpoints.hub.files import RepoSnapshot
from ..checkpoints.hub.pieces import merge_ranges, stream_pieces
from ..checkpoints.sources import HubOptions
from ..fs.reading import describe_file
from ..planning.origins import sources_of
from ..planning.plan import Plan
from ..planning.shards import PlannedFile


def find_ranges(
    file: PlannedFile, here: Mapping[str, Path]
) -> dict[str, Sequence[tuple[int, int]]]:
    """Return which `(offset, nbytes)` of which source files a shard takes, but for those `here`."""
    ranges: dict[str, list[tuple[int, int]]] = {}
    for tensor in file.tensors:
        for extent in sources_of(tensor.origin):
            if extent.file not in here:
                ranges.setdefault(extent.file, []).append((extent.offset, extent.nbytes))
    return {name: merge_ranges(found) for name, found in ranges.items()}


def count_ranges(file: PlannedFile, here: Mapping[str, Path]) -> int:
    """Return how many bytes `find_ranges` names."""
    return sum(nbytes for found in find_ranges(file, here).values() for _, nbytes in found)


def take_alone(plan: Plan, file: PlannedFile) -> Plan:
    """Return the plan of one shard, without documents and side files."""
    needed = {extent.file for tensor in file.tensors for extent in sources_of(tensor.origin)}
    return replace(
        plan,
        files=(replace(file, identical_to=None),),
        documents=(),
        side_files=(),
        source_files=tuple(one for one in plan.source_files if one.name in needed),
    )


def bring_sources(
    plan: Plan, file: PlannedFile, snapshot: RepoSnapshot, hub: HubOptions, folder: Path
) -> Plan:
    """Fetch what a shard takes from a repository; return its plan, whose sources are in `folder`.

    A source file that is needed whole is held to its digest; of a piece only the length can be
    checked. What an earlier call had of one that is needed whole is gone on from. Raises: HubError.
    """
    alone = take_alone(plan, file)
    ranges = find_ranges(file, plan.paths)
    kept = folder / "sources"
    # Pieces that were cut off, and what an earlier shard took.
    shutil.rmtree(kept, ignore_errors=True)
    kept.mkdir(parents=True)
    pieces = stream_pieces(
        snapshot,
        ranges,
        folder / "fetched",
        token=hub.token,
        cache_dir=hub.cache_dir,
        tell=hub.tell,
    )
    with closing(pieces):
        for path in pieces:
            path.rename(kept / path.name)
    here = {name: describe_file(name, (kept / name).stat()) for name in ranges}
    return replace(
        alone,
        root=kept,
        source_files=tuple(here.get(one.name, one) for one in alone.source_files),
    )
