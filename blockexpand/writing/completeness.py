"""Whether a folder holds what a plan says: before it is published, and once more after a kill.

It only looks.
"""

from __future__ import annotations

import filecmp
import os
from contextlib import suppress
from pathlib import Path

from ..errors import OutputError
from ..planning.plan import Plan
from ..planning.shards import PlannedFile
from .finished import is_noted
from .preflight import list_names
from .staging import Staging
from .state import read_state


def check_complete(plan: Plan, staging: Staging) -> None:
    """Refuse to publish anything but the plan's files, whoever put them there."""
    found: set[str] = set()
    for folder, subfolders, files in os.walk(staging.files):
        inside = Path(folder).relative_to(staging.files).as_posix()
        links = [name for name in subfolders if (Path(folder) / name).is_symlink()]
        found.update(name if inside == "." else f"{inside}/{name}" for name in (*files, *links))
    for name in sorted(found ^ list_names(plan)):
        raise OutputError(
            f"{staging.files / name}: {'is no file of this plan' if name in found else 'is gone'}, "
            f"and was not when this run began; remove {staging.folder} and run the command again"
        )


def holds_output(out: Path, plan: Plan, staging: Staging, *, hardlink: bool) -> bool:
    """Tell whether a folder that seems to be the finished output has not been tampered with since.

    A folder's number is used again once it is removed, so that is not enough to know it by.
    Raises: TransferError.
    """
    noted = read_state(staging.folder).get("finished")
    if not isinstance(noted, dict):
        return False

    def is_whole(file: PlannedFile) -> bool:
        made = out / file.name
        if hardlink and file.identical_to is not None:
            return made.samefile(plan.path(file.identical_to))
        return is_noted(made, noted.get(file.name), file.nbytes)

    with suppress(OSError):
        return (
            all(is_whole(file) for file in plan.files)
            and all((out / item.name).read_bytes() == item.data for item in plan.documents)
            and all(
                filecmp.cmp(out / file.name, plan.path(file.name), shallow=False)
                for file in plan.side_files
            )
        )
    return False
