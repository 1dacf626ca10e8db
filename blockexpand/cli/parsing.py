"""The argument parser that all commands share: a wrong word is one line, and nothing is printed.

Help is wrapped at 80 columns or less. It imports nothing heavy, so that `--help` answers as fast as
Python starts.
"""

from __future__ import annotations

import argparse
import itertools
import re
import shutil
import textwrap
import time
from collections.abc import Iterable, Sequence
from typing import Any, NoReturn

from .._version import __version__
from ..errors import UsageError

_WIDTH = 80

_NARROWEST = 40

# From here two words are alike: `--out` is no misspelt `--quiet`.
_ALIKE = 0.7

# What other tools call the same.
_SYNONYMS = {
    "bf16": "bfloat16",
    "fp16": "float16",
    "half": "float16",
    "fp32": "float32",
    "float": "float32",
}


class Parser(argparse.ArgumentParser):
    """Says in one line what is wrong, and what was probably meant; takes no abbreviations."""

    def __init__(self, *, prog: str, usage: str, description: str, epilog: str = "") -> None:
        super().__init__(
            prog=prog,
            usage=usage,
            description=description,
            epilog=epilog,
            formatter_class=_Formatter,
            allow_abbrev=False,
            add_help=False,
        )
        self._words: list[str] = []
        self.register("type", None, not_empty)
        for name in (None, "store"):
            self.register("action", name, _StoreOnce)
        self.general = self.add_argument_group("general")
        self.general.add_argument("-h", "--help", action="help", help="show this help")
        self.general.add_argument(
            "-V",
            "--version",
            action="version",
            version=f"blockexpand {__version__}",
            help="show the version",
        )

    def error(self, message: str) -> NoReturn:
        """Raises: UsageError."""
        message = message.removeprefix("argument ")
        missing = message.removeprefix("the following arguments are required: ")
        if missing != message:
            message = f"{missing} missing; expected `{self.usage}`"
        option, _, fault = message.partition(": ")
        if fault == "expected one argument":
            message = self._explain_no_value(option)
        raise UsageError(advise(message, f"{self.prog} --help"))

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse words. Raises: UsageError naming every word that is unknown."""
        self._words = list(args or ())
        # What is missing is no news where an option was mistyped.
        mistyped = [
            word
            for word in itertools.takewhile(lambda word: word != "--", self._words)
            if self._is_mistyped(word.partition("=")[0])
        ]
        if mistyped:
            self._refuse(mistyped)
        options, unknown = self.parse_known_args(args, namespace)
        options.started = time.monotonic()
        if unknown:
            self._refuse(unknown)
        return options

    def format_help(self) -> str:
        # What belongs to every command comes last.
        if self.general in self._action_groups:
            self._action_groups.remove(self.general)
            self._action_groups.append(self.general)
        return super().format_help()

    def _is_mistyped(self, option: str) -> bool:
        known = self._option_string_actions
        if option in known:
            return False
        # A word such as -src may also be the value of the option before it; -5GB is.
        return bool(re.match("--[a-z]", option)) or (option[:1] == "-" and f"-{option}" in known)

    def _refuse(self, unknown: Sequence[str]) -> NoReturn:
        """Name each unknown word, and how the command is written where no option is alike."""
        faults = list(map(self._explain_unknown, unknown))
        if not all(fault.endswith("?") for fault in faults):
            faults.append(f"expected `{self.usage}`")
        self.error("; ".join(faults))

    def _explain_unknown(self, word: str) -> str:
        option = word.partition("=")[0]
        if not option.startswith("-"):
            return f"unexpected argument {word!r}"
        return f"unknown option {option}{did_you_mean(option, self._option_string_actions)}"

    def _explain_no_value(self, option: str) -> str:
        """Say that an option has no value, and how one that begins with a hyphen is written."""
        spelt = option.split("/")
        for word, following in itertools.pairwise(self._words):
            if word in spelt and following not in self._option_string_actions:
                return f"{word} needs a value; one with a hyphen is written {word}={following}"
        return f"{spelt[-1]} needs a value"

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None and value not in action.choices:
            choices = [str(choice) for choice in action.choices]
            hint = did_you_mean(str(value), choices)
            raise argparse.ArgumentError(
                action, f"{value!r} is unknown{hint} (expected {', '.join(choices)})"
            )


def not_empty(text: str) -> str:
    # To Python an empty path is the current folder; to the user it is a variable left unset.
    if not text:
        raise argparse.ArgumentTypeError("expected a value, found an empty text")
    return text


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return `; did you mean …?` for the known word that is closest, or nothing."""
    from difflib import get_close_matches

    names = {_simplify(name): name for name in known if len(name) > 2}
    meant = _SYNONYMS.get(word.lower(), _simplify(word))
    found = get_close_matches(meant, names, n=1, cutoff=_ALIKE)
    return f"; did you mean {names[found[0]]}?" if found else ""


def _simplify(word: str) -> str:
    """Spell as one who does not remember capitals and hyphens, `LLaMA-Factory`."""
    return re.sub(r"(?<=\w)[-_ ]", "", word.lower())


def advise(text: str, command: str) -> str:
    """Return a line with the command that says more."""
    return f"{text} See `{command}`" if text.endswith("?") else f"{text}; see `{command}`"


class _StoreOnce(argparse.Action):
    """Stores a value, and refuses a second one: which of them was meant?"""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: str | Sequence[Any] | None,
        option_string: str | None = None,
    ) -> None:
        given: set[str] = namespace.__dict__.setdefault("_given", set())
        if self.dest in given:
            parser.error(f"{option_string or self.dest} is given twice; give it once")
        given.add(self.dest)
        setattr(namespace, self.dest, values)


class _Formatter(argparse.HelpFormatter):
    """Wraps paragraphs and leaves indented lines, such as examples, as they are."""

    def __init__(self, prog: str, **options: Any) -> None:
        width = min(_WIDTH, max(_NARROWEST, shutil.get_terminal_size().columns))
        super().__init__(prog, max_help_position=26, width=width - 1, **options)

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        lines: list[str] = []
        for paragraph in text.split("\n\n"):
            if lines:
                lines.append("")
            plain: list[str] = []
            for line in paragraph.splitlines():
                if line.startswith(" "):
                    lines += _wrap(plain, width)
                    plain = []
                    lines.append(line)
                else:
                    plain.append(line)
            lines += _wrap(plain, width)
        return "\n".join(lines)


def _wrap(lines: list[str], width: int) -> list[str]:
    return textwrap.wrap(" ".join(lines), width, break_long_words=False, break_on_hyphens=False)
