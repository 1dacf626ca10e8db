"""`blockexpand completion`: a script that completes words in a shell. Its parser and its run.

The script is made by `shtab` from the parsers, so it knows every option; it is an optional
dependency, since it is needed once, when the script is made.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from ..errors import InputError
from .commands import COMMANDS
from .console import print_result
from .parsing import Parser

SHELLS = ("bash", "zsh", "fish")

_EPILOG = """\
examples:
  eval "$(blockexpand completion bash)"    in ~/.bashrc
  blockexpand completion zsh > ~/.zfunc/_blockexpand
  blockexpand completion fish > ~/.config/fish/completions/blockexpand.fish

zsh needs `fpath+=~/.zfunc` before `compinit` in ~/.zshrc."""

# What names a file or a folder, by the name of the argument.
_PATHS = ("src", "out", "base", "other", "recipe", "jobs_file", "model", "cache_dir", "infer")


def make_parser() -> Parser:
    parser = Parser(
        prog="blockexpand completion",
        usage="blockexpand completion bash|zsh|fish",
        description="Print a script with which a shell completes commands and options. It needs "
        "shtab to be made: pip install 'blockexpand[completion]'.",
        epilog=_EPILOG,
    )
    parser.add_argument("shell", choices=SHELLS, metavar="SHELL", help=", ".join(SHELLS))
    return parser


def run(options: argparse.Namespace, words: Sequence[str]) -> int:
    try:
        import shtab
    except ImportError:
        raise InputError(
            "shtab is needed to make a completion script: pip install 'blockexpand[completion]'"
        ) from None
    print_result(shtab.complete(_make_whole_parser(shtab), options.shell).rstrip("\n"))
    return 0


def _make_whole_parser(shtab: Any) -> argparse.ArgumentParser:
    """Return one parser with all commands, as completion needs it."""
    whole = COMMANDS["expand"].make_parser()
    whole.prog = "blockexpand"
    # Completion knows options of the command line as a whole only beside its commands.
    taken: Any = _take
    commands = whole.add_subparsers(title="commands", dest="command", parser_class=taken)
    for command in COMMANDS.values():
        commands.add_parser(command.name, help=command.summary, parser=command.make_parser())
    _mark_paths(whole, shtab)
    return whole


def _take(*, parser: Parser, **_: object) -> Parser:
    """Return the parser that a command has made for itself."""
    return parser


def _mark_paths(parser: argparse.ArgumentParser, shtab: Any) -> None:
    for action in parser._actions:
        if action.dest in _PATHS:
            action.complete = shtab.FILE  # type: ignore[attr-defined]
        if isinstance(action, argparse._SubParsersAction):
            for child in action.choices.values():
                _mark_paths(child, shtab)
