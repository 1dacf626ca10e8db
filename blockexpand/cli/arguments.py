"""The commands' arguments and help texts, for argparse. Nothing is done here.

It imports nothing heavy, so that `--help` answers as fast as Python starts.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any


def not_empty(text: str) -> str:
    # To Python an empty path is the current folder; to the user it is a variable left unset.
    if not text:
        raise argparse.ArgumentTypeError("expected a name, found an empty text")
    return text


def add_hub_options(add: Callable[..., Any]) -> None:
    add("--revision", help="branch, tag or commit of a Hub repository")
    add("--token", help="token for the Hub; HF_TOKEN and `hf auth login` work too")
    add("--cache-dir", metavar="DIR", help="the Hub's cache (default: as huggingface_hub)")


def add_executor_option(add: Callable[..., Any]) -> None:
    add(
        "--executor",
        type=_executor,
        metavar="EXECUTOR",
        help="let others write, a file each at a time: process:N starts N processes; "
        "dask://HOST:PORT asks a dask scheduler, whose workers have to see source and output under "
        "the same paths",
    )


def _executor(text: str) -> str:
    from ..writing.executors import parse_executor

    try:
        parse_executor(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return text


def add_output_options(add: Callable[..., Any]) -> None:
    add("--json", action="store_true", help="print one JSON object on stdout")
    add("-q", "--quiet", action="store_true", help="print errors only")
    add("-v", "--verbose", action="store_true", help="print every file")
    add("--no-progress", action="store_true", help="show no progress bar")
