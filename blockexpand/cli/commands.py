"""The commands: their names, what each does in a line, and the module that has its parser and run.

A module is loaded when its command is asked for. Nothing is done here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from .parsing import Parser


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """`module` has `make_parser() -> Parser` and `run(options, words) -> status`."""

    name: str
    summary: str
    module: str

    def make_parser(self) -> Parser:
        parser: Parser = self._load().make_parser()
        return parser

    @property
    def run(self) -> Callable[[Any, Sequence[str]], int]:
        run: Callable[[Any, Sequence[str]], int] = self._load().run
        return run

    def _load(self) -> Any:
        return import_module(f".{self.module}", __package__)


def _command(name: str, summary: str) -> Command:
    return Command(name=name, summary=summary, module=name.replace("-", "_"))


GROUPS: tuple[tuple[str, tuple[Command, ...]], ...] = (
    (
        "make",
        (
            _command("expand", "add blocks to a model (the default command)"),
            _command("merge", "make the model of a mergekit passthrough recipe"),
            _command("batch", "make many expansions from one file"),
        ),
    ),
    (
        "prove and compare",
        (
            _command("verify", "prove an output against its source, byte for byte"),
            _command("diff", "list which tensors are the same, changed or new"),
        ),
    ),
    (
        "look and choose",
        (
            _command("show", "say what a model is: layers, parameters, lineage"),
            _command("suggest", "list how many blocks fit a model, and their cost"),
            _command("rank", "tell which layers matter least on a text"),
            _command("families", "list the model types that can be expanded"),
        ),
    ),
    (
        "train and share",
        (
            _command("train", "train the new blocks on plain text"),
            _command("train-config", "print a trainer's settings for the new blocks"),
            _command("extract", "save the trained new blocks alone"),
            _command("apply", "put trained blocks on their base again"),
        ),
    ),
    (
        "help",
        (
            _command("env", "print the versions that a bug report needs"),
            _command("completion", "print a completion script for bash, zsh or fish"),
            _command("help", "explain a command"),
        ),
    ),
)

COMMANDS = {command.name: command for _, commands in GROUPS for command in commands}


def list_commands() -> str:
    """Return the commands in their groups, a line each."""
    lines = []
    for title, commands in GROUPS:
        lines.append(f"{title}:")
        lines += [f"  {command.name:13} {command.summary}" for command in commands]
        lines.append("")
    return "\n".join(lines[:-1])
