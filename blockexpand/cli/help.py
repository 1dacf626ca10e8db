"""`blockexpand help`: the commands, or all that there is to know of one. Its parser and its run."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from ..errors import UsageError
from .commands import COMMANDS, list_commands
from .console import print_result
from .parsing import Parser, advise, did_you_mean

OVERVIEW = f"""\
Add blocks to a safetensors language model without changing what it computes.

{list_commands()}

examples:
  blockexpand --src org/name --out bigger --new-layers 4 --dry-run
  blockexpand --src org/name --out bigger --new-layers 4
  blockexpand verify org/name bigger
  blockexpand suggest ./model

Exit status: 0 done, 1 something differs, 2 wrong usage or values, 3 could
not be done, 130 and 143 interrupted. `blockexpand help COMMAND` explains a
command."""


def make_parser() -> Parser:
    parser = Parser(
        prog="blockexpand help",
        usage="blockexpand help [COMMAND]",
        description="Explain a command, or list all of them.",
    )
    parser.add_argument("command", nargs="?", metavar="COMMAND", help="the command to explain")
    return parser


def run(options: argparse.Namespace, words: Sequence[str]) -> int:
    name = options.command
    if name is None:
        print_result(f"usage: blockexpand COMMAND [options]\n\n{OVERVIEW}")
        return 0
    if name not in COMMANDS:
        raise UsageError(
            advise(f"{name}: no such command{did_you_mean(name, COMMANDS)}", "blockexpand help")
        )
    print_result(COMMANDS[name].make_parser().format_help().rstrip())
    return 0
