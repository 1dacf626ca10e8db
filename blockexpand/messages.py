"""How values and lists are spelt in a message, on one line, also a stranger's. Text only."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence

_SHOWN_CHARACTERS = 200

_SHOWN_VALUES = 16


def show(value: object) -> str:
    """Spell a decoded value on one line of limited length, for a message."""
    if type(value) is str:
        return repr(value) if len(value) <= _SHOWN_CHARACTERS else f"{value[:_SHOWN_CHARACTERS]!r}…"
    if type(value) is list:
        if len(value) > _SHOWN_VALUES:
            return f"a list of {len(value)} values"
        shown = ["a list" if type(item) is list else show(item) for item in value]
        return f"[{', '.join(shown)}]"
    if type(value) in (tuple, dict):
        return "an object"
    if value is None or type(value) is bool:
        return json.dumps(value)
    return show_text(str(value))


def printable(text: str) -> str:
    """Spell control characters out, so that a stranger's name stays on its line of a terminal."""
    if text.isprintable():
        return text
    return "".join(
        character
        if character.isprintable()
        else character.encode("unicode_escape", "backslashreplace").decode()
        for character in text
    )


def join_lines(lines: Iterable[str]) -> str:
    """Join lines that may hold a stranger's names, each of which stays one line."""
    return "\n".join(map(printable, lines))


def show_text(text: str) -> str:
    return text if len(text) <= _SHOWN_CHARACTERS else f"{text[:_SHOWN_CHARACTERS]}…"


def one_line(error: object, limit: int = 300) -> str:
    """Spell what another library says, often on many lines, on one line of limited length."""
    return " ".join(str(error).split())[:limit]


def join(values: Iterable[object]) -> str:
    return ", ".join(map(str, values))


def either(words: Sequence[str]) -> str:
    """Spell a choice: `a, b or c`."""
    return " or ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def and_more(values: Sequence[str], most: int = 1, separator: str = ", ") -> str:
    """Name the first `most` values, and count the others: `a, b and 3 more`."""
    shown = separator.join(values[:most])
    more = len(values) - most
    ending = " " if separator == ", " else separator
    return shown if more <= 0 else f"{shown}{ending}and {more} more"


def format_size(nbytes: int) -> str:
    """Return bytes in decimal units, three digits: `14.5 GB`."""
    size = float(nbytes)
    for unit in ("B", "kB", "MB", "GB"):
        if size < 999.5:
            return f"{size:.0f} {unit}" if unit == "B" or size >= 99.95 else f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} TB"
