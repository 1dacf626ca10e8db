"""The staging folder: what may become the output, the lock, and what is known again later."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from faults import make_source, names_beside, snapshot

import blockexpand
from blockexpand.errors import OutputError, TransferError
from blockexpand.fs.journal import append_journal
from blockexpand.writing import staging
from blockexpand.writing import writer as writing
from blockexpand.writing.leftovers import clear_debris, find_leftovers, restore_replaced
from blockexpand.writing.locking import lock_target
from blockexpand.writing.preflight import identify
from blockexpand.writing.staging import (
    discard,
    holds_work,
    is_published,
    name_staging,
    open_staging,
    publish,
)
from blockexpand.writing.target import WriteOptions, check_target

IDENTITY = {"fingerprint": "0123456789abcdef", "sources": [["a", 1, 2]]}
OTHER_PLAN = IDENTITY | {"fingerprint": "fedcba9876543210"}


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


def make_old(out: Path) -> None:
    out.mkdir()
    (out / "old.txt").write_text("old")


def finish(staged: staging.Staging) -> None:
    (staged.files / "new.txt").write_text("new")


# What may become the output.


def test_a_folder_that_is_absent_or_empty_may_become_the_output(out: Path) -> None:
    check_target(out, WriteOptions())
    out.mkdir()
    check_target(out, WriteOptions())


def test_a_folder_with_something_in_it_needs_overwrite(out: Path) -> None:
    make_old(out)
    with pytest.raises(OutputError, match=r"exists and is not empty; choose another folder$"):
        check_target(out, WriteOptions())
    check_target(out, WriteOptions(overwrite=True))


def test_a_file_is_never_replaced(out: Path) -> None:
    out.write_text("a file")
    with pytest.raises(OutputError, match="is a file, not a folder"):
        check_target(out, WriteOptions(overwrite=True))


# The lock.


def test_the_lock_is_one_runs_alone_and_leaves_nothing(out: Path) -> None:
    with lock_target(out):
        with (
            pytest.raises(OutputError, match="another run is writing it; wait until it ends"),
            lock_target(out),
        ):
            pass
        with lock_target(out.with_name("other")):
            pass
    with lock_target(out):
        pass
    assert names_beside(out) == []


def test_the_lock_of_a_killed_process_is_free(out: Path) -> None:
    code = (
        "import os, sys, signal; from pathlib import Path\n"
        "from blockexpand.writing.locking import lock_target\n"
        "with lock_target(Path(sys.argv[1])): os.kill(os.getpid(), signal.SIGKILL)"
    )
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    killed = subprocess.run([sys.executable, "-c", code, out], env=environment)
    assert killed.returncode == -9
    assert len(names_beside(out)) == 1
    with lock_target(out):
        pass
    assert names_beside(out) == []


def test_the_lock_is_let_go_after_a_failure(out: Path) -> None:
    with pytest.raises(ZeroDivisionError), lock_target(out):
        raise ZeroDivisionError
    with lock_target(out):
        pass


@pytest.mark.parametrize("name", ["x" * 255, "模" * 85], ids=["long", "wide"])
def test_a_name_as_long_as_names_may_be(name: str, tmp_path: Path) -> None:
    out = tmp_path / name
    with lock_target(out):
        staged, _ = open_staging(name_staging(out, IDENTITY))
        finish(staged)
        assert find_leftovers(out, None) == (staged.folder,)
        publish(staged, out, overwrite=False)
    assert (out / "new.txt").read_text() == "new"
    assert names_beside(out) == []


# The staging folder.


def test_the_staging_folder_of_the_same_plan_is_found_with_what_is_in_it(out: Path) -> None:
    first, found = open_staging(name_staging(out, IDENTITY))
    assert not found
    assert not holds_work(first)
    finish(first)
    second, found = open_staging(name_staging(out, IDENTITY))
    assert found
    assert holds_work(second)
    assert second.folder == first.folder
    assert (second.files / "new.txt").read_text() == "new"


def test_what_was_made_from_a_source_that_has_changed_is_not_used(out: Path) -> None:
    first, _ = open_staging(name_staging(out, IDENTITY))
    finish(first)
    second, found = open_staging(name_staging(out, IDENTITY | {"sources": [["a", 1, 3]]}))
    assert not found
    assert list(second.files.iterdir()) == []


def test_what_was_made_from_another_model_of_the_same_time_is_not_used(
    out: Path, tmp_path: Path
) -> None:
    one, other = make_source(tmp_path / "one"), tmp_path / "other"
    shutil.copytree(one, other)
    shard = other / "model-00001-of-00003.safetensors"
    data = shard.read_bytes()
    shard.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    for path in (*one.iterdir(), *other.iterdir()):
        os.utime(path, (1, 1))
    # What a run leaves that is killed before it publishes.
    made = expand(one, tmp_path / "made")
    staged, _ = open_staging(name_staging(out, identify(made.plan, out)))
    staged.files.rmdir()
    made.out.rename(staged.files)
    assert expand(other, out).moved.reused == 0
    assert (out / made.plan.files[0].name).read_bytes() == shard.read_bytes()


@pytest.mark.parametrize("state", [b"", b"{", b"[]", b"null", b"\xff\xfe"])
def test_a_staging_folder_without_a_sound_state_is_not_used(state: bytes, out: Path) -> None:
    first, _ = open_staging(name_staging(out, IDENTITY))
    finish(first)
    (first.folder / "state.json").write_bytes(state)
    second, found = open_staging(name_staging(out, IDENTITY))
    assert not found
    assert list(second.files.iterdir()) == []


def test_a_state_that_cannot_be_read_costs_nothing_of_what_is_there(out: Path) -> None:
    first, _ = open_staging(name_staging(out, IDENTITY))
    finish(first)
    (first.folder / "state.json").unlink()
    (first.folder / "state.json").mkdir()
    with pytest.raises(TransferError, match="cannot read"):
        open_staging(name_staging(out, IDENTITY))
    assert (first.files / "new.txt").read_text() == "new"


def test_leftovers_are_those_of_other_plans_for_this_output(out: Path) -> None:
    mine, _ = open_staging(name_staging(out, IDENTITY))
    others, _ = open_staging(name_staging(out, OTHER_PLAN))
    open_staging(name_staging(out.with_name("out2"), IDENTITY))
    assert find_leftovers(out, mine.folder) == (others.folder,)


def test_only_what_holds_nothing_is_cleared_away(out: Path) -> None:
    kept, _ = open_staging(name_staging(out, IDENTITY))
    empty, _ = open_staging(name_staging(out, OTHER_PLAN))
    discard(empty)
    empty.folder.mkdir()
    with lock_target(out):
        clear_debris(out)
        # Another run is at work.
        assert empty.folder.exists()
    clear_debris(out)
    assert names_beside(out) == [kept.folder.name]


# Publishing.


def test_publishing_makes_the_files_the_output_and_leaves_nothing(out: Path) -> None:
    staged, _ = open_staging(name_staging(out, IDENTITY))
    finish(staged)
    assert not is_published(staged, out)
    assert publish(staged, out, overwrite=False) == ()
    assert is_published(staged, out)
    assert [path.name for path in out.iterdir()] == ["new.txt"]
    assert names_beside(out) == []


def test_an_output_that_came_to_be_meanwhile_is_left_as_it_is(out: Path) -> None:
    staged, _ = open_staging(name_staging(out, IDENTITY))
    finish(staged)
    make_old(out)
    with pytest.raises(OutputError, match="came to be while the run was at work"):
        publish(staged, out, overwrite=False)
    assert [path.name for path in out.iterdir()] == ["old.txt"]
    assert (staged.files / "new.txt").exists()


def test_an_old_output_is_swapped_for_the_new_one_in_one_step(
    out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_old(out)
    staged, _ = open_staging(name_staging(out, IDENTITY))
    finish(staged)
    renames = []
    monkeypatch.setattr(os, "rename", lambda *names: renames.append(names))
    notes = publish(staged, out, overwrite=True)
    if sys.platform == "linux":
        assert (notes, renames) == ((), [])
        assert [path.name for path in out.iterdir()] == ["new.txt"]
        assert names_beside(out) == []


def test_a_system_that_cannot_swap_folders_is_told_of(
    out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_old(out)
    staged, _ = open_staging(name_staging(out, IDENTITY))
    finish(staged)
    monkeypatch.setattr(staging, "exchange", lambda one, other: False)
    [note] = publish(staged, out, overwrite=True)
    assert "for a moment the output's name did not exist" in note
    assert [path.name for path in out.iterdir()] == ["new.txt"]
    assert names_beside(out) == []


def test_the_old_output_is_back_if_the_new_one_cannot_take_its_place(
    out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_old(out)
    staged, _ = open_staging(name_staging(out, IDENTITY))
    finish(staged)
    rename = os.rename

    def fail(source: Path, target: Path) -> None:
        if source == staged.files:
            raise OSError(5, "Input/output error")
        rename(source, target)

    monkeypatch.setattr(staging, "exchange", lambda one, other: False)
    monkeypatch.setattr(os, "rename", fail)
    with pytest.raises(TransferError, match="cannot rename"):
        publish(staged, out, overwrite=True)
    assert [path.name for path in out.iterdir()] == ["old.txt"]


def test_an_output_that_a_killed_run_had_taken_away_is_put_back(out: Path) -> None:
    make_old(out)
    staged, _ = open_staging(name_staging(out, IDENTITY))
    out.rename(staged.replaced)
    assert restore_replaced(out)
    assert (out / "old.txt").read_text() == "old"
    assert not restore_replaced(out)


# Whole runs.


def expand(source: Path, out: Path, **options: object) -> blockexpand.Expansion:
    return blockexpand.expand(source, out, new_layers=2, **options)  # type: ignore[arg-type]


def test_ctrl_c_right_after_the_staging_folder_was_made_leaves_nothing(
    out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(staged: staging.Staging) -> None:
        open_staging(staged)
        raise KeyboardInterrupt

    source = make_source(tmp_path / "source")
    monkeypatch.setattr(writing, "open_staging", interrupt)
    with pytest.raises(KeyboardInterrupt):
        expand(source, out)
    assert not out.exists()
    assert names_beside(out) == [source.name]


def leave_untidy(source: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make an output as a run leaves it that is killed after publishing; return its staging."""
    with monkeypatch.context() as patch:
        for module in (staging, writing):
            patch.setattr(module, "discard", lambda staged: None)
        expand(source, out)
    [staged] = find_leftovers(out, None)
    return staged


def test_an_output_that_was_published_but_not_tidied_up_after_is_recognised(
    out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = make_source(tmp_path / "source")
    leave_untidy(source, out, monkeypatch)
    made = snapshot(out)
    result = expand(source, out)
    assert "an earlier run had finished this output" in result.notes[-1]
    assert snapshot(out) == made
    assert find_leftovers(out, None) == ()
    assert "already there" in expand(source, out).notes[-1]


def test_another_folder_that_got_the_number_of_a_published_one_is_not_taken_for_it(
    out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = make_source(tmp_path / "source")
    staged = leave_untidy(source, out, monkeypatch)
    made = snapshot(out)
    shutil.rmtree(out)
    make_old(out)
    state = json.loads((staged / "state.json").read_text())
    state["published_inode"] = out.stat().st_ino
    (staged / "state.json").write_text(json.dumps(state))
    with pytest.raises(
        OutputError, match=r"is not, or no longer, what an earlier run .* \(--overwrite would"
    ):
        expand(source, out)
    assert (out / "old.txt").read_text() == "old"
    expand(source, out, overwrite_anything=out)
    assert snapshot(out) == made
    assert names_beside(out) == ["source"]


def test_another_plan_does_not_take_an_untidy_output_for_its_own(
    out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = make_source(tmp_path / "source")
    leave_untidy(source, out, monkeypatch)
    made = snapshot(out)
    with pytest.raises(OutputError, match="exists and is not empty"):
        blockexpand.expand(source, out, new_layers=1)
    assert snapshot(out) == made


def test_a_rerun_without_hardlink_does_not_keep_links(out: Path, tmp_path: Path) -> None:
    source = make_source(tmp_path / "source")
    shard = source / "model-00001-of-00003.safetensors"
    linked = tmp_path / "linked"
    result = expand(source, linked, hardlink=True)
    assert result.moved.linked > 0
    assert shard.stat().st_nlink == 2
    # What a run leaves that is killed before it publishes.
    plan = result.plan
    staged, _ = open_staging(name_staging(out, identify(plan, out)))
    staged.files.rmdir()
    linked.rename(staged.files)
    assert json.loads((staged.folder / "state.json").read_text())["published_inode"] is None
    expand(source, out)
    assert shard.stat().st_nlink == 1
    made = out / result.plan.files[0].name
    assert made.read_bytes() == shard.read_bytes()


@pytest.mark.parametrize("journal", [False, True], ids=["no journal", "journal"])
def test_what_no_journal_vouches_for_does_not_show_through(
    journal: bool, out: Path, tmp_path: Path
) -> None:
    source = make_source(tmp_path / "source")
    result = expand(source, tmp_path / "first")
    plan = result.plan
    staged, _ = open_staging(name_staging(out, identify(plan, out)))
    for file in plan.files:
        # With a journal the file is of another size than the journal was written for.
        (staged.partial / file.name).write_bytes(b"\xff" * (file.nbytes + journal))
        if journal:
            append_journal(staged.journals / file.name, [(0, file.nbytes)])
    expand(source, out)
    for file in plan.files:
        assert (out / file.name).read_bytes() == (tmp_path / "first" / file.name).read_bytes()


def test_new_parent_folders_are_made(tmp_path: Path) -> None:
    source = make_source(tmp_path / "source")
    expand(source, tmp_path / "a" / "b" / "out")
    assert names_beside(tmp_path / "a" / "b" / "out") == []
