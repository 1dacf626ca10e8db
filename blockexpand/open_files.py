"""How many files may be open at once: a checkpoint may have more shards than a shell allows.

Only the process's own limit is raised, and no further than the system lets it.
Source: getrlimit(2).
"""

from __future__ import annotations

try:
    import resource
except ImportError:
    resource = None  # type: ignore[assignment]

# More than any checkpoint has shards. macOS calls the hard limit infinite, and refuses that.
_ENOUGH = 10_240


def allow_more_files() -> bool:
    """Raise the limit of open files as far as is of use; returns whether that changed anything."""
    if resource is None:
        return False
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _ENOUGH if hard == resource.RLIM_INFINITY else min(hard, _ENOUGH)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return False
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    except (OSError, ValueError):
        return False
    return True
