"""The command line: choose a command, and turn whatever ends it into one line and an exit status.

Results go to stdout, progress and messages to stderr. Exit status: 0 done, 1 something differs, 2
wrong usage or values, 3 could not be done, 128 and a signal's number where one ended the run
(130 after Ctrl-C, 143 after SIGTERM).
"""

from __future__ import annotations

import gc
import itertools
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from ..errors import ArgumentError, BlockExpandError, UsageError
from ..messages import show
from .commands import COMMANDS
from .console import (
    StdoutClosedError,
    open_closed_streams,
    print_result,
    tell_failure,
    unfailing_stderr,
)
from .interrupts import signals_as_interrupts
from .parsing import advise, did_you_mean

# Arguments that are not called on the command line as in Python.
_OPTIONS = {"verify_after": "--verify", "parallel": "--jobs", "jobs_file": "JOBS.yaml"}

# Options without a value that all commands have.
_FLAGS = frozenset(
    {"-h", "--help", "-V", "--version", "-q", "--quiet", "-v", "--verbose", "--json"}
)

_COULD_NOT = 3

_INTERRUPTED = 130

# What is loaded only where it is needed, by the name that pip knows it by.
_PACKAGES = {
    "huggingface_hub": "huggingface_hub",
    "numpy": "numpy",
    "safetensors": "safetensors",
    "torch": "torch",
    "tqdm": "tqdm",
    "transformers": "transformers",
    "typing_extensions": "typing-extensions",
    "yaml": "PyYAML",
}


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
    as_json = "--json" in words
    with unfailing_stderr(), signals_as_interrupts() as received:
        try:
            status = _run(words)
            print_result("")
            return status
        except StdoutClosedError:
            return _COULD_NOT
        except KeyboardInterrupt as interrupt:
            remark = str(interrupt) or "the output was not made or changed"
            by = f" by {received[0].name}" if received else ""
            status = 128 + received[0] if received else _INTERRUPTED
            message = f"interrupted{by}; {remark}"
            return tell_failure("KeyboardInterrupt", message, status, as_json=as_json)
        except (BlockExpandError, OSError, MemoryError, ImportError) as error:
            status = error.status if isinstance(error, BlockExpandError) else _COULD_NOT
            return tell_failure(type(error).__name__, _explain(error), status, as_json=as_json)


def _run(words: list[str]) -> int:
    try:
        if not words:
            raise UsageError(
                "give a command, or --src SRC --out OUT --new-layers N to expand; "
                "`blockexpand help` lists the commands"
            )
        words = _put_command_first(words)
        name = words[0]
        if name in COMMANDS:
            command = COMMANDS[name]
            return command.run(command.make_parser().parse_args(words[1:]), words)
        if not name.startswith("-"):
            raise UsageError(_explain_unknown(words))
        return _expand(words)
    except SystemExit as end:
        # How argparse ends after --help and --version.
        return int(end.code or 0)


def _put_command_first(words: list[str]) -> list[str]:
    """Take `--json verify SRC OUT` as `verify --json SRC OUT`, as other tools do."""
    flags = list(itertools.takewhile(_FLAGS.__contains__, words))
    name = "".join(words[len(flags) : len(flags) + 1])
    return [name, *flags, *words[len(flags) + 1 :]] if name in COMMANDS else words


def _expand(words: list[str]) -> int:
    """Run the command that needs no name; its help lists the others."""
    from .help import OVERVIEW

    expand = COMMANDS["expand"]
    parser = expand.make_parser()
    parser.description = OVERVIEW
    parser.epilog = None
    options = parser.parse_args(words)
    return expand.run(options, words)


def _explain_unknown(words: list[str]) -> str:
    """Say what is wrong with a first word that is no command."""
    name = words[0]
    if name.endswith((".yml", ".yaml")):
        out = words[1] if len(words) > 1 and not words[1].startswith("-") else "OUT"
        return (
            f"{name}: no such command; a recipe is carried out by `blockexpand merge {name} "
            f"--out {out}`, a jobs file by `blockexpand batch {name}`"
        )
    if name and ("/" in name or Path(name).exists()):
        return advise(
            f"{show(name)}: no such command; a model is expanded with --src {shlex.quote(name)} "
            "--out OUT --new-layers N",
            "blockexpand help",
        )
    shown = name if name.isprintable() and name.strip() else show(name)
    return advise(f"{shown}: no such command{did_you_mean(name, COMMANDS)}", "blockexpand help")


def _explain(error: Exception) -> str:
    """Return an error as a line that says what to do."""
    match error:
        case ArgumentError():
            name = _OPTIONS.get(error.argument, f"--{error.argument.replace('_', '-')}")
            return f"{name}: {error.reason}"
        case BlockExpandError():
            return str(error)
        case OSError():
            from ..fs.io import explain

            return str(explain("use", Path(error.filename or "."), error))
        case MemoryError():
            return (
                "not enough memory: copying takes about 100 MB, converting dtypes 500 MB; raise "
                "the limit and run the same command again"
            )
        case ModuleNotFoundError(name=name) if (name or "").partition(".")[0] in _PACKAGES:
            package = _PACKAGES[(name or "").partition(".")[0]]
            return f"{package} is needed for this, and is not installed: pip install {package}"
        case _:
            # torch and transformers are only loaded where they are needed.
            from ..messages import one_line

            said = one_line(error, 200)
            return (
                f"cannot load what this needs: {said}; install it, or, if it is installed, see "
                "that it suits this machine and that there is memory enough"
            )
