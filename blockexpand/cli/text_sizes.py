"""Sizes and times as people read them."""

from __future__ import annotations

from ..messages import format_size

__all__ = ["format_duration", "format_size"]


def format_duration(seconds: float) -> str:
    """Return a time in the unit that fits: `8 s`, `14 min`, `3.5 h`."""
    if seconds < 100:
        return f"{seconds:.0f} s" if seconds >= 0.95 else "less than a second"
    if seconds < 100 * 60:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.3g} h"
