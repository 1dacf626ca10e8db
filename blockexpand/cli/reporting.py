"""What a run tells on stderr while it is at work: as `--progress`, `-q` and `-v` ask for.

A clock of its own ticks beside the run, so that a stage that counts nothing is seen to live.
"""

from __future__ import annotations

import argparse
import logging
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from ..progress import SILENT, Progress
from .reporters import Bar, Lines, Objects, Reporter

_LOGGER = "blockexpand"


@contextmanager
def reporting(options: argparse.Namespace) -> Iterator[Progress]:
    """Yield what is told to the library, and end all that is shown."""
    reporter = _choose(options)
    if reporter is None:
        yield SILENT
        return
    ended = threading.Event()
    clock = threading.Thread(target=_tick, args=(reporter, ended), daemon=True)
    clock.start()
    try:
        with _logging(reporter, shown=options.verbose):
            yield Progress(
                begin=reporter.begin,
                advance=reporter.advance,
                stage=reporter.stage,
                begin_file=reporter.begin_file,
                end_file=reporter.end_file,
                begin_job=reporter.begin_job,
                end_job=reporter.end_job,
                tell=reporter.tell,
                is_shown=isinstance(reporter, Bar),
            )
    finally:
        ended.set()
        clock.join()
        reporter.close()


def _choose(options: argparse.Namespace) -> Reporter | None:
    if options.quiet:
        return None
    how = options.progress
    if how == "auto":
        how = "bar" if sys.stderr.isatty() else "plain"
    match how:
        case "bar":
            return Bar()
        case "plain":
            return Lines()
        case "json":
            return Objects()
        case _:
            return Reporter()


def _tick(reporter: Reporter, ended: threading.Event) -> None:
    while not ended.wait(reporter.seconds):
        reporter.tick()


@contextmanager
def _logging(reporter: Reporter, *, shown: bool) -> Iterator[None]:
    """Show what the library logs of its decisions, with the time."""
    if not shown:
        yield
        return
    handler = _Handler(reporter)
    logger = logging.getLogger(_LOGGER)
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


class _Handler(logging.Handler):
    def __init__(self, reporter: Reporter) -> None:
        super().__init__()
        self._reporter = reporter

    def emit(self, record: logging.LogRecord) -> None:
        clock = time.strftime("%H:%M:%S", time.localtime(record.created))
        self._reporter.tell(f"{clock} {record.getMessage()}")
