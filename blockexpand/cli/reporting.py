"""How a run's progress is told on stderr: a bar, lines for a log, or objects for a program."""

from __future__ import annotations

import argparse

from .bars import Bars


def reporting(options: argparse.Namespace) -> Bars:
    """Return what tells of a run as `--progress` and `--quiet` say."""
    import sys

    shown = options.progress == "bar" or (options.progress == "auto" and sys.stderr.isatty())
    return Bars(shown=shown and not options.quiet, quiet=options.quiet)
