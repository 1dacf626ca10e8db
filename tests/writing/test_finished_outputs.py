"""What an earlier run finished is used again only if it is the very file that was noted."""

from __future__ import annotations

import errno
import json
import os
import shutil
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from faults import make_source, names_beside, snapshot

import blockexpand
from blockexpand.errors import BlockExpandError, OutputError
from blockexpand.writing import writer
from blockexpand.writing.finished import is_finished, note_finished
from blockexpand.writing.leftovers import find_leftovers


class Killed(BaseException):
    pass


@pytest.fixture
def killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path, Path]:
    """A source, an output, and the staging of a run that was killed before it published."""
    source, out = make_source(tmp_path / "source"), tmp_path / "out"

    def die(*_: object, **__: object) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(writer, "publish", die)
        patch.setattr(writer, "_settle", lambda *_, **__: None)
        with pytest.raises(Killed):
            blockexpand.expand(source, out, new_layers=2)
    [staging] = find_leftovers(out, None)
    return source, out, staging


def keep_time(path: Path, change: Callable[[Path], object]) -> None:
    """Change a file and set its time of modification back, as a careful liar does."""
    status = path.stat()
    change(path)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def flip(path: Path) -> None:
    with path.open("r+b") as stream:
        stream.seek(20_000)
        data = stream.read(64)
        stream.seek(20_000)
        stream.write(bytes(byte ^ 1 for byte in data))


def replace(path: Path) -> None:
    other = path.with_name("other")
    other.write_bytes(path.read_bytes()[:-1] + b"\x7f")
    other.rename(path)


def test_what_is_whole_is_used_again(killed: tuple[Path, Path, Path]) -> None:
    source, out, _ = killed
    result = blockexpand.expand(source, out, new_layers=2)
    assert result.moved.reused == sum(file.nbytes for file in result.plan.files)


@pytest.mark.parametrize(
    "change", [lambda path: os.truncate(path, 1000), flip, replace], ids=["cut", "flip", "replace"]
)
@pytest.mark.parametrize("note", ["whole", "gone", "torn"])
def test_a_shard_that_was_changed_since_is_made_again(
    note: str, change: Callable[[Path], object], killed: tuple[Path, Path, Path], tmp_path: Path
) -> None:
    source, out, staging = killed
    path = staging / "files" / "model-00002-of-00004.safetensors"
    keep_time(path, change)
    noted = staging / "finished" / path.name
    assert noted.is_file()
    if note == "gone":
        noted.unlink()
    elif note == "torn":
        noted.write_bytes(noted.read_bytes()[:-12])
    result = blockexpand.expand(source, out, new_layers=2)
    assert 0 < result.moved.reused < sum(file.nbytes for file in result.plan.files)
    wanted = blockexpand.expand(source, tmp_path / "wanted", new_layers=2)
    for file in result.plan.files:
        assert (out / file.name).read_bytes() == (wanted.out / file.name).read_bytes()
    assert names_beside(out) == ["source", "wanted"]


def test_a_file_that_nobody_planned_is_not_published(killed: tuple[Path, Path, Path]) -> None:
    source, out, staging = killed
    (staging / "files" / "modeling_evil.py").write_text("import os")
    with pytest.raises(OutputError, match=r"modeling_evil.py: is no file of this plan.*; remove"):
        blockexpand.expand(source, out, new_layers=2)
    assert not out.exists()


def test_the_digest_tells_where_a_file_system_keeps_no_times(tmp_path: Path) -> None:
    file, note = tmp_path / "file", tmp_path / "note"
    file.write_bytes(bytes(100_000))
    note_finished(file, note)
    assert is_finished(file, note, 100_000)
    assert not is_finished(file, note, 99_999)
    noted = json.loads(note.read_text().rpartition(" ")[0])
    file.write_bytes(b"\1" * 100_000)
    status = file.stat()
    noted |= {"mtime_ns": status.st_mtime_ns, "ctime_ns": status.st_ctime_ns}
    body = json.dumps(noted).encode()
    note.write_bytes(body + b" %08x\n" % zlib.crc32(body))
    assert not is_finished(file, note, 100_000)


@pytest.mark.skipif(os.name == "nt" or os.geteuid() != 0, reason="needs another user")
def test_another_users_staging_folder_is_refused(killed: tuple[Path, Path, Path]) -> None:
    source, out, staging = killed
    os.chown(staging, 12345, 12345)
    held = snapshot(staging)
    for options in {}, {"overwrite": True}:
        with pytest.raises(OutputError, match="is another user's, or no folder"):
            blockexpand.expand(source, out, new_layers=2, **options)  # type: ignore[arg-type]
    assert snapshot(staging) == held
    assert not out.exists()


def test_a_link_in_place_of_the_staging_folder_is_refused(
    killed: tuple[Path, Path, Path], tmp_path: Path
) -> None:
    source, out, staging = killed
    victim = tmp_path / "victim"
    shutil.move(staging, victim)
    staging.symlink_to(victim)
    held = snapshot(victim)
    with pytest.raises(OutputError, match="is another user's, or no folder"):
        blockexpand.expand(source, out, new_layers=2)
    assert snapshot(victim) == held


@pytest.mark.skipif(os.name == "nt" or os.geteuid() != 0, reason="needs another user")
def test_what_another_user_puts_beside_an_output_is_not_taken_for_an_old_one(
    killed: tuple[Path, Path, Path],
) -> None:
    source, out, _ = killed
    planted = out.with_name(".out.blockexpand-planted")
    (planted / "replaced").mkdir(parents=True)
    (planted / "replaced" / "config.json").write_text("{}")
    os.chown(planted, 12345, 12345)
    result = blockexpand.expand(source, out, new_layers=2)
    assert (planted / "replaced").is_dir()
    assert not any("put back" in note for note in result.notes)


@pytest.mark.parametrize("what", ["shard", "side file"])
def test_an_output_changed_after_it_was_published_is_not_taken_for_finished(
    what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from blockexpand.writing import staging

    source, out = make_source(tmp_path / "source"), tmp_path / "out"
    with monkeypatch.context() as patch:
        for module in (staging, writer):
            patch.setattr(module, "discard", lambda staged: None)
        blockexpand.expand(source, out, new_layers=2)
    name = "model-00001-of-00004.safetensors" if what == "shard" else "tokenizer.json"
    keep_time(out / name, flip)
    with pytest.raises(OutputError, match=r"is not, or no longer, what an earlier run .* made"):
        blockexpand.expand(source, out, new_layers=2)


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("removed", range(7))
def test_a_tidying_up_that_failed_anywhere_leaves_an_output_that_is_known_again(
    removed: int, overwrite: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk fails for good once so many files and folders of the staging are removed."""
    source, out = make_source(tmp_path / "source"), tmp_path / "out"
    if overwrite:
        shutil.copytree(source, out)
    left = removed

    def refuse_more(call: Callable[..., None]) -> Callable[..., None]:
        def remove(path: Any, **options: Any) -> None:
            nonlocal left
            if (out / "block_expansion.json").exists():
                if left == 0:
                    raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))
                left -= 1
            call(path, **options)

        return remove

    with monkeypatch.context() as patch:
        for name in "unlink", "rmdir":
            patch.setattr(os, name, refuse_more(getattr(os, name)))
        with pytest.raises(BlockExpandError, match="the new output is complete and in its place"):
            blockexpand.expand(source, out, new_layers=2, overwrite=overwrite)
    made = snapshot(out)
    result = blockexpand.expand(source, out, new_layers=2, overwrite=overwrite)
    assert result.moved.reused == result.plan.nbytes
    assert snapshot(out) == made
    assert names_beside(out) == ["source"]


def test_what_a_finished_run_replaced_is_not_put_back_once_its_output_is_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from blockexpand.writing import staging

    source, out = make_source(tmp_path / "source"), tmp_path / "out"
    shutil.copytree(source, out)
    with monkeypatch.context() as patch:
        patch.setattr(staging, "exchange", lambda one, other: False)
        for module in (staging, writer):
            patch.setattr(module, "discard", lambda staged: None)
        blockexpand.expand(source, out, new_layers=2, overwrite=True)
    shutil.rmtree(out)
    result = blockexpand.expand(source, out, new_layers=2)
    assert not any("put back" in note for note in result.notes)
    assert names_beside(out) == ["source"]
