"""The YAML block of a model card ⇄ plain fields. A stranger's card may say anything in it. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

_MOST_CARD_NBYTES = 1 << 20

_MOST_FIELD_CHARACTERS = 1 << 12

KEPT_FIELDS = ("license", "license_name", "license_link", "language")


def read_front_matter(card: bytes | None) -> dict[str, Any]:
    """Return the plain fields of a card's YAML block; of what is broken, nothing.

    Each field is parsed by itself, so that neither a broken nor a huge one hides another.
    """
    text = (card or b"")[:_MOST_CARD_NBYTES].decode("utf-8-sig", "replace").replace("\r\n", "\n")
    match = re.match(r"---[ \t]*\n(.*?)\n---[ \t]*(\n|$)", text, re.DOTALL)
    # A field begins in the first column; its value, also a list, does not.
    blocks = re.split(r"\n(?=[^\s#-])", match.group(1)) if match else ()
    named = {block.partition(":")[0].strip().strip("\"'"): block for block in blocks}
    wanted = (*KEPT_FIELDS, "base_model", "pipeline_tag")
    values = {name: _parse_field(named[name], name) for name in wanted if name in named}
    return {name: value for name, value in values.items() if value is not None}


def _parse_field(block: str, name: str) -> str | list[str] | None:
    """Parse one field; None for what is no string and no list of strings."""
    import yaml

    if len(block) > _MOST_FIELD_CHARACTERS:
        return None
    fields: Any = None
    with suppress(yaml.YAMLError, ValueError, RecursionError):
        # Every scalar stays text: to a safe loader Norwegian (`no`) is a boolean, and its merges
        # (`<<`) can be nested until the memory is full.
        fields = yaml.load(block, Loader=yaml.BaseLoader)
    value = fields.get(name) if isinstance(fields, dict) else None
    items = value if isinstance(value, list) else [value]
    if not items or any(not isinstance(item, str) or item in _NO_TEXT for item in items):
        return None
    return value


_NO_TEXT = ("", "~", "null")


def render_front_matter(fields: Mapping[str, Any]) -> str:
    """Return the block with its two lines of hyphens; fields that are None are left out."""
    import yaml

    known = {name: value for name, value in fields.items() if value is not None}
    text = yaml.safe_dump(known, sort_keys=False, allow_unicode=True)
    return f"---\n{text}---\n"
