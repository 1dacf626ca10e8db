"""Ranges of source files that several slices need at once: read once, and kept for a while.

It only reads. What no other slice needs goes into the caller's buffer; what others will ask for
too is kept until other such ranges take its place.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Protocol

from .reading import PAGE_NBYTES, Reader, make_buffer

_KEPT_NBYTES = 64 << 20


class _Extent(Protocol):
    @property
    def file(self) -> str: ...
    @property
    def offset(self) -> int: ...
    @property
    def nbytes(self) -> int: ...


Fetch = Callable[[_Extent, bool], memoryview]


class RangeReader:
    """Reads ranges for several threads. At most the last range is kept that is larger than all."""

    def __init__(self, source: Reader) -> None:
        self._source = source
        self._lock = threading.Lock()
        self._kept: OrderedDict[tuple[str, int, int], memoryview] = OrderedDict()
        self._locks: dict[tuple[str, int, int], threading.Lock] = {}

    def fetch_into(self, buffer: memoryview) -> Fetch:
        """Return a function that reads a range, into `buffer` as long as that has room.

        Its second argument says that other slices will ask for the same range.
        """
        used = 0

        def fetch(extent: _Extent, is_shared: bool) -> memoryview:
            nonlocal used
            if is_shared:
                return self._keep((extent.file, extent.offset, extent.nbytes))
            room = -(-extent.nbytes // PAGE_NBYTES) * PAGE_NBYTES + 2 * PAGE_NBYTES
            into = buffer[used : used + room]
            if len(into) < room:
                into = make_buffer(extent.nbytes)
            else:
                used += room
            return self._source.read(extent.file, extent.offset, extent.nbytes, into)

        return fetch

    def _keep(self, key: tuple[str, int, int]) -> memoryview:
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key]
            own = self._locks.setdefault(key, threading.Lock())
        with own:
            with self._lock:
                if key in self._kept:
                    return self._kept[key]
            name, offset, nbytes = key
            data = self._source.read(name, offset, nbytes, make_buffer(nbytes))
            with self._lock:
                self._kept[key] = data
                self._locks.pop(key, None)
                total = sum(len(kept) for kept in self._kept.values())
                while total > _KEPT_NBYTES and len(self._kept) > 1:
                    total -= len(self._kept.popitem(last=False)[1])
            return data
