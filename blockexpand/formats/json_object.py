"""config.json and the index: strict reading, and edits that leave all other bytes alone.

Text is edited, never re-rendered: key order, white space, the spelling of numbers (`1e-05`,
`1E-5`) and escapes stay, since other readers of a config depend on them. Opens no files.
"""

from __future__ import annotations

import enum
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, NamedTuple, TypeAlias

from ..errors import CheckpointError
from ..messages import show
from .serde_json import JsonError, refuse_nesting_and_half_surrogates

JsonObject: TypeAlias = dict[str, Any]

JsonValue: TypeAlias = "bool | int | float | str | Sequence[JsonValue] | dict[str, Any] | None"


class _Removal(enum.Enum):
    REMOVE = enum.auto()


REMOVE: Final = _Removal.REMOVE

# An index of a million tensors has 100 MB.
MOST_JSON_NBYTES = 1 << 28

_MAX_DIGITS = 1000  # Python converts longer integers slowly, or not at all

_BOM = b"\xef\xbb\xbf"

_SPACE = re.compile(r"[ \t\n\r]*")

# A comma, a key and a value that is no list or object, neither with an escape.
_PLAIN_MEMBER = re.compile(
    r',?[ \t\n\r]*("[^"\\]*")[ \t\n\r]*:[ \t\n\r]*("[^"\\]*"|[-+.0-9A-Za-z]+)'
)

_FIRST_COMMA = re.compile(r'\[[ \t]*(?:"[^"\\]*"|[^",]*)(,[ \t]*)')

_DECODER = json.JSONDecoder()


@dataclass(frozen=True, slots=True, kw_only=True)
class JsonEdit:
    """Set the member at `path` to `value`, or remove it with the value `REMOVE`.

    A missing member is added as the last one of its object; missing objects on the path are made.
    Removing a missing member does nothing.
    """

    path: tuple[str, ...]
    value: JsonValue | Literal[_Removal.REMOVE]


class _Member(NamedTuple):
    """A member of an object by its places in the text: `"key"`, colon, value."""

    key: str
    key_start: int
    key_end: int
    start: int
    end: int


class _Style(NamedTuple):
    """How a file spells JSON; `indent` is None where it is all on one line."""

    indent: str | None
    line_break: str
    comma: str
    colon: str
    ascii_only: bool


def parse_json_object(data: bytes, file: str) -> JsonObject:
    """Parse a JSON object; `file` is what messages call it. NaN and Infinity are allowed.

    Raises:
        CheckpointError: no UTF-8, no JSON, no object, a duplicate key, or too deep nesting.
    """
    if data.startswith(_BOM):
        raise CheckpointError(
            f"{file}: line 1 column 1: a byte order mark; expected '{{'; save it as UTF-8 without"
        )
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        column = error.start - data.rfind(b"\n", 0, error.start)
        raise CheckpointError(
            f"{file}: line {line} column {column}: no UTF-8 ({error.reason})"
        ) from None
    try:
        refuse_nesting_and_half_surrogates(text)
        document = json.loads(text, object_pairs_hook=_unique_members, parse_int=_parse_integer)
    except json.JSONDecodeError as error:
        comment = text[error.pos :].startswith(("//", "/*", "#"))
        fact = "a comment, which JSON does not have" if comment else f"no JSON ({error.msg})"
        raise CheckpointError(f"{file}: line {error.lineno} column {error.colno}: {fact}") from None
    except JsonError as error:
        raise CheckpointError(f"{file}: {error}") from None
    if type(document) is not dict:
        raise CheckpointError(f"{file}: expected a JSON object, found {show(document)}")
    return document


def edit_json_object(data: bytes, edits: Sequence[JsonEdit]) -> bytes:
    """Apply the edits in order to a document that `parse_json_object` accepts.

    A value that is already there, and everything that no edit names, keeps its bytes.

    Raises:
        CheckpointError: a path leads through a value that is no object.
    """
    text = data.decode("utf-8")
    for edit in edits:
        text = _edit(text, edit)
    return text.encode("utf-8")


def _unique_members(pairs: list[tuple[str, Any]]) -> JsonObject:
    members = dict(pairs)
    if len(members) != len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise JsonError(f"the key {show(key)} occurs twice in one object")
            seen.add(key)
    return members


def _parse_integer(text: str) -> int:
    if len(text) > _MAX_DIGITS:
        raise JsonError(f"a number of {len(text)} digits; expected at most {_MAX_DIGITS}")
    return int(text)


def _edit(text: str, edit: JsonEdit) -> str:
    start = _skip_space(text, 0)
    style = _find_style(text, start)
    for depth, key in enumerate(edit.path):
        if text[start] != "{":
            raise CheckpointError(
                f"cannot set {show('.'.join(edit.path))}: expected "
                f"{show('.'.join(edit.path[:depth]))} to be an object, found "
                f"{show(_DECODER.raw_decode(text, start)[0])}"
            )
        is_known_missing = "\\" not in text and f'"{key}"' not in text
        if is_known_missing and edit.value is REMOVE:
            return text
        members = _scan_members(text, start, None if is_known_missing else key)
        if members and "\n" not in text[start : members[0].key_start]:
            style = style._replace(indent=None)  # on one line, though the file may be indented
        place = next((i for i, member in enumerate(members) if member.key == key), None)
        below = edit.path[depth + 1 :]
        if place is not None and below:
            start = members[place].start
        elif edit.value is REMOVE:
            return text if place is None else _remove(text, members, place)
        elif place is not None:
            return _replace(text, members[place], edit.value, style)
        else:
            value = edit.value
            for missing in reversed(below):
                value = {missing: value}
            return _insert(text, start, members, key, value, style)
    raise ValueError("an edit needs a path")


def _replace(text: str, member: _Member, value: JsonValue, style: _Style) -> str:
    old = text[member.start : member.end]
    if json.dumps(json.loads(old)) == json.dumps(value):
        return text
    if old[0] in "[{" and len(old) > 2 and "\n" not in old:
        # Somebody wrote this one on one line, though the file may be indented.
        comma = _FIRST_COMMA.match(old)
        style = style._replace(indent=None, comma=comma[1] if comma else style.comma)
    rendered = _render(value, style, _indentation(text, member.key_start))
    return text[: member.start] + rendered + text[member.end :]


def _insert(
    text: str,
    start: int,
    members: Sequence[_Member],
    key: str,
    value: JsonValue,
    style: _Style,
) -> str:
    quoted = json.dumps(key, ensure_ascii=style.ascii_only)
    if not members:
        # Only white space is between the braces.
        end = text.index("}", start)
        outer = _indentation(text, start)
        inner = "" if style.indent is None else outer + style.indent
        rendered = f"{quoted}{style.colon}{_render(value, style, inner)}"
        if style.indent is not None:
            rendered = f"{style.line_break}{inner}{rendered}{style.line_break}{outer}"
        return text[: start + 1] + rendered + text[end:]
    member = members[-1]
    if len(members) > 1:
        separator = text[members[-2].end : member.key_start]
    else:
        opening = text[start + 1 : member.key_start]
        separator = f",{opening}" if opening else style.comma
    colon = text[member.key_end : member.start]
    rendered = _render(value, style, _indentation(text, member.key_start))
    return f"{text[: member.end]}{separator}{quoted}{colon}{rendered}{text[member.end :]}"


def _remove(text: str, members: Sequence[_Member], place: int) -> str:
    if len(members) == 1:
        opening = text.rindex("{", 0, members[0].key_start)
        return text[: opening + 1] + text[_skip_space(text, members[0].end) :]
    if place == len(members) - 1:
        return text[: members[place - 1].end] + text[members[place].end :]
    return text[: members[place].key_start] + text[members[place + 1].key_start :]


def _render(value: JsonValue, style: _Style, indentation: str) -> str:
    """Spell a value that begins on a line of this indentation."""
    rendered = json.dumps(
        value,
        ensure_ascii=style.ascii_only,
        indent=style.indent,
        separators=(style.comma if style.indent is None else ",", style.colon),
    )
    return rendered.replace("\n", style.line_break + indentation)


def _scan_members(
    text: str, start: int, until: str | None = None, most: int | None = None
) -> list[_Member]:
    """Find the members of the object whose brace opens at `start`, or the first `most` of them.

    What follows the one after the key `until` is left out.
    """
    members: list[_Member] = []
    at = _skip_space(text, start + 1)
    while text[at] != "}" and (most is None or len(members) < most):
        if until is not None and len(members) > 1 and members[-2].key == until:
            break
        if (found := _PLAIN_MEMBER.match(text, at)) is not None:
            # A million members take a second so, and ten by decoding each.
            key_start, key_end = found.start(1), found.end(1)
            key, value_start, value_end = text[key_start + 1 : key_end - 1], *found.span(2)
        else:
            key_start = _skip_space(text, at + 1) if text[at] == "," else at
            key, key_end = _DECODER.raw_decode(text, key_start)
            value_start = _skip_space(text, _skip_space(text, key_end) + 1)
            _, value_end = _DECODER.raw_decode(text, value_start)
        members.append(_Member(key, key_start, key_end, value_start, value_end))
        at = _skip_space(text, value_end)
    return members


def _find_style(text: str, start: int) -> _Style:
    """Learn the style from the document's first member; an empty one gets that of `transformers`
    (indented by two) where it has a line break, and Python's one-line style elsewhere."""
    members = _scan_members(text, start, most=2)
    indent = "  " if "\n" in text else None
    colon = ": "
    if members:
        opening = text[start + 1 : members[0].key_start]
        indent = opening.rpartition("\n")[2] if "\n" in opening else None
        colon = text[members[0].key_end : members[0].start]
    comma = "," if colon == ":" else ", "
    if len(members) > 1:
        separator = text[members[0].end : members[1].key_start]
        comma = comma if "\n" in separator else separator
    line_break = "\r\n" if "\r\n" in text else "\n"
    return _Style(indent, line_break, comma, colon, text.isascii())


def _indentation(text: str, at: int) -> str:
    """Return the white space that the line of this place begins with."""
    line = text.rfind("\n", 0, at) + 1
    return text[line : _SPACE.match(text, line, at).end()]  # type: ignore[union-attr]


def _skip_space(text: str, at: int) -> int:
    return _SPACE.match(text, at).end()  # type: ignore[union-attr]
