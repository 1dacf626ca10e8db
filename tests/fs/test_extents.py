"""What two files share on a disk: told where it is certain, never where it is not."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from faults import mounted

from blockexpand.fs import extents
from blockexpand.fs.extents import BlockRange, SharedBytes, find_shared

PAGE = 4096
MIB = 1 << 20


@contextmanager
def opened(*paths: Path) -> Iterator[tuple[int, ...]]:
    fds = tuple(os.open(path, os.O_RDONLY) for path in paths)
    try:
        yield fds
    finally:
        for fd in fds:
            os.close(fd)


def shared_parts(one: Path, other: Path, at: int = 0, there: int = 0) -> list[tuple[int, int]]:
    """Return the parts that two whole files share, from their offsets `at` and `there` on."""
    with opened(one, other) as (fd, other_fd):
        shared = find_shared(fd, other_fd)
        nbytes = min(os.fstat(fd).st_size - at, os.fstat(other_fd).st_size - there)
        return [] if shared is None else list(shared.find(at, there, nbytes))


def covered(parts: list[tuple[int, int]]) -> int:
    return sum(end - start for start, end in parts)


def reflink(one: Path, other: Path) -> None:
    subprocess.run(["cp", "--reflink=always", one, other], check=True)


# The arithmetic, with ranges written by hand.


@pytest.mark.parametrize(
    ("at", "there", "nbytes", "expected"),
    [
        (0, 0, 100, [(0, 10), (10, 20), (30, 40)]),
        (5, 5, 20, [(0, 5), (5, 15)]),
        (12, 12, 4, [(0, 4)]),
        (20, 20, 10, []),
        # The same blocks lie elsewhere in the other file.
        (0, 60, 20, [(0, 10)]),
        (4, 64, 6, [(0, 6)]),
        # Other blocks stand at these offsets.
        (1, 0, 9, []),
        (100, 100, 5, []),
        (0, 0, 0, []),
    ],
)
def test_parts_are_shared_where_both_lie_at_one_address(
    at: int, there: int, nbytes: int, expected: list[tuple[int, int]]
) -> None:
    one = [BlockRange(0, 1000, 10), BlockRange(10, 2000, 10), BlockRange(30, 3000, 15)]
    other = [
        BlockRange(0, 1000, 10),
        BlockRange(10, 2000, 10),
        BlockRange(30, 3000, 10),
        BlockRange(40, 9000, 5),
        BlockRange(60, 1000, 10),
    ]
    assert list(SharedBytes(one, other).find(at, there, nbytes)) == expected


# Hard links.


def test_two_names_of_a_file_share_all_of_it_at_one_offset(tmp_path: Path) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    one.write_bytes(os.urandom(MIB))
    os.link(one, other)
    assert shared_parts(one, other) == [(0, MIB)]
    assert shared_parts(one, other, 0, PAGE) == []


def test_files_of_equal_bytes_share_nothing(tmp_path: Path) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    one.write_bytes(bytes(MIB))
    shutil.copy(one, other)
    assert shared_parts(one, other) == []


def test_an_inode_proves_nothing_where_its_number_may_be_a_servers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = tmp_path / "one"
    one.write_bytes(bytes(MIB))
    # NFS, SMB, Lustre, FUSE, overlay: linux/magic.h
    for kind in (0x6969, 0xFF534D42, 0x0BD00BD0, 0x65735546, 0x794C7630, None):
        monkeypatch.setattr(extents, "_file_system", lambda fd, kind=kind: kind)
        assert shared_parts(one, one) == []


def test_a_system_without_these_calls_shares_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = tmp_path / "one"
    one.write_bytes(bytes(MIB))
    monkeypatch.setattr(extents, "fcntl", None)
    assert shared_parts(one, one) == []


# Real file systems.


@pytest.fixture(params=["xfs", "btrfs"])
def point(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    with mounted(request.param, tmp_path, 512 << 20) as point:
        yield point


@pytest.mark.mount
def test_a_reflink_is_found_and_a_write_ends_it(point: Path) -> None:
    one, other = point / "one", point / "other"
    one.write_bytes(os.urandom(8 * MIB))
    reflink(one, other)
    assert covered(shared_parts(one, other)) == 8 * MIB
    # Not yet on the disk: asking for the blocks has to bring it there.
    with other.open("r+b") as stream:
        stream.seek(3 * MIB + 5)
        stream.write(b"poked")
    parts = shared_parts(one, other)
    assert 8 * MIB - (128 << 10) < covered(parts) < 8 * MIB
    assert all(end <= 3 * MIB or start > 3 * MIB + 5 for start, end in parts)


@pytest.mark.mount
def test_a_mapped_write_ends_it_too(point: Path) -> None:
    import mmap

    one, other = point / "one", point / "other"
    one.write_bytes(os.urandom(MIB))
    reflink(one, other)
    with other.open("r+b") as stream, mmap.mmap(stream.fileno(), 0) as memory:
        memory[MIB // 2] ^= 1
        parts = shared_parts(one, other)
    assert all(end <= MIB // 2 or start > MIB // 2 for start, end in parts)


@pytest.mark.mount
def test_a_part_that_is_shared_at_another_offset_is_found_there(point: Path) -> None:
    one, other = point / "one", point / "other"
    one.write_bytes(os.urandom(4 * MIB))
    command = f"reflink {one} {MIB} {2 * MIB} {MIB}"
    other.write_bytes(os.urandom(3 * MIB))
    subprocess.run(["xfs_io", "-c", command, other], check=True, capture_output=True)
    assert covered(shared_parts(one, other, MIB, 2 * MIB)) == MIB
    assert shared_parts(one, other) == []


def write_compressed(path: Path) -> None:
    subprocess.run(["chattr", "+c", path.parent], check=True)
    path.write_bytes(b"the same again " * (MIB // 5))


def write_inline(path: Path) -> None:
    path.write_bytes(b"x" * 1000)


def reserve(path: Path) -> None:
    with path.open("wb") as stream:
        os.posix_fallocate(stream.fileno(), 0, MIB)


@pytest.mark.mount
@pytest.mark.parametrize("write", [write_compressed, write_inline, reserve])
def test_what_does_not_stand_on_the_disk_as_it_is_read_is_not_certain(
    write: Callable[[Path], None], tmp_path: Path
) -> None:
    with mounted("btrfs", tmp_path, 256 << 20) as point:
        one, other = point / "one", point / "other"
        write(one)
        os.sync()
        reflink(one, other)
        assert shared_parts(one, other) == []


@pytest.mark.mount
def test_a_file_of_many_pieces_is_looked_at_to_its_end(
    point: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(extents, "_EXTENTS_PER_CALL", 7)
    one, other = point / "one", point / "other"
    one.write_bytes(os.urandom(8 * MIB))
    reflink(one, other)
    with other.open("r+b", buffering=0) as stream:
        for place in range(0, 8 * MIB, 256 << 10):
            os.pwrite(stream.fileno(), b"?", place)
            os.fsync(stream.fileno())
    parts = shared_parts(one, other)
    assert covered(parts) == 8 * MIB - 32 * PAGE
    assert len(parts) == 32


@pytest.mark.mount
def test_an_overlay_is_not_asked(tmp_path: Path) -> None:
    with mounted("xfs", tmp_path, 512 << 20) as point:
        for name in ("lower", "upper", "work", "merged"):
            (point / name).mkdir()
        (point / "lower" / "one").write_bytes(os.urandom(MIB))
        reflink(point / "lower" / "one", point / "lower" / "other")
        folders = f"lowerdir={point}/lower,upperdir={point}/upper,workdir={point}/work"
        done = subprocess.run(
            ["mount", "-t", "overlay", "overlay", "-o", folders, point / "merged"],
            capture_output=True,
        )
        if done.returncode:
            pytest.skip("this kernel mounts no overlay")
        try:
            merged = point / "merged"
            assert shared_parts(merged / "one", merged / "other") == []
            assert covered(shared_parts(point / "lower/one", point / "lower/other")) == MIB
        finally:
            subprocess.run(["umount", point / "merged"], check=True)
