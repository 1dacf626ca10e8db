"""Anybody's text as Markdown that shows it and does nothing: no link, no tag, no end of a block."""

from __future__ import annotations

import re

_SPECIAL = re.compile(r"[\\`*_{}\[\]()#+!|~>$]|(?<=\w):(?=//)")


def escape(text: str) -> str:
    """Return one line that a page shows as it is."""
    line = " ".join(text.split())
    return _SPECIAL.sub(r"\\\g<0>", line).replace("&", "&amp;").replace("<", "&lt;")


def code(text: str) -> str:
    """Return an inline code span of one line."""
    line = " ".join(text.split()) or " "
    fence = _longer_than_any(line, 1)
    pad = " " if line.startswith("`") or line.endswith("`") else ""
    return f"{fence}{pad}{line}{pad}{fence}"


def block(text: str, language: str = "") -> str:
    """Return a fenced block of code."""
    fence = _longer_than_any(text, 3)
    return f"{fence}{language}\n{text.rstrip()}\n{fence}"


def fold(summary: str, content: str) -> str:
    """Return what is shown when a reader opens it; both are Markdown."""
    return f"<details>\n<summary>{summary}</summary>\n\n{content}\n\n</details>"


def _longer_than_any(text: str, least: int) -> str:
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    return "`" * max(least, longest + 1)
