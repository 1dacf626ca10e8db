"""The package as those meet it who import it: complete names, and types that a checker can use."""

from __future__ import annotations

import inspect
import os
import subprocess
import sys
from pathlib import Path

import pytest

import blockexpand
from blockexpand import errors

CONSUMER = """
from pathlib import Path

import blockexpand
from blockexpand import BlockExpandError, Expansion, Progress, Verified


def grow(folder: Path) -> Expansion:
    progress = Progress(advance=lambda nbytes: None)
    return blockexpand.expand(folder, "out", new_layers=4, position=[7, 15], progress=progress)


result = grow(Path("model"))
numbers: tuple[int, ...] = result.plan.new_layers
copied: int = result.moved.copied
parameters: int = blockexpand.count_parameters(result.plan).new
found: Verified = blockexpand.verify("model", "out", logits=True)
verification, proof = found
for finding in found.findings:
    message: str = finding.message
if proof is not None:
    tokens: int = proof.tokens
lost: int = len(blockexpand.diff("model", "out").lost)
try:
    blockexpand.merge("recipe.yml", "out")
except BlockExpandError as error:
    print(error)
"""

MISTAKES = {
    'blockexpand.expand("a", "b", new_layers="4")': "arg-type",
    'blockexpand.expand("a", "b", verify_after="logit")': "arg-type",
    'blockexpand.expand("a", "b", reflink="allways")': "arg-type",
    'blockexpand.exapnd("a", "b")': "attr-defined",
    'blockexpand.verify("a", "b").finding': "attr-defined",
}


def check(folder: Path, text: str) -> str:
    (folder / "consumer.py").write_text(text)
    # As whoever has installed it sees it: nothing of this project's own configuration.
    command = [sys.executable, "-m", "mypy", "--strict", "--config-file=", "consumer.py"]
    # An editable installation is found by a hook that type checkers do not run.
    environment = os.environ | {"MYPYPATH": str(Path(inspect.getfile(blockexpand)).parents[1])}
    found = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300
    )
    return found.stdout + found.stderr


@pytest.mark.timeout(600)
def test_a_program_that_uses_it_passes_the_strictest_type_check(tmp_path: Path) -> None:
    pytest.importorskip("mypy")
    assert check(tmp_path, CONSUMER).startswith("Success")
    found = check(tmp_path, "import blockexpand\n" + "\n".join(MISTAKES))
    for line, code in enumerate(MISTAKES.values(), 2):
        assert any(
            said.startswith(f"consumer.py:{line}: ") and said.endswith(f"[{code}]")
            for said in found.splitlines()
        ), (line, found)


def test_every_name_can_be_found_and_loaded() -> None:
    assert set(dir(blockexpand)) == set(blockexpand.__all__)
    for name in blockexpand.__all__:
        assert getattr(blockexpand, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'exapnd'"):
        blockexpand.exapnd  # type: ignore[attr-defined]  # noqa: B018


def test_every_error_is_exported() -> None:
    declared = {name for name, value in vars(errors).items() if inspect.isclass(value)}
    assert declared <= set(blockexpand.__all__)


def test_what_is_seen_by_a_type_checker_is_what_is_loaded() -> None:
    """A name in one of the two lists alone would be found by nobody, or fail when it is used."""
    text = Path(inspect.getfile(blockexpand)).read_text()
    typed = dict(
        (line.split(" as ")[1], line.split("from .")[1].split(" import")[0])
        for line in text.splitlines()
        if line.startswith("    from .") and " as " in line
    )
    assert typed == blockexpand._PLACES


def test_a_finding_of_verify_has_a_name_and_unpacks_as_before(
    tiny_mistral: Path, tmp_path: Path
) -> None:
    blockexpand.expand(tiny_mistral, tmp_path / "out", new_layers=1)
    result = blockexpand.verify(tiny_mistral, tmp_path / "out")
    verification, proof = result
    assert (result.ok, result.findings, proof) == (True, (), None)
    assert verification is result.verification is result[0]
    (tmp_path / "out" / "extra.bin").write_bytes(b"x")
    spoilt = blockexpand.verify(tiny_mistral, tmp_path / "out")
    assert not spoilt.ok and spoilt.findings == spoilt[0].findings != ()
