"""The standard streams: closed ones, readers that have gone, and text that a terminal can bear."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO, cast

from .._version import __version__
from ..errors import OutputError
from ..messages import join_lines, printable

# Of every object that --json prints; docs/json.md says what it promises.
JSON_SCHEMA_VERSION = 1


def open_closed_streams() -> None:
    """Lead standard files that the caller has closed to nowhere.

    Else the files of the output get their numbers, and with them what a library prints.
    """
    for fd in range(3):
        try:
            os.fstat(fd)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    if sys.stderr is None:
        sys.stderr = os.fdopen(2, "w", closefd=False)


@contextmanager
def unfailing_stderr() -> Iterator[None]:
    """Let no run end because its log cannot be written: what cannot be told is dropped."""
    stderr = sys.stderr
    sys.stderr = cast(TextIO, _Unfailing(stderr))
    try:
        yield
    finally:
        sys.stderr = stderr


class _Unfailing:
    """A stream that leads to nowhere once its reader has gone or its disk is full."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        with self._dropping():
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with self._dropping():
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    @contextmanager
    def _dropping(self) -> Iterator[None]:
        try:
            yield
        except OSError:
            # What the stream still holds would fail again when Python ends.
            _lead_to_nowhere(self._stream)


def _lead_to_nowhere(stream: TextIO) -> None:
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)


class StdoutClosedError(Exception):
    """The reader of a pipe has gone, which is nothing to report."""


def print_result(text: str) -> None:
    """Write to stdout at once, while a failure can still be told."""
    try:
        print(text, end="\n" if text else "", flush=True)
    except OSError as error:
        # Python would try to write the rest when it ends, and complain.
        _lead_to_nowhere(sys.stdout)
        if isinstance(error, BrokenPipeError):
            raise StdoutClosedError from error
        raise OutputError(f"standard output: cannot write: {error.strerror}") from error


def tell_difference(message: str) -> int:
    """Say on stderr what a finished comparison found; returns the exit status."""
    print(f"blockexpand: {printable(message)}", file=sys.stderr)
    return 1


def tell_failure(kind: str, message: str, status: int, *, as_json: bool) -> int:
    """Say on stderr what went wrong, with `--json` on stdout too; returns the exit status."""
    print(f"blockexpand: {printable(message)}", file=sys.stderr)
    if as_json:
        import json

        error = {"type": kind, "message": message, "status": status}
        # A stdout that failed is what there is to tell.
        with suppress(StdoutClosedError, OutputError):
            print_result(json.dumps({"schema_version": JSON_SCHEMA_VERSION, "error": error}))
    return status


def note_unused_options(options: argparse.Namespace, src: str) -> None:
    """Say on stderr which options for the Hub have no effect, because SRC is a folder."""
    from ..fs.paths import expand_home

    if options.quiet or not expand_home(src).exists():
        return
    given = {
        "--token": options.token and not getattr(options, "push_to_hub", None),
        "--cache-dir": options.cache_dir,
    }
    for option, is_unused in given.items():
        if is_unused:
            line = f"note: {option} has no effect: {src} is a folder here"
            print(printable(line), file=sys.stderr)


def print_outcome(
    options: argparse.Namespace,
    as_json: Callable[..., dict[str, Any]],
    describe: Callable[..., str],
    *values: object,
) -> None:
    if options.json:
        import json

        head = {
            "schema_version": JSON_SCHEMA_VERSION,
            "blockexpand": __version__,
            "seconds": round(time.monotonic() - options.started, 3),
        }
        print_result(json.dumps({**head, **as_json(*values)}))
    elif not options.quiet:
        text = describe(*values, verbose=options.verbose)
        print_result(join_lines(text.split("\n")))
