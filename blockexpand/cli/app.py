"""The command line: arguments, progress, printing and exit codes. Nothing that the library lacks.

Results go to stdout, progress and messages to stderr. 0 done, 1 failed, 2 wrong usage, 130
interrupted.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Sequence
from pathlib import Path

from ..errors import ArgumentError, BlockExpandError
from .batch import make_batch_parser, run_batch_command
from .console import StdoutClosedError, fail, open_closed_streams, print_result
from .diff import make_diff_parser, run_diff
from .expand import make_expand_parser, run_expand
from .train_config import make_train_config_parser, run_train_config
from .verify import make_verify_parser, run_verify

# Arguments that are not called on the command line as in Python.
_OPTIONS = {"verify_after": "--verify", "parallel": "--jobs", "jobs_file": "JOBS.yaml"}


def main(words: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status."""
    words = list(sys.argv[1:] if words is None else words)
    # A plan of 100,000 tensors is a million objects without a cycle: collecting among them again
    # and again takes longer than making them.
    gc.set_threshold(1_000_000, 10, 10)
    open_closed_streams()
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    try:
        status = _run(words)
        print_result("")
        return status
    except StdoutClosedError:
        return 1
    except ArgumentError as error:
        name = _OPTIONS.get(error.argument, f"--{error.argument.replace('_', '-')}")
        return fail(f"{name}: {error.reason}")
    except BlockExpandError as error:
        return fail(str(error))
    except KeyboardInterrupt as interrupt:
        remark = str(interrupt) or "the output was not made or changed"
        print(f"blockexpand: interrupted; {remark}", file=sys.stderr)
        return 130
    except OSError as error:
        from ..fs.io import explain

        return fail(str(explain("use", Path(error.filename or "."), error)))
    except MemoryError:
        return fail(
            "not enough memory: copying takes about 100 MB, converting dtypes 500 MB; raise the "
            "limit and run the same command again"
        )
    except ImportError as error:
        # torch and transformers are only loaded where they are needed.
        from ..messages import one_line

        said = one_line(error, 200)
        return fail(
            f"cannot load what this needs: {said}; install it, or, if it is installed, see that it "
            "suits this machine and that there is memory enough"
        )


def _run(words: list[str]) -> int:
    try:
        if words[:1] == ["verify"]:
            return run_verify(make_verify_parser().parse_args(words[1:]))
        if words[:1] == ["batch"]:
            parser = make_batch_parser()
            return run_batch_command(parser.parse_args(words[1:]), parser)
        if words[:1] == ["diff"]:
            return run_diff(make_diff_parser().parse_args(words[1:]))
        if words[:1] == ["train-config"]:
            return run_train_config(make_train_config_parser().parse_args(words[1:]))
        parser = make_expand_parser()
        options = parser.parse_args(words)
        return run_expand(options, parser, words)
    except SystemExit as end:
        # How argparse ends after --help, --version and wrong usage.
        return int(end.code or 0)
