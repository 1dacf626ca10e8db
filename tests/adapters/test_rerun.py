"""`extract` and `apply` that are run again: what is there and right is not made again."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from faults import make_source, snapshot
from hub_server import HubServer
from safetensors.torch import load_file, save_file

import blockexpand
from blockexpand.cli.app import main
from blockexpand.errors import HubError, OutputError, SourceChangedError
from blockexpand.writing import tasks


@pytest.fixture
def trained(tmp_path: Path) -> Path:
    source = make_source(tmp_path / "source")
    out = tmp_path / "trained"
    blockexpand.expand(source, out, new_layers=1)
    train(out)
    return out


def train(folder: Path) -> None:
    for path in folder.glob("*.safetensors"):
        tensors = load_file(path)
        for name in tensors:
            if name == "model.layers.4.mlp.down_proj.weight":
                tensors[name] += 0.5
        save_file(tensors, path, metadata={"format": "pt"})


def test_the_same_extraction_is_already_there(trained: Path, tmp_path: Path) -> None:
    source, blocks = trained.with_name("source"), tmp_path / "blocks"
    blockexpand.extract(trained, blocks, base=source)
    before = snapshot(blocks)
    again = blockexpand.extract(trained, blocks, base=source)
    assert "already there: the same blocks of the same base" in again.notes[-1]
    assert snapshot(blocks) == before
    train(trained)
    with pytest.raises(OutputError, match="exists and is not empty"):
        blockexpand.extract(trained, blocks, base=source)
    assert snapshot(blocks) == before


def test_the_same_application_is_already_there(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, blocks, out = trained.with_name("source"), tmp_path / "blocks", tmp_path / "out"
    blockexpand.extract(trained, blocks, base=source)
    words = ["apply", str(source), str(blocks), "--out", str(out)]
    assert main(words) == 0
    before = snapshot(out)
    capsys.readouterr()
    for further in ([], ["--dry-run"]):
        assert main([*words, *further]) == 0
        assert "already there: the same plan" in capsys.readouterr().out
        assert snapshot(out) == before
    # Another scale is another model.
    assert main([*words, "--scale", "0.5"]) == 3
    assert snapshot(out) == before
    train(out)
    before = snapshot(out)
    assert main(words) == 3
    assert snapshot(out) == before


def test_a_mistyped_folder_is_told_as_one(
    trained: Path, hub: HubServer, hub_cache: Path, tmp_path: Path
) -> None:
    with pytest.raises(HubError, match="nor is there a folder me/blocks here"):
        blockexpand.apply(trained.with_name("source"), "me/blocks", out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("which", ["base", "link to it", "in it", "above it"])
def test_the_base_is_not_replaced_by_the_blocks(which: str, trained: Path, tmp_path: Path) -> None:
    base = trained.with_name("source")
    out = base
    if which == "link to it":
        out = tmp_path / "link"
        out.symlink_to(base)
    elif which == "in it":
        out = base / "blocks"
    elif which == "above it":
        (tmp_path / "above").mkdir()
        base = base.rename(tmp_path / "above" / "source")
        out = base.parent
        (out / "config.json").write_text("{}")
    before = snapshot(tmp_path)
    with pytest.raises(OutputError, match=r"is the source itself|may not lie inside each other"):
        blockexpand.extract(trained, out, base=base, overwrite=True)
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize("which", ["base", "blocks"])
def test_what_changes_while_it_is_applied_is_refused(
    which: str, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Size and time of modification are set back, after the digests were compared."""
    source, blocks, out = trained.with_name("source"), tmp_path / "blocks", tmp_path / "out"
    blockexpand.extract(trained, blocks, base=source)
    changed = next((blocks if which == "blocks" else source).glob("*.safetensors"))
    write = tasks.write_file

    def change_first(*arguments: Any, **more: Any) -> Any:
        monkeypatch.setattr(tasks, "write_file", write)
        status, data = changed.stat(), bytearray(changed.read_bytes())
        data[-1] ^= 1
        changed.write_bytes(data)
        os.utime(changed, ns=(status.st_atime_ns, status.st_mtime_ns))
        return write(*arguments, **more)

    monkeypatch.setattr(tasks, "write_file", change_first)
    with pytest.raises(SourceChangedError, match="changed after it was planned with"):
        blockexpand.apply(source, blocks, out=out)
    assert not out.exists()
