"""`verify` and `diff` read nothing twice that is one and the same on the disk, and miss nothing."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from faults import make_source, mounted

import blockexpand
from blockexpand.errors import SourceChangedError
from blockexpand.fs import io
from blockexpand.progress import Progress

# The layers' matrices are whole blocks of a disk, and begin in the middle of one. Both clones come
# from one shard, so that they land where they are shared.
SHAPE = {"layers": 6, "hidden": 640, "intermediate": 2048, "vocabulary": 3001}


@pytest.fixture(params=["xfs", "btrfs"])
def reflinked(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[Path, Path]]:
    with mounted(request.param, tmp_path, 512 << 20) as point:
        source = make_source(point / "source", **SHAPE)
        blockexpand.expand(source, point / "out", position="4,5", reflink="always")
        yield source, point / "out"


@pytest.fixture
def linked(tmp_path: Path) -> tuple[Path, Path]:
    source = make_source(tmp_path / "source", **SHAPE)
    blockexpand.expand(source, tmp_path / "out", new_layers=1, hardlink=True)
    assert any(path.stat().st_nlink > 1 for path in (tmp_path / "out").iterdir())
    return source, tmp_path / "out"


@pytest.fixture
def count(monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    """Return a function that tells how many bytes were asked of files since it was last asked."""
    read = 0
    real = io._read_at

    def count_read(fd: int, buffer: memoryview, offset: int) -> int:
        nonlocal read
        read += len(buffer)
        return real(fd, buffer, offset)

    def take() -> int:
        nonlocal read
        taken, read = read, 0
        return taken

    monkeypatch.setattr(io, "_read_at", count_read)
    return take


def weigh(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))


def poke(path: Path, offset: int) -> None:
    with path.open("r+b", buffering=0) as stream:
        byte = os.pread(stream.fileno(), 1, offset)
        os.pwrite(stream.fileno(), bytes([byte[0] ^ 1]), offset)


def find_copied(out: Path) -> tuple[Path, str, int]:
    """Return a shard, a tensor in it that every expansion only copies, and where it begins."""
    name = "model.layers.0.mlp.gate_proj.weight"
    index = json.loads((out / "model.safetensors.index.json").read_text())["weight_map"]
    path = out / index[name]
    with path.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        start = json.loads(stream.read(length))[name]["data_offsets"][0]
    return path, name, 8 + length + start


@pytest.mark.mount
def test_shared_blocks_are_not_read_again(
    reflinked: tuple[Path, Path], count: Callable[[], int]
) -> None:
    source, out = reflinked
    whole = weigh(source) + weigh(out)
    count()
    found = blockexpand.verify(source, out, untrained=True).verification
    # Zeroed tensors are read: that they are holes says less than what stands there.
    zeroed = 2 * 2 * 640 * (640 + 2048)
    assert count() - zeroed < 0.02 * whole
    assert not found.findings
    assert found.shared > 0.9 * (found.nbytes - zeroed)
    difference = blockexpand.diff(source, out)
    assert count() < 0.02 * whole
    assert difference.shared > 0.98 * weigh(source)
    assert not difference.lost


@pytest.mark.mount
def test_paranoid_reads_all(reflinked: tuple[Path, Path], count: Callable[[], int]) -> None:
    source, out = reflinked
    count()
    found = blockexpand.verify(source, out, paranoid=True).verification
    # What is zero in the output is not read in the source.
    assert count() > 1.9 * weigh(source)
    assert (found.shared, found.findings) == (0, ())
    difference = blockexpand.diff(source, out, paranoid=True)
    assert count() > 1.99 * weigh(source)
    assert (difference.shared, difference.lost) == (0, ())


@pytest.mark.mount
@pytest.mark.parametrize("side", ["source", "out"])
def test_a_poked_byte_of_a_shared_file_is_found(reflinked: tuple[Path, Path], side: str) -> None:
    source, out = reflinked
    before = blockexpand.verify(source, out).verification
    path, name, start = find_copied(out if side == "out" else source)
    poke(path, start + 100_000)
    found = blockexpand.verify(source, out, untrained=True).verification
    assert [(f.tensor, f.offset) for f in found.findings] == [(name, 100_000)]
    assert before.shared - (256 << 10) < found.shared < before.shared
    lost = blockexpand.diff(source, out).lost
    assert [(t.name, t.offset) for t in lost] == [(name, 100_000)]


@pytest.mark.mount
def test_what_another_tool_made_of_shared_blocks_is_not_read_either(
    reflinked: tuple[Path, Path], count: Callable[[], int]
) -> None:
    source, out = reflinked
    (out / "block_expansion.json").unlink()
    count()
    found = blockexpand.verify(source, out).verification
    assert not found.has_manifest
    assert not found.findings
    assert count() < 0.15 * (weigh(source) + weigh(out))
    assert found.shared > 0.8 * found.nbytes


@pytest.mark.mount
def test_compressed_blocks_are_read(tmp_path: Path, count: Callable[[], int]) -> None:
    with mounted("btrfs", tmp_path, 512 << 20) as point:
        remount = ["mount", "-o", "remount,compress-force=zstd", str(point)]
        subprocess.run(remount, check=True)
        source = make_source(point / "source", **SHAPE)
        # Bytes that shrink, so that they are packed.
        for path in source.glob("*.safetensors"):
            header = 8 + int.from_bytes(path.read_bytes()[:8], "little")
            with path.open("r+b") as stream:
                stream.seek(header)
                stream.write(bytes([1, 2]) * ((path.stat().st_size - header) // 2))
        os.sync()
        blockexpand.expand(source, point / "out", new_layers=1, reflink="always")
        count()
        found = blockexpand.verify(source, point / "out").verification
        assert (found.shared, found.findings) == (0, ())
        assert count() > 1.9 * weigh(source)


@pytest.mark.parametrize("side", ["source", "out"])
def test_a_write_while_shared_files_are_compared_is_told(
    linked: tuple[Path, Path], side: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, out = linked
    path, _, start = find_copied(out if side == "out" else source)

    def end(name: str) -> None:
        os.utime(path, ns=(0, path.stat().st_mtime_ns + 1))

    from blockexpand.verification import comparison

    real = comparison.work_through

    def work(*arguments: object) -> None:
        poke(path, start)
        real(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(comparison, "work_through", work)
    with pytest.raises(SourceChangedError, match="changed after it was planned with"):
        blockexpand.diff(source, out, progress=Progress(begin_file=end))


def test_hard_links_are_not_read_at_all(
    linked: tuple[Path, Path], count: Callable[[], int]
) -> None:
    source, out = linked
    count()
    difference = blockexpand.diff(source, out)
    assert count() == 0
    assert difference.shared == sum(t.nbytes for t in difference.tensors if t.status == "same")
    found = blockexpand.verify(source, out).verification
    assert not found.findings
    assert found.shared == difference.shared
    assert blockexpand.diff(source, out, paranoid=True).shared == 0
    assert count() > 2 * difference.shared


def test_a_poke_through_a_hard_link_changes_the_source_too(
    linked: tuple[Path, Path], tmp_path: Path
) -> None:
    source, out = linked
    kept = shutil.copytree(source, tmp_path / "kept")
    path, name, start = find_copied(out)
    poke(path, start)
    # One file: nothing differs, however it is read. Only a copy of the source tells.
    for paranoid in (False, True):
        assert not blockexpand.verify(source, out, paranoid=paranoid).findings
    assert [t.name for t in blockexpand.diff(kept, out).lost] == [name]


def test_copies_are_read(tmp_path: Path, count: Callable[[], int]) -> None:
    source = make_source(tmp_path / "source", **SHAPE)
    blockexpand.expand(source, tmp_path / "out", new_layers=1, reflink="never")
    count()
    found = blockexpand.verify(source, tmp_path / "out").verification
    assert found.shared == 0
    assert count() > 1.9 * weigh(source)


def test_the_command_says_what_it_did_not_read(linked: tuple[Path, Path]) -> None:
    source, out = linked

    def run(*words: object) -> str:
        command = [sys.executable, "-m", "blockexpand", *map(str, words), "--no-progress"]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout

    shared = blockexpand.diff(source, out).shared
    for command in ("verify", "diff"):
        assert f"shared with the source: {shared / 1e6:.1f} MB, not read again" in run(
            command, source, out
        )
        assert "not read again" not in run(command, source, out, "--paranoid")
        assert json.loads(run(command, source, out, "--json"))["shared"] == shared
