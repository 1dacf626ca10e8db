from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import fuzz_headers
import header_grammar
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from older import is_older

from blockexpand.formats.safetensors import Header

# Its verdict is that of the current library: older ones knew fewer dtypes, and took other headers.
pytestmark = pytest.mark.skipif(
    is_older("safetensors", (0, 8)), reason="the verdict is that of safetensors 0.8"
)

SCRIPT = Path(fuzz_headers.__file__).resolve()
TENSOR = '"dtype":"U8","shape":[1],"data_offsets":[0,1]'


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz") / "file.safetensors"


def difference(header: str | bytes, data: bytes, path: Path) -> str | None:
    header = header.encode("utf-8", "surrogatepass") if isinstance(header, str) else header
    content = len(header).to_bytes(8, "little") + header + data
    return fuzz_headers.compare(content, path, fuzz_headers.Summary())


def test_mutated_files_get_the_verdict_of_the_library(tmp_path: Path) -> None:
    summary = fuzz_headers.fuzz(files=20_000, seconds=20, seed=1, folder=tmp_path)
    assert summary.differences == []
    assert summary.files > 1000
    assert 0.1 < summary.valid / summary.files < 0.9
    assert summary.slowest_seconds < 1
    assert summary.memory_growth_nbytes < 200_000_000


def test_files_of_the_grammar_get_the_verdict_of_the_library(tmp_path: Path) -> None:
    summary = fuzz_headers.fuzz(files=8_000, seconds=20, seed=1, folder=tmp_path, structured=True)
    assert summary.differences == []
    assert 0.2 < summary.valid / summary.files < 0.8
    # Every kind of change is made, and nearly every one has forms on both sides.
    for kind in header_grammar.KINDS:
        assert summary.kinds[f"{kind}, refused"] > 20 and summary.kinds[f"{kind}, valid"] > 0, kind


@pytest.mark.timeout(120)
def test_every_heavy_header_gets_the_verdict_of_the_library(
    tmp_path: Path, scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fuzz_headers, "HEAVY_EVERY", 1)
    assert fuzz_headers.fuzz(files=60, seconds=None, seed=1, folder=tmp_path).differences == []


def test_differences_are_found_and_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def always_valid(text: bytes, file_nbytes: int) -> Header:
        return Header(entries=(), metadata=None, data_start=8 + len(text))

    monkeypatch.setattr(fuzz_headers, "parse_header", always_valid)
    summary = fuzz_headers.fuzz(
        files=1000, seconds=None, seed=3, folder=tmp_path, most_differences=30
    )
    assert len(summary.differences) == 30
    assert any("accepts what the library refuses" in line for line in summary.differences)
    assert any("read different tensors" in line for line in summary.differences)
    saved = sorted(tmp_path.iterdir())
    assert len(saved) == 30
    monkeypatch.undo()
    for path in saved:
        assert fuzz_headers.compare(path.read_bytes(), tmp_path / "x", summary) is None


def test_script_runs_anywhere_and_prints_its_counts(tmp_path: Path) -> None:
    command = [sys.executable, str(SCRIPT), "--files", "40", "--seed", "2"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert re.fullmatch(
        r"40 files compared \(\d+ valid, \d+ refused\), seed 2: 0 differences, "
        r"slowest 0\.\d{3} s, memory grew by \d+ MB\n",
        done.stdout,
    )
    assert list(tmp_path.iterdir()) == []


numbers = st.from_regex(
    r"-?(0|[1-9][0-9]{0,330})(\.[0-9]{1,40})?([eE][+-]?[0-9]{1,11})?", fullmatch=True
)
near_the_limit = st.builds(
    "{}{}.{}e{}".format,
    st.sampled_from(["1797693134862315", "17976931348623157", "17976931348623159"]),
    st.from_regex("[0-9]{0,6}", fullmatch=True),
    st.from_regex("[0-9]{1,8}", fullmatch=True),
    st.integers(285, 296),
)


@settings(deadline=None)
@given(number=numbers | near_the_limit)
@example(number="18446744073709551616.3")
@example(number="1.79769313486231580e308")
@example(number="0.00000000000000000000000017976931348623158e333")
@example(number="0e99999999999")
@example(number="1e-99999999999")
@example(number="1e2147483648")
def test_numbers_get_the_verdict_of_the_library(number: str, scratch: Path) -> None:
    assert difference(f'{{"a":{{{TENSOR},"x":{number}}}}}', b"\1", scratch) is None
    assert difference(f'{{"a":["U8",[{number}],[0,1]]}}', b"\1", scratch) is None


pieces = st.sampled_from(
    [
        "a",
        "\\",
        "\\\\",
        '\\"',
        "\\u",
        "\\ud800",
        "\\udc00",
        "\\uDBFF\\uDFFF",
        "u0041",
        "\\n",
        "ü",
        "[",
        "{",
        "\n",
        "\x7f",
        "\ufeff",
        "\ud800",
        "😀",
        "",
    ]
)


@settings(deadline=None)
@given(parts=st.lists(pieces | st.text(max_size=3), max_size=6))
def test_strings_get_the_verdict_of_the_library(parts: list[str], scratch: Path) -> None:
    text = "".join(parts)
    assert difference(f'{{"{text}":{{{TENSOR}}}}}', b"\1", scratch) is None
    assert (
        difference(f'{{"__metadata__":{{"a":"{text}"}},"a":{{{TENSOR}}}}}', b"\1", scratch) is None
    )


tokens = st.sampled_from(
    [
        "{",
        "}",
        "[",
        "]",
        ",",
        ":",
        " ",
        '"a"',
        '"dtype"',
        '"U8"',
        '"shape"',
        '"data_offsets"',
        "0",
        "1",
        "-",
        "null",
        '"__metadata__"',
        "{" + TENSOR + "}",
        '"a":',
        '"b":',
        "{}",
        "[]",
        "[0,1]",
    ]
)


@settings(deadline=None)
@given(parts=st.lists(tokens, max_size=12), data=st.binary(max_size=2))
@example(parts=["{}"], data=b"")
def test_token_soup_gets_the_verdict_of_the_library(
    parts: list[str], data: bytes, scratch: Path
) -> None:
    assert difference("".join(parts), data, scratch) is None
    assert difference("{" + "".join(parts) + "}", data, scratch) is None


@settings(deadline=None)
@given(header=st.binary(max_size=40))
def test_bytes_get_the_verdict_of_the_library(header: bytes, scratch: Path) -> None:
    assert difference(header, b"", scratch) is None
