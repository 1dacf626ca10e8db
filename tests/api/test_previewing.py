"""A dry run is a true preflight: it refuses what the run refuses, and foretells what it does."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
from checkpoints import mistral_tensors, snapshot, write_checkpoint
from faults import mounted

from blockexpand.cli.app import main

EXPAND = ["--src", "model", "--new-layers", "2", "--no-progress"]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.delenv("HF_TOKEN", raising=False)
    tensors = mistral_tensors(4, size=8192)
    names = list(tensors)
    shards = [{n: tensors[n] for n in names[:20]}, {n: tensors[n] for n in names[20:]}]
    write_checkpoint(work / "model", shards)
    (work / "full").mkdir()
    (work / "full" / "mine").write_text("mine")
    (work / "file").write_text("mine")
    return work


def both(words: list[str], capfd: pytest.CaptureFixture[str]) -> list[tuple[int, str]]:
    """Return how a dry run and the run itself end: status and stderr."""
    ends = []
    for option in (["--dry-run"], []):
        capfd.readouterr()
        ends.append((main([*words, *option]), capfd.readouterr().err))
    return ends


@pytest.mark.parametrize(
    "words",
    [
        ["--out", "full"],
        ["--out", "file"],
        ["--out", "model"],
        ["--out", "model/out"],
        ["--out", ".."],
        ["--out", "/dev/null"],
        ["--out", "/proc/out"],
        ["--out", "/proc/a/out"],
        ["--out", ".", "--overwrite"],
        ["--out", "x", "--push-to-hub", "org/name"],
        ["--out", "x", "--push-to-hub", "a/b/c", "--token", "t"],
        ["--out", "x", "--stream"],
        ["--out", "x", "--stream", "--verify", "tensors"],
        ["--out", "x", "--stream", "--executor", "process:1"],
        ["--out", "x", "--max-shard-size", "5GiB"],
    ],
    ids=" ".join,
)
def test_what_the_run_refuses_the_dry_run_refuses_with_the_same_line_and_status(
    words: list[str], folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    before = snapshot(folder)
    dry, real = both([*EXPAND, *words], capfd)
    assert real[0] in (2, 3)
    assert dry == real
    assert snapshot(folder) == before


def test_a_full_disk_is_refused_alike(
    folder: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(folder)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=100))
    dry, real = both([*EXPAND, "--out", "x"], capfd)
    assert real[0] == 3 and "not enough disk" in real[1]
    assert dry == real


@pytest.mark.mount
def test_links_to_another_file_system_are_refused_alike(
    folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with mounted("tmpfs", tmp_path, 10_000_000) as other:
        dry, real = both([*EXPAND, "--out", str(other / "x"), "--hardlink"], capfd)
    assert real[0] == 3 and "--hardlink needs" in real[1]
    assert dry == real


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_may_not_be_written_is_refused_alike(
    folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (folder / "locked").mkdir(mode=0o500)
    dry, real = both([*EXPAND, "--out", "locked/x"], capfd)
    assert real[0] == 3 and dry == real


def test_a_recipe_is_refused_alike(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (folder / "r.yml").write_text(
        "merge_method: passthrough\nslices: [{sources: [{model: model, layer_range: [0, 2]}]}]\n"
    )
    for more in (["--out", "full"], ["--out", "x", "--verify", "logits"]):
        dry, real = both(["merge", "r.yml", "--no-progress", *more], capfd)
        assert real[0] in (2, 3)
        assert dry[0] == real[0]


@pytest.mark.parametrize(
    "more", [[], ["--hardlink"], ["--reflink", "never"], ["--dtype", "float32"]], ids=" ".join
)
def test_the_dry_run_foretells_how_the_bytes_get_there(
    more: list[str], folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    words = [*EXPAND, "--out", "x", "--json", *more]
    assert main([*words, "--dry-run"]) == 0
    planned = json.loads(capfd.readouterr().out)
    assert not (folder / "x").exists()
    assert main(words) == 0
    made = json.loads(capfd.readouterr().out)
    assert planned["would_move"] == made["moved"]
    assert planned["estimated_seconds"] >= 0
    assert planned["parameters"] == made["parameters"]
    # Counted by hand: 9 tensors of 8192 numbers in a layer, 3 beside the layers.
    assert made["parameters"]["total"] == 8192 * (9 * 6 + 3)
    assert made["parameters"]["new"] == 8192 * 9 * 2


def test_a_dry_run_says_it_in_words(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main([*EXPAND, "--out", "x", "--dry-run", "--hardlink"]) == 0
    text = capfd.readouterr().out
    assert "467K parameters: 319K original + 147K new (31.6 %)" in text
    assert "linked to the source" in text
    assert "less than a second" in text and "\nfree  " in text
