"""What a staging folder says of the run that made it: for which plan, and how far it came.

One small file, replaced in one step, and the last thing that is removed.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import TransferError
from ..fs.io import attempt, write_document

_STATE = "state.json"


def read_state(folder: Path) -> dict[str, Any]:
    """Return what `write_state` wrote; of a folder without it, or a torn one, nothing.

    Raises: TransferError where it is there and cannot be read: it must not be taken for none.
    """
    path = folder / _STATE
    try:
        state = json.loads(attempt("read", path, path.read_bytes))
    except TransferError as error:
        if isinstance(error.__cause__, FileNotFoundError | NotADirectoryError):
            return {}
        raise
    except (ValueError, RecursionError):
        return {}
    return state if isinstance(state, dict) else {}


def write_state(
    folder: Path,
    identity: Mapping[str, Any],
    *,
    published_inode: int | None = None,
    finished: Mapping[str, Any] | None = None,
) -> None:
    """Note whose the folder is and, once its files are about to be published, by what to know them.

    `finished` has what was noted of the shards, by their names. Raises: TransferError.
    """
    state = {
        "identity": identity,
        "published_inode": published_inode,
        "finished": finished or {},
    }
    path = folder / _STATE
    fresh = path.with_suffix(".new")
    write_document(fresh, json.dumps(state).encode())
    attempt("write", path, os.replace, fresh, path)


def is_same(found: object, wanted: Mapping[str, Any]) -> bool:
    """Compare identities. A source's last entry, its time of change, may be unknown in one."""
    if not isinstance(found, dict) or found | {"sources": None} != {**wanted, "sources": None}:
        return False
    one, other = found.get("sources"), wanted.get("sources")
    if not isinstance(one, list) or not isinstance(other, list):
        return one == other
    return len(one) == len(other) and all(
        before[:-1] == now[:-1] and (before[-1] == now[-1] or None in (before[-1], now[-1]))
        for before, now in zip(one, other, strict=True)
    )
