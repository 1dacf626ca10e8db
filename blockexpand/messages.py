"""How values that may be a stranger's are spelt in a message, on one line. Text only."""

from __future__ import annotations

import json

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


def show_text(text: str) -> str:
    return text if len(text) <= _SHOWN_CHARACTERS else f"{text[:_SHOWN_CHARACTERS]}…"
