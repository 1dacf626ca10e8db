"""The argument parser that all commands share: a wrong word is one line, and nothing is printed.

It imports nothing heavy, so that `--help` answers as fast as Python starts.
"""

from __future__ import annotations

import argparse
from typing import NoReturn

from ..errors import UsageError


class Parser(argparse.ArgumentParser):
    """Says in one line what is wrong, and where help is; whole words only, no abbreviations."""

    def __init__(self, *, prog: str, description: str, epilog: str | None = None) -> None:
        super().__init__(
            prog=prog,
            description=description,
            epilog=epilog,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )

    def error(self, message: str) -> NoReturn:
        """Raises: UsageError."""
        raise UsageError(f"{message}; see `{self.prog} --help`")
