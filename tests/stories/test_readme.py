"""The README says nothing that is not there: commands parse, files and names exist."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

import blockexpand
from blockexpand.cli.commands import COMMANDS

REPOSITORY = Path(__file__).resolve().parents[2]
DOCUMENTS = sorted([REPOSITORY / "README.md", *(REPOSITORY / "docs").glob("*.md")])


def commands(document: Path) -> list[str]:
    blocks = re.findall(r"^```(?:bash)?\n(.*?)^```", document.read_text(), re.DOTALL | re.MULTILINE)
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    return [line.removeprefix("$ ") for line in lines]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_command_line_is_one_that_is_understood(document: Path) -> None:
    for line in commands(document):
        if not line.startswith("python -m blockexpand "):
            continue
        # What a shell script fills in is a number somewhere; any will do.
        filled_in = re.sub(r"\$(?:\{.*?\}|\w+)", "1", line)
        words = shlex.split(filled_in, comments=True)[3:]
        command = COMMANDS.get(words[0], COMMANDS["expand"])
        command.make_parser().parse_args(words[1:] if words[0] in COMMANDS else words)


def test_downloads_by_hand_take_whole_repositories() -> None:
    """An option of `hf` takes one value; a second one would be the name of the only file to get."""
    lines = [line for document in DOCUMENTS for line in commands(document)]
    downloads = [line for line in lines if line.startswith("hf download ")]
    assert downloads
    for line in downloads:
        assert re.fullmatch(r"hf download [\w.-]+/[\w.-]+( --\w+ \S+)*", line), line


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_file_that_is_named_is_there(document: Path) -> None:
    text = document.read_text()
    named = set(re.findall(r"(?<![\w/])(?:scripts|tests|docs)/[\w./-]*\w\.\w+", text))
    linked = set(re.findall(r"\]\((?!https?:|#)([^)#]+)\)", text))
    assert all((REPOSITORY / name).is_file() for name in named), named
    assert all((document.parent / name).exists() for name in linked), linked


def test_the_architecture_names_every_package_and_only_modules_that_there_are() -> None:
    text = (REPOSITORY / "docs" / "ARCHITECTURE.md").read_text()
    package = REPOSITORY / "blockexpand"
    named = set(re.findall(r"`((?:\w+/)+(?:\w+\.py)?)`", text))
    assert len(named) > 20
    for name in named:
        assert any((root / name).exists() for root in (package, REPOSITORY)), name
    floors = text.partition("```")[2].partition("```")[0]
    modules = {path.stem for path in package.iterdir() if (path / "__init__.py").exists()}
    assert modules <= set(re.findall(r"\w+", floors))


def test_every_option_of_the_readme_exists() -> None:
    parsers = [command.make_parser() for command in COMMANDS.values()]
    known = {word for parser in parsers for a in parser._actions for word in a.option_strings}
    script_options = {"--mergekit", "--files", "--write", "--base", "--quiet"}
    # The options of the scripts stand on lines that name a script.
    lines = (REPOSITORY / "README.md").read_text().splitlines()
    used = {
        option
        for line in lines
        if "scripts/" not in line
        for option in re.findall(r"(?<![\w-])--[a-z][a-z-]+", line)
    }
    assert used <= known | script_options


def test_every_name_of_the_package_that_the_readme_uses_exists() -> None:
    text = (REPOSITORY / "README.md").read_text()
    names = set(re.findall(r"\bblockexpand\.([a-zA-Z_]+)\b(?!\.)", text))
    assert names
    assert all(hasattr(blockexpand, name) for name in names), names
