"""Names from outside: what joins to a folder and stays below it, and what does not."""

from __future__ import annotations

from pathlib import PurePosixPath, PureWindowsPath

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blockexpand.formats.names import explain_bad_name


@pytest.mark.parametrize(
    "name",
    [
        "config.json",
        "a/b/c.json",
        "additional_chat_templates/tool[use].jinja",
        "模型.txt",
        "with space",
        "..a",
        "a..b",
        "...",
        ".gitattributes",
        "x" * 255,
        "c",
    ],
)
def test_a_relative_name_is_taken(name: str) -> None:
    assert explain_bad_name(name) is None


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("", "empty"),
        ("/abs.json", "absolute"),
        ("//host/share", "absolute"),
        ("C:/x", "absolute"),
        ("c:x", "absolute"),
        ("a//b", "empty part"),
        ("a/", "empty part"),
        (".", "'.'"),
        ("..", "'.'"),
        ("./a", "'.'"),
        ("a/../../b", "'.'"),
        ("sub\\..\\x.json", "backslash"),
        ("\\\\host\\x", "backslash"),
        ("a\0b", "control"),
        ("zz\nout: verified", "control"),
        ("a\x1b[2J", "control"),
        ("a\x7f", "control"),
        ("a\x85", "control"),
        ("x" * 256, "long"),
        ("é" * 128, "long"),
        ("/".join("x" * 200 for _ in range(12)), "long"),
        ("\udcff", "UTF-8"),
        (None, "no text"),
        (7, "no text"),
        (["a"], "no text"),
        ({}, "no text"),
    ],
)
def test_what_is_no_relative_name(name: object, reason: str) -> None:
    assert reason in str(explain_bad_name(name))


def test_a_name_on_the_disk_need_be_no_utf8() -> None:
    assert explain_bad_name("caf\udce9", on_disk=True) is None
    assert explain_bad_name("caf\ud800", on_disk=True) == "is not valid UTF-8"


@given(st.text())
def test_what_is_taken_stays_below_its_folder(name: str) -> None:
    if explain_bad_name(name) is None:
        for kind, root in ((PurePosixPath, "/root/of"), (PureWindowsPath, "C:\\root\\of")):
            joined = kind(root) / name
            assert joined.is_relative_to(root) and ".." not in joined.parts
            assert joined != kind(root)
