"""The system fails, the source changes, another run comes in between, a user presses Ctrl-C.

Whatever happens ends with one clear line; the source is untouched, OUT is what it was before or
the complete new one, and the same command, run again, ends with the bytes of an undisturbed run.
"""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from faults import (
    ENTRIES,
    LOOKS,
    STEPS,
    WRITES,
    Case,
    Nursery,
    Outcome,
    make_source,
    mounted,
    names_beside,
    place,
    prepare,
    scratch,
    snapshot,
    source_state,
    spread,
    wait_for,
)

ERRORS = (errno.ENOSPC, errno.EIO, errno.EDQUOT, errno.EACCES, errno.EROFS)
COMPLETE = "the new output is complete and in its place"


@pytest.fixture(scope="module")
def nursery(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nursery]:
    with Nursery(tmp_path_factory.mktemp("nursery")) as nursery:
        yield nursery


@pytest.fixture(scope="module")
def converting_nursery(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nursery]:
    """One that has torch loaded."""
    with Nursery(tmp_path_factory.mktemp("nursery"), preload=["torch"]) as nursery:
        yield nursery


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    with scratch(tmp_path) as folder:
        yield folder


def check_message(outcome: Outcome, case: Case) -> None:
    """One line, without a traceback, that names a path of the run and goes on to say what to do."""
    assert re.fullmatch(r"blockexpand: [^\n]+\n", outcome.err), outcome.err
    # It may be a folder above: the way to the file is looked up folder by folder.
    path = re.match(r"blockexpand: (/[^:]*): ", outcome.err)
    assert path is not None, outcome.err
    inside = case.source.parent, case.out.parent
    assert any(Path(path[1]) in (x, *x.parents) or x in Path(path[1]).parents for x in inside)
    assert re.search(r"; [a-z ]{3,}", outcome.err), outcome.err
    assert outcome.out == ""


def check_after(
    nursery: Nursery, case: Case, failed: Outcome, old: object, where: str, *, calm: bool = False
) -> None:
    """Check what a failed run left, and that the same command then ends well."""
    assert failed.code in (0, 3), where + failed.err
    assert source_state(case.source) == case.before, where
    left = snapshot(case.out)
    if failed.code == 0:
        assert left == case.wanted, where
        return
    check_message(failed, case)
    if COMPLETE in failed.err:
        assert left == case.wanted, where
    else:
        assert left == old, where
        kept = re.search(r"stays? in ([^ )]+)", failed.err)
        # A lock that could not be looked at is left: it may be another run's.
        stays = {*names_beside(case.out)} - {".out.blockexpand.lock"}
        assert bool(stays) <= bool(kept), where + failed.err
    rerun = nursery.run(case.command, lacks=case.lacks)
    if rerun.code == 3 and left == case.wanted:
        assert "exists and is not empty" in rerun.err, where
    else:
        assert (rerun.code, rerun.err) == (0, ""), where
    assert snapshot(case.out) == case.wanted, where
    assert names_beside(case.out) == [], where
    assert source_state(case.source) == case.before, where


def count(nursery: Nursery, case: Case, among: Sequence[str]) -> int:
    """Return how many calls of these an undisturbed run makes, also of those that only look."""
    place(case.old, case.out)
    low, high = 0, 1
    while nursery_fails(nursery, case, high, among):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        if nursery_fails(nursery, case, middle, among):
            low = middle
        else:
            high = middle
    return low


def nursery_fails(nursery: Nursery, case: Case, at: int, among: Sequence[str]) -> bool:
    place(case.old, case.out)
    return nursery.run(case.command, do="kill", at=at, among=among, lacks=case.lacks).code != 0


CASES = {
    "mirrored shards": ((), {}),
    "linked": (("--hardlink",), {}),
    "replaced": ((), {"overwrite": True}),
    "replaced where folders cannot be swapped": ((), {"overwrite": True, "lacks": ["renameat2"]}),
    "read and write only": ((), {"lacks": ["direct", "copy_file_range", "ioctl"]}),
}


def check_errors(
    nursery: Nursery, case: Case, among: Sequence[str], codes: Sequence[int], step: int = 1
) -> int:
    """Give each `step`-th call one of the errors, in turn; return how many were given."""
    calls = count(nursery, case, among)
    given = 0
    for at in range(1, calls + 1, step):
        code = codes[at // step % len(codes)]
        place(case.old, case.out)
        old = snapshot(case.out)
        failed = nursery.run(
            case.command, do="fail", at=at, argument=code, among=among, lacks=case.lacks
        )
        last = failed.calls[-1:]
        where = f"{errno.errorcode[code]} at call {at} of {calls}, after {last}: "
        check_after(nursery, case, failed, old, where)
        given += 1
    return given


@pytest.mark.parametrize("name", CASES)
def test_an_error_at_any_call_is_told_in_one_line(
    name: str, nursery: Nursery, folder: Path
) -> None:
    options, rest = CASES[name]
    case = prepare(nursery, folder, *options, **rest)  # type: ignore[arg-type]
    assert check_errors(nursery, case, STEPS, ERRORS, step=3) > 25
    assert check_errors(nursery, case, LOOKS, ERRORS, step=7) > 10


@pytest.mark.long
@pytest.mark.parametrize("code", ERRORS, ids=errno.errorcode.get)
@pytest.mark.parametrize("name", CASES)
def test_every_error_at_every_call_is_told_in_one_line(
    name: str, code: int, nursery: Nursery, folder: Path
) -> None:
    options, rest = CASES[name]
    case = prepare(nursery, folder, *options, **rest)  # type: ignore[arg-type]
    check_errors(nursery, case, STEPS, [code])
    check_errors(nursery, case, LOOKS, [code])


def test_an_error_while_converting(converting_nursery: Nursery, folder: Path) -> None:
    case = prepare(converting_nursery, folder, dtype="F32")
    assert check_errors(converting_nursery, case, STEPS, ERRORS, step=9) > 10


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.EROFS], ids=errno.errorcode.get)
def test_an_error_that_stays_also_while_tidying_up(
    code: int, nursery: Nursery, folder: Path
) -> None:
    case = prepare(nursery, folder)
    among = (*WRITES, *ENTRIES, "open", "file", "preadv", "fsync", "rmdir", "unlink")
    for at in range(8, case.calls, 11):
        place(case.old, case.out)
        failed = nursery.run(case.command, do="fail-on", at=at, argument=code, among=among)
        assert os.strerror(code) in failed.err
        rerun = nursery.run(case.command)
        assert rerun.code == 0 or "exists and is not empty" in rerun.err
        check_message(failed, case)
        assert snapshot(case.out) == case.wanted
        assert names_beside(case.out) == []


def test_short_reads_and_writes_are_continued(nursery: Nursery, folder: Path) -> None:
    case = prepare(nursery, folder)
    for lacks in [(), ("direct",), ("direct", "copy_file_range", "ioctl")]:
        for among in ["preadv"], ["pwrite"], ["write"], ["copy_file_range"], STEPS:
            place(case.old, case.out)
            done = nursery.run(case.command, do="shorten", among=among, lacks=lacks)
            assert (done.code, done.err) == (0, "")
            assert snapshot(case.out) == case.wanted


@pytest.mark.parametrize("name", CASES)
def test_a_call_that_a_signal_broke_is_made_again(
    name: str, nursery: Nursery, folder: Path
) -> None:
    options, rest = CASES[name]
    case = prepare(nursery, folder, *options, **rest)  # type: ignore[arg-type]
    for lacks in case.lacks, (*case.lacks, "direct"):
        for among in (
            ("preadv", "pwrite", "write", "copy_file_range", "ioctl", "fsync"),
            # Not `open`: Python itself makes that again.
            ("ftruncate", "flock", *ENTRIES),
        ):
            place(case.old, case.out)
            done = nursery.run(case.command, do="stutter", among=among, lacks=lacks)
            assert (done.code, done.err) == (0, "")
            assert snapshot(case.out) == case.wanted


NOT_HERE = (errno.EXDEV, errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS, errno.ENOTTY, errno.EPERM)


@pytest.mark.parametrize("code", NOT_HERE, ids=errno.errorcode.get)
@pytest.mark.parametrize("means", ["ioctl", "copy_file_range"])
def test_a_means_that_is_not_here_leads_to_the_next(
    means: str, code: int, nursery: Nursery, folder: Path
) -> None:
    case = prepare(nursery, folder)
    for lacks in (), ("direct",):
        place(case.old, case.out)
        done = nursery.run(case.command, do="fail", argument=code, among=[means], lacks=lacks)
        assert (done.code, done.err) == (0, "")
        assert snapshot(case.out) == case.wanted


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.EDQUOT], ids=errno.errorcode.get)
@pytest.mark.parametrize("means", ["ioctl", "copy_file_range", "pwrite"])
def test_a_means_that_fails_does_not_lead_to_the_next(
    means: str, code: int, nursery: Nursery, folder: Path
) -> None:
    case = prepare(nursery, folder)
    place(case.old, case.out)
    lacks = ("direct",) if means == "copy_file_range" else ()
    failed = nursery.run(case.command, do="fail", argument=code, among=[means], lacks=lacks)
    assert failed.code == 3
    assert os.strerror(code) in failed.err
    check_message(failed, case)
    assert not case.out.exists()


def test_direct_io_that_is_refused_leads_to_the_next_means(nursery: Nursery, folder: Path) -> None:
    case = prepare(nursery, folder)
    for lacks in ["direct"], ["direct transfer"], ["direct transfer", "copy_file_range"]:
        place(case.old, case.out)
        done = nursery.run(case.command, lacks=lacks)
        assert (done.code, done.err) == (0, "")
        assert snapshot(case.out) == case.wanted


# The source changes.


@pytest.mark.parametrize("change", ["append", "touch", "replace"])
def test_a_source_that_changes_while_it_is_read_is_refused(
    change: str, nursery: Nursery, folder: Path
) -> None:
    case = prepare(nursery, folder)
    pristine = folder / "pristine"
    shutil.copytree(case.source, pristine)
    place(None, case.out)
    whole = nursery.run(case.command)
    for shard in ("model-00001-of-00003.safetensors", "model-00003-of-00003.safetensors"):
        path = str(case.source / shard)
        mine = [number for number, call in enumerate(whole.calls, 1) if call.path == path]
        # From after its header was read to before the last of its bytes was.
        assert len(mine) > 5
        for at in range(mine[0] + 1, case.calls, 5):
            place(None, case.out)
            outcome = nursery.run(case.command, do=change, at=at, argument=path)
            shutil.rmtree(case.source)
            shutil.copytree(pristine, case.source)
            if at <= mine[-1]:
                assert outcome.code == 3
            if outcome.code == 0:
                assert snapshot(case.out) == case.wanted
                continue
            check_message(outcome, case)
            assert f"{path}: the file changed after it was planned with" in outcome.err
            assert not case.out.exists()
    place(None, case.out)
    assert nursery.run(case.command).code == 0
    assert snapshot(case.out) == case.wanted


def test_a_side_file_that_changes_while_it_is_copied_is_refused(
    nursery: Nursery, folder: Path
) -> None:
    case = prepare(nursery, folder)
    place(None, case.out)
    whole = nursery.run(case.command)
    path = str(case.source / "tokenizer.json")
    at = [number for number, call in enumerate(whole.calls, 1) if call.path == path][-1]
    place(None, case.out)
    outcome = nursery.run(case.command, do="append", at=at, argument=path)
    assert outcome.code == 3
    assert f"{path}: the file changed after it was planned with" in outcome.err
    assert not case.out.exists()


# Two runs at once.


@pytest.mark.parametrize("plans", ["same plan", "different plans"])
@pytest.mark.parametrize("overwrite", [False, True], ids=["new", "overwrite"])
def test_of_two_runs_into_the_same_output_one_wins(
    plans: str, overwrite: bool, nursery: Nursery, folder: Path
) -> None:
    case = prepare(nursery, folder, overwrite=overwrite)
    other = case
    if plans == "different plans":
        command = tuple("1" if word == "2" else word for word in case.command)
        place(case.old, case.out)
        assert nursery.run(command).code == 0
        other = replace(case, command=command, wanted=snapshot(case.out))
        assert other.wanted != case.wanted
    refused = 0
    for at in spread(case.calls, 45)[::3]:
        place(case.old, case.out)
        go = folder / f"go-{at}"
        first = nursery.start(case.command, do="wait", at=at, argument=go)
        wait_for(Path(f"{go}.here"))
        second = nursery.run(other.command)
        go.touch()
        one = nursery.wait(first)
        codes = one.code, second.code
        for loser in (one, second):
            if loser.code == 3:
                check_message(loser, case)
                assert re.search("another run is writing it|exists and is not empty", loser.err)
        assert 0 in codes
        if overwrite:
            # Both may have come through, one after the other.
            last = case if one.code == 0 else other
        else:
            # A run of the same plan that comes late enough finds the output there already.
            assert sorted(codes) == [0, 3] or (codes == (0, 0) and other is case)
            last = case if one.code == 0 else other
        assert snapshot(case.out) == last.wanted
        assert names_beside(case.out) == []
        refused += "another run is writing it" in second.err
    assert refused > 5


def test_of_many_runs_at_once_one_wins(nursery: Nursery, folder: Path) -> None:
    case = prepare(nursery, folder)
    for _ in range(5):
        place(None, case.out)
        outcomes = [nursery.wait(n) for n in [nursery.start(case.command) for _ in range(6)]]
        # Those that come when it is finished find it there already.
        assert {outcome.code for outcome in outcomes} <= {0, 3}
        assert sum(outcome.code == 0 for outcome in outcomes) >= 1
        for outcome in outcomes:
            assert outcome.code == 0 or re.search("another run|not empty", outcome.err)
        assert snapshot(case.out) == case.wanted
        assert names_beside(case.out) == []


# What other plans left, and Ctrl-C.


def test_what_another_plan_left_is_named_and_kept(nursery: Nursery, folder: Path) -> None:
    case = prepare(nursery, folder)
    place(None, case.out)
    assert nursery.run(case.command, do="kill", at=case.calls // 2).code == -9
    [left] = [path for path in case.out.parent.iterdir() if path.is_dir()]
    held = snapshot(left)
    command = tuple("1" if word == "2" else word for word in case.command)
    other = nursery.run((*command, "--json"))
    assert other.code == 0
    assert any(str(left) in note for note in json.loads(other.out)["notes"])
    assert snapshot(left) == held
    again = nursery.run((*case.command, "--json", "--overwrite"))
    assert json.loads(again.out)["moved"]["reused"] > 0
    assert not left.exists()
    assert names_beside(case.out) == []


@pytest.mark.parametrize("overwrite", [False, True], ids=["new", "overwrite"])
def test_ctrl_c_ends_in_one_line(overwrite: bool, nursery: Nursery, folder: Path) -> None:
    case = prepare(nursery, folder, overwrite=overwrite)
    said = set()
    for at in spread(case.calls, 60):
        place(case.old, case.out)
        old = snapshot(case.out)
        outcome = nursery.run(case.command, do="interrupt", at=at)
        where = f"at call {at} of {case.calls}: {outcome.calls[-1:]}: {outcome.err}"
        assert outcome.code == 130, where
        said_now = re.fullmatch(r"blockexpand: interrupted; ([^\n]+)\n", outcome.err)
        assert said_now is not None, where
        kept = re.fullmatch(
            r"finished parts stay in (.*) for a rerun of the same command", said_now[1]
        )
        if COMPLETE in said_now[1]:
            assert snapshot(case.out) == case.wanted, where
            said.add("complete")
            continue
        assert snapshot(case.out) == old, where
        if kept:
            assert names_beside(case.out) == [Path(kept[1]).name], where
            assert any(path.is_file() for path in (Path(kept[1]) / "files").iterdir()) or any(
                (Path(kept[1]) / "journal").iterdir()
            )
            said.add("kept")
        else:
            assert said_now[1] == "the output was not made or changed", where
            # Between opening the lock and taking it nothing is known of who else holds it.
            assert names_beside(case.out) in ([], [".out.blockexpand.lock"]), where
            said.add("nothing")
        assert nursery.run(case.command).code == 0, where
        assert snapshot(case.out) == case.wanted, where
        assert names_beside(case.out) == [], where
    assert said == {"nothing", "kept", "complete"}


# Durability.


@pytest.mark.parametrize(
    ("options", "source"),
    [((), {}), (("--max-shard-size", "100KB"), {}), ((), {"shards": 1}), (("--overwrite",), {})],
)
def test_everything_is_forced_onto_the_disk_before_and_after_publishing(
    options: tuple[str, ...], source: dict[str, object], nursery: Nursery, folder: Path
) -> None:
    root = make_source(folder / "source", **source)  # type: ignore[arg-type]
    out = folder / "new" / "parents" / "out"
    if "--overwrite" in options:
        out.mkdir(parents=True)
        (out / "config.json").write_text('{"model_type": "old"}')
        (out / "merges.txt").write_text("old")
    done = nursery.run(("--src", root, "--out", out, "--new-layers", "2", *options))
    assert done.code == 0
    calls = done.calls
    publishing = max(
        number
        for number, call in enumerate(calls)
        if call.name in ("rename", "renameat2") and call.path == str(out)
    )
    checked = 0
    for path in [out, *out.rglob("*")]:
        inode = path.stat().st_ino
        changes = [
            number
            for number, call in enumerate(calls)
            if call.inode == inode
            and (call.enters or call.name == "unlink" if path.is_dir() else call.writes)
        ]
        syncs = [
            number
            for number, call in enumerate(calls)
            if call.name == "fsync" and call.inode == inode
        ]
        assert changes, path
        assert syncs and max(changes) < max(syncs) < publishing, path
        checked += 1
    assert checked > 10
    for parent in (out.parent, *([] if "--overwrite" in options else [out.parent.parent, folder])):
        inode = parent.stat().st_ino
        entered = max(
            number
            for number, call in enumerate(calls)
            if call.enters
            and call.inode == inode
            and call.path.startswith(str(folder / "new"))
            and "blockexpand" not in Path(call.path).name
        )
        assert any(call.name == "fsync" and call.inode == inode for call in calls[entered + 1 :]), (
            parent
        )


def test_the_journal_says_that_bytes_are_done_only_after_they_were_forced_onto_the_disk(
    nursery: Nursery, folder: Path
) -> None:
    root = make_source(folder / "source")
    done = nursery.run(("--src", root, "--out", folder / "out", "--new-layers", "2"))
    journals = 0
    unsynced: set[str] = set()
    for call in done.calls:
        path = Path(call.path)
        if path.parent.name == "partial" and call.writes:
            unsynced.add(path.name)
        elif path.parent.name == "partial" and call.name == "fsync":
            unsynced.discard(path.name)
        elif path.parent.name == "journal" and call.name == "write":
            assert path.name not in unsynced
            journals += 1
        elif path.parent.name == "files" and call.name == "rename":
            assert path.name not in unsynced
    assert journals > 3


# File systems of our own.


def prepare_on(nursery: Nursery, folder: Path, point: Path) -> Case:
    """Prepare a case whose output lies on another file system."""
    case = prepare(nursery, folder)
    out = point / "parent" / "out"
    command = tuple(out if word == case.out else word for word in case.command)
    assert nursery.run(command).code == 0
    wanted = snapshot(out)
    shutil.rmtree(out)
    return replace(case, out=out, command=command, wanted=wanted)


@pytest.mark.mount
def test_a_disk_that_is_too_small_is_told_before_anything_is_written(
    nursery: Nursery, tmp_path: Path
) -> None:
    case = prepare(nursery, tmp_path)
    with mounted("tmpfs", tmp_path, 400 << 10) as point:
        command = tuple(point / "out" if word == case.out else word for word in case.command)
        outcome = nursery.run(command)
        assert outcome.code == 3
        assert "not enough disk" in outcome.err
        assert list(point.iterdir()) == []


@pytest.mark.mount
@pytest.mark.parametrize("kind", ["tmpfs", "ext4", "xfs"])
def test_a_disk_that_runs_full(kind: str, nursery: Nursery, tmp_path: Path) -> None:
    nbytes = {"tmpfs": 2 << 20, "ext4": 8 << 20, "xfs": 320 << 20}[kind]
    with mounted(kind, tmp_path, nbytes) as point:
        case = prepare_on(nursery, tmp_path, point)
        seen: set[bool] = set()
        for at in range(20, case.calls - 40, 30):
            go = tmp_path / f"go-{at}"
            running = nursery.start(case.command, do="wait", at=at, argument=go)
            wait_for(Path(f"{go}.here"))
            fill(point / "filler")
            go.touch()
            full = nursery.wait(running)
            assert full.code == 3
            assert re.search("(No space left on device|not enough disk: .*); free some", full.err)
            seen |= {"not enough disk" in full.err}
            assert not case.out.exists()
            (point / "filler").unlink()
            assert nursery.run(case.command).code == 0
            assert snapshot(case.out) == case.wanted
            assert names_beside(case.out) == []
            shutil.rmtree(case.out)
        assert False in seen


def fill(path: Path) -> None:
    """Write until the file system is full."""
    with path.open("wb", buffering=0) as stream:
        for size in (1 << 20, 4096, 512):
            try:
                while stream.write(b"x" * size):
                    pass
            except OSError as error:
                assert error.errno == errno.ENOSPC
        os.fsync(stream.fileno())


@pytest.mark.mount
def test_a_file_system_without_room_for_another_file(nursery: Nursery, tmp_path: Path) -> None:
    with mounted("tmpfs", tmp_path, 4 << 20, "nr_inodes=64") as point:
        case = prepare_on(nursery, tmp_path, point)
        fillers = point / "fillers"
        fillers.mkdir()
        for free in range(1, 16, 2):
            with pytest.raises(OSError, match="No space left"):
                for number in range(100):
                    (fillers / str(number)).touch()
            for path in list(fillers.iterdir())[:free]:
                path.unlink()
            full = nursery.run(case.command)
            assert full.code == 3
            assert "No space left on device; free some space and run the same" in full.err
            assert not case.out.exists()
            shutil.rmtree(fillers)
            assert nursery.run(case.command).code == 0
            assert snapshot(case.out) == case.wanted
            assert names_beside(case.out) == []
            shutil.rmtree(case.out)
            fillers.mkdir()


@pytest.mark.mount
def test_a_file_system_that_is_mounted_read_only(nursery: Nursery, tmp_path: Path) -> None:
    with mounted("ext4", tmp_path, 8 << 20) as point:
        case = prepare_on(nursery, tmp_path, point)
        subprocess.run(["mount", "-o", "remount,ro", point], check=True)
        outcome = nursery.run(case.command)
        assert outcome.code == 3
        assert "is mounted read-only; choose another output folder" in outcome.err
        subprocess.run(["mount", "-o", "remount,rw", point], check=True)
        assert names_beside(case.out) == []


@pytest.mark.mount
def test_a_folder_that_may_not_be_written(nursery: Nursery, tmp_path: Path) -> None:
    with mounted("ext4", tmp_path, 8 << 20) as point:
        case = prepare_on(nursery, tmp_path, point)
        if subprocess.run(["chattr", "+i", case.out.parent], capture_output=True).returncode:
            pytest.skip("chattr cannot protect a folder here")
        try:
            outcome = nursery.run(case.command)
        finally:
            subprocess.run(["chattr", "-i", case.out.parent], check=True)
        assert outcome.code == 3
        assert re.search("cannot make a file in it: .* has to be writable: check", outcome.err)
        assert names_beside(case.out) == []


@pytest.mark.mount
def test_a_mount_point_is_refused_as_output_also_an_empty_one(
    nursery: Nursery, tmp_path: Path
) -> None:
    case = prepare(nursery, tmp_path)
    with mounted("tmpfs", tmp_path, 4 << 20) as point:
        for options in (), ("--overwrite",):
            command = tuple(point if word == case.out else word for word in case.command)
            outcome = nursery.run((*command, *options))
            assert outcome.code == 3
            assert re.search("is a mount point.*; choose a folder in it", outcome.err)


@pytest.mark.mount
@pytest.mark.parametrize("out", ["models/one", "models/one/sub", "models", "models/two"])
def test_a_source_is_known_by_another_path_too(out: str, nursery: Nursery, tmp_path: Path) -> None:
    source = make_source(tmp_path / "models" / "one")
    (source / "sub").mkdir()
    (tmp_path / "models" / "two").mkdir()
    before = snapshot(source)
    with mounted("bind", tmp_path, 0, str(tmp_path / "models")) as point:
        command = ("--src", point / "one", "--out", tmp_path / out, "--new-layers", "1")
        outcome = nursery.run((*command, "--overwrite"))
    assert snapshot(source) == before
    if out == "models/two":
        assert outcome.code == 0
    else:
        assert outcome.code == 3
        assert re.fullmatch(
            r"blockexpand: [^\n]*may not lie inside each other; [^\n]*\n", outcome.err
        )
