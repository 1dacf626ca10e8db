"""What tells that a file changed between two looks, also to one who sets its times back."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from blockexpand.fs.reading import FileStat, describe_file, find_change


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "file"
    path.write_bytes(b"weights")
    return path


def look(path: Path) -> FileStat:
    return describe_file(path.name, path.stat())


def set_back(path: Path, change: Callable[[Path], object]) -> None:
    status = path.stat()
    time.sleep(0.02)
    change(path)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def replace(path: Path) -> None:
    other = path.with_name("new")
    other.write_bytes(b"wEights")
    other.rename(path)


def test_nothing_that_only_reads_is_a_change(file: Path) -> None:
    before = look(file)
    file.read_bytes()
    assert find_change(before, look(file)) is None


@pytest.mark.parametrize("change", [lambda path: path.write_bytes(b"wEights"), replace])
def test_a_change_is_found_though_size_and_time_of_modification_are_the_same(
    change: Callable[[Path], object], file: Path
) -> None:
    before = look(file)
    set_back(file, change)
    after = look(file)
    assert (before.nbytes, before.mtime_ns) == (after.nbytes, after.mtime_ns)
    assert find_change(before, after) == (
        "it was written to, replaced or given other permissions meanwhile"
    )


def test_size_and_time_are_told_first(file: Path) -> None:
    before = look(file)
    file.write_bytes(b"more weights")
    assert find_change(before, look(file)) == "expected 7 bytes, found 12"
    file.write_bytes(b"wEights")
    assert find_change(before, look(file)) == "its time of change is another"


def test_a_link_more_or_less_is_no_change(file: Path) -> None:
    """As runs with --hardlink make them, of the same source at the same time."""
    before = look(file)
    link = file.with_name("link")
    link.hardlink_to(file)
    linked = look(file)
    assert find_change(before, linked) is None
    time.sleep(0.02)
    link.unlink()
    assert find_change(linked, look(file)) is None


def test_another_file_is_found_also_where_there_are_links(file: Path) -> None:
    file.with_name("link").hardlink_to(file)
    before = look(file)
    set_back(file, replace)
    assert find_change(before, look(file)) == "it is another file of the same name"


def test_a_file_that_is_yet_to_be_fetched_is_known_by_size_and_time(file: Path) -> None:
    status = file.stat()
    planned = FileStat(name="file", nbytes=7, mtime_ns=status.st_mtime_ns)
    assert find_change(planned, look(file)) is None
