"""Progress bars on a terminal, drawn by tqdm from what the library counts."""

from __future__ import annotations

import sys
import threading
from typing import Any

from ..messages import printable
from ..progress import SILENT, Progress


class Bars:
    """Progress bars on stderr, one after the other."""

    def __init__(self, *, shown: bool, quiet: bool = False) -> None:
        self._shown = shown
        self._quiet = quiet
        self._bar: Any = None
        self._lock = threading.Lock()

    def __enter__(self) -> Progress:
        if self._quiet:
            return SILENT
        if not self._shown:
            return Progress(tell=self._tell)
        return Progress(begin=self._begin, advance=self._advance, tell=self._tell, is_shown=True)

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def _tell(self, line: str) -> None:
        from tqdm import tqdm

        # Above a bar that is shown.
        with self._lock:
            tqdm.write(printable(line), file=sys.stderr)

    def _begin(self, what: str, nbytes: int) -> None:
        from tqdm import tqdm

        if self._bar is not None:
            self._bar.close()
        self._bar = tqdm(desc=what, total=nbytes, unit="B", unit_scale=True, file=sys.stderr)

    def _advance(self, nbytes: int) -> None:
        with self._lock:
            self._bar.update(nbytes)
