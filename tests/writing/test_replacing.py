"""What --overwrite replaces, and what it never does: whose folders stay whole."""

from __future__ import annotations

import json
import os
import pwd
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from faults import make_source, mounted, snapshot

import blockexpand
from blockexpand.errors import OutputError
from blockexpand.writing.replacing import find_replaced
from blockexpand.writing.target import WriteOptions

OVERWRITE = WriteOptions(overwrite=True)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return make_source(tmp_path / "source")


@pytest.fixture
def out(tmp_path: Path, source: Path) -> Path:
    """An output of blockexpand, of another plan than the one that is to replace it."""
    blockexpand.expand(source, tmp_path / "out", new_layers=1)
    return tmp_path / "out"


def check_refused(source: Path, out: Path, reason: str, **options: object) -> None:
    before = snapshot(out)
    beside = sorted(out.parent.iterdir())
    with pytest.raises(OutputError, match=reason) as caught:
        blockexpand.expand(source, out, new_layers=2, **({"overwrite": True} | options))  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)
    assert snapshot(out) == before
    assert sorted(out.parent.iterdir()) == beside


def test_an_output_and_a_plain_checkpoint_are_replaced(source: Path, out: Path) -> None:
    blockexpand.expand(source, out, new_layers=2, overwrite=True)
    assert json.loads((out / "block_expansion.json").read_text())["layers"] == 6
    shutil.rmtree(out)
    shutil.copytree(source, out)
    shutil.rmtree(out / "extra")
    (out / "modeling_custom.py").write_text("")
    (out / ".gitattributes").write_text("")
    (out / ".cache" / "huggingface" / "download").mkdir(parents=True)
    (out / ".cache" / "huggingface" / "download" / "config.json.metadata").write_text("")
    blockexpand.expand(source, out, new_layers=2, overwrite=True)
    assert not (out / "modeling_custom.py").exists()


Change = Callable[[Path], object]


def write(name: str) -> Change:
    def change(out: Path) -> None:
        path = out / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("somebody's")

    return change


FOREIGN: dict[str, tuple[Change, str]] = {
    "a thesis": (write("thesis.tex"), "holds 'thesis.tex', which a checkpoint does not have"),
    "hidden work": (write(".notes"), "holds '.notes', which"),
    "training state": (write("trainer_state.json"), "holds 'trainer_state.json', which"),
    "an optimizer": (write("optimizer.pt"), "holds 'optimizer.pt', which"),
    "another model": (write("other/config.json"), "holds another model, in 'other'"),
    "a checkpoint of a trainer": (
        write("checkpoint-500/config.json"),
        "holds another model, in 'checkpoint-500'",
    ),
    "a clone": (write(".git/HEAD"), r"is a clone of a repository \(it has .git\)"),
    "a worktree": (write(".git"), r"is a clone of a repository \(it has .git\)"),
    "files in a folder": (write("data/a.safetensors"), "holds 'data/a.safetensors', which"),
    "many": (
        lambda out: [write(f"{n}.csv")(out) for n in range(9)],
        "holds '0.csv', '1.csv', '2.csv' and 6 more, which",
    ),
    "no checkpoint": (
        lambda out: [(out / name).unlink() for name in ("config.json", "block_expansion.json")],
        "has neither config.json nor block_expansion.json",
    ),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_a_folder_with_what_is_not_a_checkpoint_needs_its_name_once_more(
    name: str, source: Path, out: Path
) -> None:
    change, reason = FOREIGN[name]
    change(out)
    check_refused(source, out, f"{reason}.*; --overwrite replaces only what .* add --overwrite-any")
    check_refused(source, out, reason, overwrite_anything=None)
    with pytest.raises(OutputError, match=r"--overwrite-anything .*/source: expected the output"):
        blockexpand.expand(source, out, new_layers=2, overwrite_anything=source)
    blockexpand.expand(source, out, new_layers=2, overwrite_anything=out)
    assert snapshot(out) is not None
    blockexpand.expand(source, out.with_name("fresh"), new_layers=2)
    names = {path.relative_to(out).as_posix() for path in out.rglob("*")}
    fresh = out.with_name("fresh")
    assert names == {path.relative_to(fresh).as_posix() for path in fresh.rglob("*")}


def test_what_came_into_the_old_output_while_the_run_was_at_work_is_not_lost(
    source: Path, out: Path
) -> None:
    def write_thesis(nbytes: int) -> None:
        (out / "thesis.tex").write_text("all of it")

    with pytest.raises(OutputError, match=r"holds 'thesis.tex'.*finished parts stay in"):
        blockexpand.expand(
            source,
            out,
            new_layers=2,
            overwrite=True,
            progress=blockexpand.Progress(advance=write_thesis),
        )
    assert (out / "thesis.tex").read_text() == "all of it"


@pytest.mark.parametrize("anything", [False, True], ids=["overwrite", "overwrite anything"])
@pytest.mark.parametrize("place", ["home", "above", "through a link", "of its owner", "current"])
def test_homes_and_the_current_folder_are_never_replaced(
    place: str, anything: bool, source: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"overwrite_anything": out} if anything else {}
    if place == "current":
        (out / "deep").mkdir()
        monkeypatch.chdir(out / "deep")
        check_refused(source, out, "is the current folder or one above it", **options)
        return
    home = {"home": out, "above": out / "user", "through a link": out.with_name("link")}
    if place == "of its owner":
        entry = pwd.getpwuid(out.stat().st_uid)
        fields = (*entry[:5], str(out), entry[6])
        monkeypatch.setattr(pwd, "getpwuid", lambda user: pwd.struct_passwd(fields))
    else:
        home[place].mkdir(exist_ok=True) if place == "above" else None
        if place == "through a link":
            home[place].symlink_to(out)
        monkeypatch.setenv("HOME", str(home[place]))
    reason = "is above the home" if place == "above" else "is a home, which --overwrite never"
    check_refused(source, out, reason, **options)


def test_a_home_that_is_no_folder_is_no_reason(
    source: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", "/nonexistent")
    blockexpand.expand(source, out, new_layers=2, overwrite=True)


@pytest.mark.parametrize("name", ["HF_HOME", "HF_HUB_CACHE", "XDG_CACHE_HOME"])
def test_a_cache_of_the_hub_is_not_replaced(
    name: str, source: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = out.parent / "x" if name == "XDG_CACHE_HOME" else out
    if name == "XDG_CACHE_HOME":
        cache.mkdir()
        out = out.rename(cache / "huggingface")
    monkeypatch.setenv(name, str(cache))
    check_refused(source, out, "is, holds or lies in a cache of the Hub")


def test_a_snapshot_of_the_hubs_cache_is_not_replaced(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "models--org--name" / "snapshots" / ("0" * 40)
    shutil.copytree(source, out)
    check_refused(source, out, "is, holds or lies in a cache of the Hub")


def test_the_files_that_a_run_reads_are_not_replaced(out: Path) -> None:
    path = out / "tokenizer_config.json"
    path.write_text("jobs: []")
    with pytest.raises(OutputError, match=r"holds .*tokenizer_config.json, which this run reads"):
        find_replaced(out, (), WriteOptions(overwrite=True, kept=(path,)))
    assert find_replaced(out, ("extra/notes.txt",), OVERWRITE) is not None


def test_what_goes_is_said(out: Path) -> None:
    replaced = find_replaced(out, ("extra/notes.txt",), OVERWRITE)
    assert replaced is not None
    files = [path for path in out.rglob("*") if path.is_file()]
    assert replaced.files == len(files)
    assert replaced.nbytes == sum(path.stat().st_size for path in files)
    assert replaced.names == tuple(sorted(path.name for path in out.iterdir()))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may list every folder")
def test_what_cannot_be_listed_is_not_replaced(source: Path, out: Path) -> None:
    (out / "extra").chmod(0)
    check_refused(source, out, "cannot be listed")


@pytest.mark.mount
@pytest.mark.parametrize("kind", ["tmpfs", "bind"])
@pytest.mark.parametrize("anything", [False, True], ids=["overwrite", "overwrite anything"])
def test_a_folder_with_a_mount_in_it_is_never_replaced(
    kind: str, anything: bool, source: Path, out: Path, tmp_path: Path
) -> None:
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "data").write_text("a data set")
    options = {"overwrite_anything": out} if anything else {}
    arguments = (str(precious),) if kind == "bind" else ()
    with mounted(kind, out / "extra" / "deep", 1 << 20, *arguments):
        reason = f"another file system is mounted in it, at {re.escape(str(out))}"
        check_refused(source, out, reason, **options)
        assert (precious / "data").read_text() == "a data set"
