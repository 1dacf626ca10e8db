"""What killed runs left beside an output: found, put right, and swept up where it holds nothing.

What holds anything is named, never removed; what others own is not looked into.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from ..errors import OutputError, TransferError
from .locking import lock_path, lock_target, short_name
from .staging import is_own, put_back, staging_prefix, was_published


def find_leftovers(out: Path, current: Path | None) -> tuple[Path, ...]:
    """Return the staging folders that runs of other plans left beside an output."""
    prefix = staging_prefix(out)
    with suppress(OSError):
        return tuple(
            sorted(
                path
                for path in out.parent.iterdir()
                if path.name.startswith(prefix) and path != current
            )
        )
    return ()


def _find_own_leftovers(out: Path) -> list[Path]:
    """Return those that are this user's: what others have put there is not looked into."""
    with suppress(OSError):
        return [folder for folder in find_leftovers(out, None) if is_own(folder)]
    return []


def is_untidy(out: Path) -> bool:
    """Tell whether a run that was killed has published the output, but not tidied up after it."""
    with suppress(TransferError):
        return any(was_published(folder, out) for folder in _find_own_leftovers(out))
    return False


def restore_replaced(out: Path) -> bool:
    """Put an output back that a run was killed over between taking it away and publishing.

    That can only be where folders cannot be swapped in one step. Returns whether there was one.
    """
    return not out.exists() and any(put_back(folder, out) for folder in _find_own_leftovers(out))


def clear_debris(out: Path) -> None:
    """Remove what a run that was killed at its very end left: its lock, an empty staging folder.

    And the probes of one that was killed while it looked whether the output can be renamed.
    """
    empty = [path for path in find_leftovers(out, None) if _is_empty(path)]
    for path in _find_probes(out):
        for inside in (path / "files" / "folder", path / "files", path):
            with suppress(OSError):
                inside.rmdir()
    if empty or lock_path(out).exists():
        with suppress(OutputError, TransferError), lock_target(out):
            for path in empty:
                with suppress(OSError):
                    path.rmdir()


def _find_probes(out: Path) -> list[Path]:
    with suppress(OSError):
        return [path for path in out.parent.iterdir() if path.name.startswith(probe_prefix(out))]
    return []


def _is_empty(folder: Path) -> bool:
    with suppress(OSError):
        return not any(folder.iterdir())
    return False


def probe_prefix(out: Path) -> str:
    """Return how the names of probes begin that are made beside an output."""
    return f".{short_name(out)}.blockexpand.probe-"
