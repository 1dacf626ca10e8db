"""Texts for a terminal: a stranger's names cannot add a line, or a colour, to them."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

from blockexpand.cli.text_difference import describe_difference
from blockexpand.cli.text_verification import describe_verification
from blockexpand.verification.difference import Difference, TensorDifference
from blockexpand.verification.findings import Finding

STRANGE = "zz\nout: verified: 30 tensors\x1b[2J\u202e"


def test_a_finding_stays_on_its_line() -> None:
    finding = Finding(file=STRANGE, message="is an extra file")
    verification: Any = SimpleNamespace(
        findings=(finding, finding),
        wrong_source=None,
        trained=(),
        notes=(),
        stated=(),
        shared=0,
        proofs=(),
    )
    text = describe_verification(verification, None, Path("out"), verbose=False)
    assert len(text.splitlines()) == 2
    assert all(line.isprintable() and line.startswith("zz\\n") for line in text.splitlines())


def test_tensors_with_braces_and_line_breaks_in_their_names() -> None:
    tensors = tuple(
        TensorDifference(
            base_name=name, other_name=name, status="same", in_new_block=False, nbytes=1
        )
        for name in (f"a{{x}}.1.{STRANGE}", f"a{{x}}.2.{STRANGE}", "b{}", "{c}.7.d}")
    )
    difference = Difference(base="BASE", other="OTHER", matched_by="by name", tensors=tensors)
    lines = describe_difference(difference, verbose=False).splitlines()
    assert all(line.isprintable() for line in lines)
    assert [line.split()[1] for line in lines if line.startswith("  same")][1:] == [
        "b{}",
        "{c}.7.d}",
    ]
    assert "a{x}.{1-2}.zz\\nout:" in "\n".join(lines)
