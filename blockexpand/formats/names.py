"""A file's name that comes from outside: accepted as it is, or refused with the reason. Text only.

The one place that judges names: listings of the Hub and of folders, the index, a manifest. What is
accepted joins to a folder and stays below it, on every system, and prints on one line.
"""

from __future__ import annotations

import re

# What Linux file systems hold of one name, and well below what one path may have.
_MOST_PART_NBYTES = 255
_MOST_NBYTES = 2048

# Unicode's category Cc.
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")

_DRIVE = re.compile(r"[A-Za-z]:")


def explain_bad_name(name: object, *, on_disk: bool = False) -> str | None:
    """Return why this is no relative, `/`-separated name of a file; None where it is one.

    A name found `on_disk` may hold bytes that are no UTF-8, as `os.fsdecode` spells them.
    """
    if type(name) is not str:
        return "is no text"
    if not name:
        return "is empty"
    try:
        encoded = name.encode("utf-8", "surrogateescape" if on_disk else "strict")
    except UnicodeEncodeError:
        return "is not valid UTF-8"
    if _CONTROL.search(name):
        return "holds a control character"
    if "\\" in name:
        return "holds a backslash"
    parts = name.split("/")
    if not parts[0] or _DRIVE.match(name):
        return "is absolute"
    if "" in parts or "." in parts or ".." in parts:
        return "has an empty part, '.' or '..'"
    longest = max(map(len, encoded.split(b"/")))
    if len(encoded) > _MOST_NBYTES or longest > _MOST_PART_NBYTES:
        return f"is too long ({len(encoded)} bytes)"
    return None
