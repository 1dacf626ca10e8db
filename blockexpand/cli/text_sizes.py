"""Sizes and times as people read them."""

from __future__ import annotations

from ..messages import format_size

__all__ = ["describe_shared", "format_duration", "format_size"]


def describe_shared(nbytes: int) -> str:
    """Say how much was not compared because it is one and the same on the disk."""
    return f"shared with the source: {format_size(nbytes)}, not read again (--paranoid reads all)"


def format_duration(seconds: float) -> str:
    """Return a time in the unit that fits: `8 s`, `14 min`, `3.5 h`."""
    if seconds < 100:
        return f"{seconds:.0f} s" if seconds >= 0.95 else "less than a second"
    if seconds < 100 * 60:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.3g} h"
