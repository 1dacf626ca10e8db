"""The tiers of moving bytes: what is shared is really shared, and what fails falls as it should."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest
from faults import Nursery, make_source, mounted, names_beside, snapshot

import blockexpand
from blockexpand.errors import OutputError, TransferError
from blockexpand.fs import io as copying
from blockexpand.fs.io import (
    open_direct,
    open_source,
    open_target,
    read_available,
    read_direct,
    read_into,
    sync_folder,
    write_direct,
    write_document,
    write_from,
)
from blockexpand.fs.reading import make_buffer
from blockexpand.fs.sharing import can_share, copy_in_kernel, file_system_block, prefers_kernel_copy
from blockexpand.planning import new_shards
from blockexpand.writing import shard as file_writing

PAGE = os.sysconf("SC_PAGESIZE")


@pytest.fixture(scope="module")
def nursery(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nursery]:
    with Nursery(tmp_path_factory.mktemp("nursery")) as nursery:
        yield nursery


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "from"
    path.write_bytes(bytes(range(256)) * 64 + b"tail")
    return path


def test_a_range_is_read_and_written_where_it_belongs(source: Path, tmp_path: Path) -> None:
    data = bytearray(1000)
    fd, target = open_source(source), tmp_path / "to"
    target_fd = open_target(target)
    try:
        read_into(fd, memoryview(data), 77, source)
        write_from(target_fd, memoryview(data), 5000, target)
    finally:
        os.close(fd)
        os.close(target_fd)
    assert target.read_bytes() == bytes(5000) + source.read_bytes()[77:1077]


def test_a_file_that_ends_too_early_is_told_with_the_byte(source: Path) -> None:
    fd, size = open_source(source), source.stat().st_size
    try:
        assert read_available(fd, memoryview(bytearray(100)), size - 10, source) == 10
        with pytest.raises(
            TransferError, match=f"ends at byte {size}, expected at least {size + 90}"
        ):
            read_into(fd, memoryview(bytearray(100)), size - 10, source)
    finally:
        os.close(fd)


def test_a_system_that_takes_no_more_bytes_is_told_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(copying, "_write_at", lambda *_: 0)
    with pytest.raises(TransferError, match="takes no more bytes"):
        write_from(0, memoryview(b"data"), 0, tmp_path / "to")


@pytest.mark.parametrize(
    ("code", "advice"),
    [
        (errno.ENOSPC, "free some space and run the same command again"),
        (errno.EDQUOT, "your quota is used up"),
        (errno.EACCES, "check the permissions"),
        (errno.EROFS, "choose another output folder"),
        (errno.EIO, "the disk reports a fault"),
        (errno.ENAMETOOLONG, "run the same command again when the cause is mended"),
    ],
)
def test_an_error_says_what_where_and_what_to_do(code: int, advice: str, tmp_path: Path) -> None:
    def fail(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    with pytest.raises(TransferError) as caught:
        copying.attempt("write", tmp_path / "file", fail)
    assert str(caught.value).startswith(f"{tmp_path / 'file'}: cannot write: {os.strerror(code)}; ")
    assert advice in str(caught.value)


def test_a_document_replaces_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text("much longer than what comes")
    write_document(path, b"{}")
    assert path.read_bytes() == b"{}"


@pytest.mark.parametrize("kind", ["file", "document"])
def test_modes_follow_the_umask(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "made"
    before = os.umask(0o027)
    try:
        write_document(path, b"") if kind == "document" else os.close(open_target(path))
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o777 == 0o640


def test_direct_io_moves_whole_pages(tmp_path: Path) -> None:
    path = tmp_path / "direct"
    data = os.urandom(3 * PAGE + 10)
    path.write_bytes(data)
    fd = open_direct(path, os.O_RDWR)
    if fd is None:
        pytest.skip("this file system has no direct I/O")
    buffer = make_buffer(4 * PAGE)
    try:
        assert read_direct(fd, buffer[: 4 * PAGE], 0, path) == len(data)
        assert bytes(buffer[: len(data)]) == data
        assert write_direct(fd, buffer[:PAGE], 2 * PAGE, path) == PAGE
        # What is off alignment is refused by the system, and told by a short count.
        assert write_direct(fd, buffer[: PAGE + 1], 0, path) in (0, PAGE, PAGE + 1)
    finally:
        os.close(fd)
    assert path.read_bytes()[2 * PAGE : 3 * PAGE] == data[:PAGE]


def test_a_copy_in_the_kernel_stops_where_the_source_ends(source: Path, tmp_path: Path) -> None:
    if not hasattr(os, "copy_file_range"):
        pytest.skip("this system has no copy_file_range")
    fd, target = open_source(source), tmp_path / "to"
    target_fd, size = open_target(target), source.stat().st_size
    try:
        # A read is to decide what is wrong.
        assert not copy_in_kernel(fd, size - 10, target_fd, 0, 100, target)
    finally:
        os.close(fd)
        os.close(target_fd)


def test_a_probe_for_sharing_leaves_nothing_behind(source: Path, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    before = source.read_bytes()
    assert can_share(source, folder) in (True, False)
    assert list(folder.iterdir()) == []
    assert source.read_bytes() == before
    (tmp_path / "empty").touch()
    assert not can_share(tmp_path / "empty", folder)


def test_a_folder_is_forced_onto_the_disk_where_that_is_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    codes = [errno.EINVAL, errno.EIO]

    def fail(fd: int) -> None:
        code = codes.pop(0)
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "fsync", fail)
    sync_folder(tmp_path)
    with pytest.raises(TransferError, match="cannot fsync"):
        sync_folder(tmp_path)


def test_the_block_is_a_power_of_two_of_at_least_4096(tmp_path: Path) -> None:
    block = file_system_block(tmp_path)
    assert block >= 4096
    assert block & (block - 1) == 0


# What passes through the process.


def test_only_heads_and_tails_pass_through_the_process_where_blocks_are_shared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(new_shards, "WORTH_A_FILE_NBYTES", 1 << 20)
    source = make_source(tmp_path / "source", hidden=768, intermediate=2048, vocabulary=2048)
    out, plain = tmp_path / "out", tmp_path / "plain"
    blockexpand.expand(source, plain, new_layers=2, reflink="never")
    shared = read = written = 0
    real_read, real_write = copying._read_at, copying._write_at

    def share(
        source_fd: int, source_offset: int, target_fd: int, offset: int, nbytes: int, path: Path
    ) -> bool:
        """Do what a file system does that can share blocks, and refuse what it would refuse."""
        nonlocal shared
        assert source_offset % 4096 == offset % 4096 == nbytes % 4096 == 0
        os.pwrite(target_fd, os.pread(source_fd, nbytes, source_offset), offset)
        shared += nbytes
        return True

    def count_read(fd: int, buffer: memoryview, offset: int) -> int:
        nonlocal read
        read += len(buffer)
        return real_read(fd, buffer, offset)

    def count_write(fd: int, buffer: memoryview, offset: int) -> int:
        nonlocal written
        written += len(buffer)
        return real_write(fd, buffer, offset)

    monkeypatch.setattr(file_writing, "share_range", share)
    monkeypatch.setattr(copying, "_read_at", count_read)
    monkeypatch.setattr(copying, "_write_at", count_write)
    result = blockexpand.expand(source, out, new_layers=2)
    whole = sum(path.stat().st_size for path in out.glob("*.safetensors"))
    assert whole > 50_000_000
    assert result.moved.shared == shared
    # Per file the header, and at each break of what is shared less than a block on either side.
    assert read < 100_000
    assert written < 120_000
    assert whole - shared - result.moved.holes < 80_000
    for path in plain.glob("*.safetensors"):
        assert (out / path.name).read_bytes() == path.read_bytes()


def test_where_blocks_cannot_be_shared_always_fails_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = make_source(tmp_path / "source")
    monkeypatch.setattr(file_writing, "share_range", lambda *_: False)
    with pytest.raises(OutputError, match="cannot share blocks with the source; put the output"):
        blockexpand.expand(source, tmp_path / "out", new_layers=2, reflink="always")
    assert names_beside(tmp_path / "out") == ["source"]
    assert not (tmp_path / "out").exists()


# Real file systems.

# hidden, intermediate: a shape of whole blocks, and one of which hardly a tensor is
SHAPES = {"whole blocks": (640, 1024), "odd sizes": (636, 1023)}

# Blocks as small as these would be copied rather than given a file of their own.
WORTH = {"blockexpand.planning.new_shards.WORTH_A_FILE_NBYTES": 1 << 20}


@pytest.mark.mount
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(
    ("kind", "options"),
    [("xfs", ()), ("btrfs", ()), ("xfs", ("--max-shard-size", "30MB"))],
    ids=["xfs", "btrfs", "xfs, repacked"],
)
def test_blocks_are_shared_and_zeros_are_holes(
    options: tuple[str, ...], kind: str, shape: str, nursery: Nursery, tmp_path: Path
) -> None:
    hidden, intermediate = SHAPES[shape]
    with mounted(kind, tmp_path, 512 << 20) as point:
        source = make_source(
            point / "source",
            layers=8,
            hidden=hidden,
            intermediate=intermediate,
            vocabulary=1001,
        )
        index = json.loads((source / "model.safetensors.index.json").read_text())["weight_map"]
        for layer in (2, 5):
            names = [name for name in index if name.startswith(f"model.layers.{layer}.")]
            assert len({index[name] for name in names}) == 2
        before = used_nbytes(point)
        command = ("--src", source, "--position", "2,5", *options)
        done = nursery.run(
            (*command, "--out", point / "out", "--reflink", "--json"), settings=WORTH
        )
        assert (done.code, done.err) == (0, "")
        moved = json.loads(done.out)["moved"]
        whole = sum(path.stat().st_size for path in (point / "out").glob("*.safetensors"))
        assert whole > 50_000_000
        if options:
            # Where files are filled in order, what follows a break does not land on its blocks.
            assert moved["shared"] > 0
        else:
            assert whole - moved["shared"] - moved["holes"] < 400_000
            assert used_nbytes(point) - before < 1_000_000
        shared, data = extents(point / "out")
        assert abs(moved["shared"] - shared) < 400_000
        assert abs(whole - moved["holes"] - data) < 400_000
        read = sum(
            call.nbytes
            for call in done.calls
            if call.name == "preadv" and call.path.endswith(".safetensors")
        )
        assert options or read < 400_000
        plain = nursery.run(
            (*command, "--out", tmp_path / "plain", "--reflink", "never"), settings=WORTH
        )
        assert plain.code == 0
        for path in (tmp_path / "plain").glob("*.safetensors"):
            assert (point / "out" / path.name).read_bytes() == path.read_bytes()


def used_nbytes(point: Path) -> int:
    os.sync()
    status = os.statvfs(point)
    return (status.f_blocks - status.f_bfree) * status.f_frsize


def extents(folder: Path) -> tuple[int, int]:
    """Return the bytes of shared blocks and of all blocks that the shards of a folder have.

    Source: Documentation/filesystems/fiemap.rst of Linux.
    """
    shared = data = 0
    for path in folder.glob("*.safetensors"):
        with path.open("rb") as stream:
            os.fsync(stream.fileno())
            count = 4096
            request = bytearray(struct.pack("=QQLLLL", 0, 1 << 62, 0, 0, count, 0))
            request += bytes(56 * count)
            fcntl.ioctl(stream.fileno(), 0xC020660B, request)
            (mapped,) = struct.unpack_from("=L", request, 20)
            assert mapped < count
            for number in range(mapped):
                _, _, nbytes, _, _, flags = struct.unpack_from("=QQQQQL", request, 32 + 56 * number)
                data += nbytes
                shared += nbytes if flags & 0x2000 else 0
    return shared, data


@pytest.mark.mount
@pytest.mark.parametrize("kind", ["ext4", "tmpfs"])
def test_always_fails_on_a_file_system_that_does_not_share(
    kind: str, nursery: Nursery, tmp_path: Path
) -> None:
    with mounted(kind, tmp_path, 16 << 20) as point:
        source = make_source(point / "source")
        command = ("--src", source, "--out", point / "out", "--new-layers", "2")
        refused = nursery.run((*command, "--reflink=always"))
        assert refused.code == 3
        assert "cannot share blocks with the source; put the output on the same XFS" in refused.err
        assert refused.err.count("\n") == 1
        assert set(names_beside(point / "out")) <= {"source", "lost+found"}
        assert not (point / "out").exists()
        assert nursery.run(command).code == 0


@pytest.mark.mount
def test_always_fails_between_two_file_systems(nursery: Nursery, tmp_path: Path) -> None:
    source = make_source(tmp_path / "source")
    with mounted("xfs", tmp_path, 320 << 20) as point:
        command = ("--src", source, "--out", point / "out", "--new-layers", "2")
        refused = nursery.run((*command, "--reflink=always"))
        assert refused.code == 3
        assert "cannot share blocks with the source" in refused.err
        assert list(point.iterdir()) == []
        done = nursery.run(command)
        assert (done.code, done.err) == (0, "")
        made = snapshot(point / "out")
        shutil.rmtree(point / "out")
        assert nursery.run(command, lacks=["direct", "copy_file_range"]).code == 0
        assert snapshot(point / "out") == made


@pytest.mark.mount
def test_an_output_that_fits_only_if_blocks_are_shared(nursery: Nursery, tmp_path: Path) -> None:
    with mounted("xfs", tmp_path, 320 << 20) as point:
        source = make_source(
            point / "source", layers=6, hidden=1024, intermediate=4096, vocabulary=1024
        )
        command = ("--src", source, "--out", point / "out", "--new-layers", "1")
        refused = nursery.run((*command, "--reflink=never"), settings={})
        assert refused.code == 3
        assert "not enough disk" in refused.err
        done = nursery.run(command, settings={})
        assert (done.code, done.err) == (0, "")


@pytest.mark.mount
def test_a_mount_whose_name_is_no_text_is_no_trouble(tmp_path: Path) -> None:
    folder = tmp_path / os.fsdecode(b"caf\xe9")
    with mounted("tmpfs", folder, 1 << 20) as point:
        assert not prefers_kernel_copy(point)
