"""Share items out to threads, each with buffers of its own. It knows nothing of what they do."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import TypeVar

_Item = TypeVar("_Item")

# Enough that reading and writing overlap. On Windows a file has one position for all threads.
THREADS = 3 if os.name == "posix" else 1


def work_through(
    items: Iterable[_Item], begin: Callable[[], Callable[[_Item], None]], threads: int = THREADS
) -> None:
    """Have every item handled, by whichever thread is free; `items` is only asked by one at a time.

    Each thread calls `begin` once, for its buffers and for the function that handles an item with
    them. Raises: what the first thread to fail has raised, when all have stopped.
    """
    iterator = iter(items)
    lock = threading.Lock()
    failures: list[BaseException] = []
    # Nobody works before all threads are known, so that all can be waited for, whatever happens.
    are_known = threading.Event()

    def work() -> None:
        are_known.wait()
        if failures:
            return
        try:
            handle = begin()
            while not failures:
                with lock:
                    try:
                        item = next(iterator)
                    except StopIteration:
                        return
                handle(item)
        except BaseException as error:
            failures.append(error)

    running: list[threading.Thread] = []
    try:
        if threads > 1:
            # Where the system allows no more threads, those that there are do the work.
            with suppress(RuntimeError):
                for _ in range(threads):
                    thread = threading.Thread(target=work, daemon=True)
                    thread.start()
                    running.append(thread)
        are_known.set()
        if not running:
            work()
        for thread in running:
            thread.join()
    except BaseException as error:
        failures.append(error)
        are_known.set()
        # Files are closed after this: an impatient second Ctrl-C must not end the wait.
        for thread in running:
            while thread.is_alive():
                with suppress(KeyboardInterrupt):
                    thread.join()
        raise
    if failures:
        raise failures[0]
