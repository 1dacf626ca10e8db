"""The journal: what it holds survives torn lines, and it never claims what it was not told."""

from __future__ import annotations

import zlib
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blockexpand.errors import TransferError
from blockexpand.fs.journal import append_journal, merge, read_journal, remove_journal, subtract

# Written by hand: a line is its numbers, a space and their CRC-32, of "0 4096" and "8192 9000".
FIRST = b"0 4096 " + b"%08x" % zlib.crc32(b"0 4096")
SECOND = b"8192 9000 20000 20001 " + b"%08x" % zlib.crc32(b"8192 9000 20000 20001")


def test_no_journal_means_nothing_is_done(tmp_path: Path) -> None:
    assert read_journal(tmp_path / "none") == []


def test_a_journal_is_read_as_it_was_written(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    append_journal(path, [(0, 4096)])
    append_journal(path, [(8192, 9000), (20000, 20001)])
    assert [line for line in path.read_bytes().split(b"\n") if line] == [FIRST, SECOND]
    assert read_journal(path) == [(0, 4096), (8192, 9000), (20000, 20001)]


@pytest.mark.parametrize("cut", range(len(SECOND)))
def test_a_torn_line_is_no_line_and_does_not_spoil_the_next(cut: int, tmp_path: Path) -> None:
    path = tmp_path / "journal"
    path.write_bytes(b"\n" + FIRST + b"\n\n" + SECOND[:cut])
    assert read_journal(path) == [(0, 4096)]
    append_journal(path, [(5, 6)])
    assert read_journal(path) == [(0, 4096), (5, 6)]


@pytest.mark.parametrize("at", range(len(FIRST)))
def test_a_damaged_line_is_no_line(at: int, tmp_path: Path) -> None:
    path = tmp_path / "journal"
    damaged = FIRST[:at] + bytes([FIRST[at] ^ 1]) + FIRST[at + 1 :]
    path.write_bytes(b"\n" + damaged + b"\n\n" + SECOND + b"\n")
    assert read_journal(path) == [(8192, 9000), (20000, 20001)]


@pytest.mark.parametrize("data", [b"", b"\n\n\n", b"\xff" * 100, b"\0" * 100, b"x y 00000000\n"])
def test_what_is_no_journal_says_nothing(data: bytes, tmp_path: Path) -> None:
    path = tmp_path / "journal"
    path.write_bytes(data)
    assert read_journal(path) == []


def test_a_journal_that_cannot_be_read_is_not_taken_for_none(tmp_path: Path) -> None:
    with pytest.raises(TransferError, match="cannot read"):
        read_journal(tmp_path)


def test_a_journal_is_removed_whether_it_is_there_or_not(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    append_journal(path, [(0, 1)])
    remove_journal(path)
    assert not path.exists()
    remove_journal(path)


RANGES = st.lists(
    st.tuples(st.integers(0, 60), st.integers(0, 20)).map(lambda pair: (pair[0], sum(pair))),
    max_size=8,
)


def numbers(ranges: list[tuple[int, int]]) -> set[int]:
    return {number for start, end in ranges for number in range(start, end)}


@given(RANGES)
def test_merging_keeps_the_bytes_and_leaves_no_two_that_touch(
    ranges: list[tuple[int, int]],
) -> None:
    merged = merge(ranges)
    assert numbers(merged) == numbers(ranges)
    assert all(start < end for start, end in merged)
    assert all(one[1] < other[0] for one, other in pairwise(merged))


@given(RANGES, RANGES)
def test_subtracting_leaves_what_is_not_done_in_order(
    ranges: list[tuple[int, int]], done: list[tuple[int, int]]
) -> None:
    ranges = merge(ranges)
    left = subtract(ranges, done)
    assert numbers(left) == numbers(ranges) - numbers(done)
    assert left == sorted(left)
    assert all(start < end for start, end in left)
