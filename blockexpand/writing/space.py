"""How many bytes a plan still needs on a disk: holes and shared blocks need none.

It looks at what an earlier run left, and writes nothing but a nameless probe of one block.
"""

from __future__ import annotations

import tempfile
from contextlib import suppress
from pathlib import Path

from ..fs.io import explain
from ..fs.sharing import can_share, count_held
from ..planning.plan import Plan
from .finished import is_finished
from .shard import count_unshared
from .staging import Staging


def shares_blocks(plan: Plan, folder: Path, *, reflink: str) -> bool:
    """Tell whether a folder's file system would share blocks with the plan's source.

    Raises: TransferError.
    """
    return reflink != "never" and any(
        can_share(plan.path(file.name), folder) for file in plan.source_files[:1]
    )


def would_share(cache: Path, folder: Path, *, reflink: str) -> bool:
    """Tell the same of a source that is yet to be downloaded into `cache`.

    Raises: TransferError.
    """
    if reflink == "never" or cache.stat().st_dev != folder.stat().st_dev:
        return False
    try:
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".blockexpand.") as probe:
            probe.write(bytes(1 << 16))
            probe.flush()
            return can_share(Path(probe.name), folder)
    except OSError as error:
        raise explain("write to", folder, error) from error


def count_missing(plan: Plan, staging: Staging, *, hardlink: bool, shares: bool) -> int:
    """Return the bytes that a plan has still to write, beside what an earlier run has left."""
    needed = sum(len(document.data) for document in plan.documents)
    needed += sum(file.nbytes for file in plan.side_files)
    for file in plan.files:
        is_linked = hardlink and file.identical_to is not None
        if is_linked or is_finished(
            staging.files / file.name, staging.note(file.name), file.nbytes
        ):
            continue
        unshared = count_unshared(file, plan.options.block_nbytes, shares=shares)
        present = 0
        # A run that is at work there may finish the file at this very moment.
        with suppress(FileNotFoundError):
            present = count_held((staging.partial / file.name).stat())
        needed += max(unshared - present, 0)
    return needed
