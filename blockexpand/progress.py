"""How a caller is told of progress: callbacks that count bytes. The library itself never prints."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

Report = Callable[[int], None]


def _ignore(*_: object) -> None:
    return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """`begin` is called with what begins and its bytes; `advance` with the bytes of each part.

    `advance` and `tell` are called from any thread; `tell` with one line on what is waited for.
    `is_shown` says that somebody watches: the Hub's client may then draw its own bars on stderr.
    """

    begin: Callable[[str, int], None] = _ignore
    advance: Report = _ignore
    tell: Callable[[str], None] = _ignore
    is_shown: bool = False


SILENT = Progress()
