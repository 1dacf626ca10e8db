"""SIGTERM and SIGHUP as Ctrl-C: a run that a scheduler or a closed terminal ends tidies up, too."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

# A terminal that closes sends SIGHUP; Windows has none.
_NAMES = ("SIGTERM", "SIGHUP")


@contextmanager
def signals_as_interrupts() -> Iterator[list[signal.Signals]]:
    """Raise KeyboardInterrupt where a signal would end the process; the list says which came.

    What the caller has decided about a signal stands: `nohup` still has its way.
    """
    received: list[signal.Signals] = []

    def interrupt(number: int, frame: FrameType | None) -> None:
        received.append(signal.Signals(number))
        raise KeyboardInterrupt

    taken = []
    if threading.current_thread() is threading.main_thread():
        for name in _NAMES:
            number = getattr(signal, name, None)
            if number is not None and signal.getsignal(number) is signal.SIG_DFL:
                signal.signal(number, interrupt)
                taken.append(number)
    try:
        yield received
    finally:
        for number in taken:
            signal.signal(number, signal.SIG_DFL)
