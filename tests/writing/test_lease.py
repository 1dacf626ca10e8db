"""A file system without locks gets a lease, which is taken over only from who is provably gone."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from faults import REPOSITORY, make_source, names_beside

import blockexpand
from blockexpand.errors import OutputBusyError, OutputError
from blockexpand.writing import lease, locking
from blockexpand.writing.locking import lock_target


@pytest.fixture(autouse=True)
def no_locks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Answer as a Lustre mount without `-o flock` does; let all waits be short."""

    def flock(fd: int, how: int) -> None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(locking.fcntl, "flock", flock)
    monkeypatch.setattr(lease, "_RENEW_SECONDS", 0.05)
    monkeypatch.setattr(lease, "_STALE_SECONDS", 1.5)
    monkeypatch.setattr(lease, "_POLL_SECONDS", 0.02)


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


@pytest.fixture
def file(out: Path) -> Path:
    return out.with_name(".out.blockexpand.lease")


def write_record(file: Path, **fields: object) -> None:
    """Leave a lease as a run did that could not remove it."""
    record = {"token": "another", "host": "node7", "pid": 4711, "system": "other", "start": "1"}
    file.write_text(json.dumps(record | fields).ljust(512))


def test_a_lease_is_one_runs_alone_and_leaves_nothing(out: Path, file: Path) -> None:
    with lock_target(out) as check:
        record = json.loads(file.read_text())
        assert record["pid"] == os.getpid()
        check()
        with (
            pytest.raises(OutputBusyError, match=rf"\(process {os.getpid()} on .*\); wait until"),
            lock_target(out),
        ):
            pass
        with lock_target(out.with_name("other")):
            pass
    assert names_beside(out) == []


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL])
def test_every_answer_of_a_system_without_locks(
    code: int, out: Path, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def flock(fd: int, how: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(locking.fcntl, "flock", flock)
    with lock_target(out):
        assert file.exists()
    assert names_beside(out) == []


def test_a_whole_run(tmp_path: Path, out: Path) -> None:
    source = make_source(tmp_path / "source")
    blockexpand.expand(source, out, new_layers=1, verify_after="tensors")
    assert names_beside(out) == ["source"]


def test_the_lease_of_a_process_of_this_machine_that_is_gone_is_taken_over_at_once(
    out: Path, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = (
        "import os, sys, signal; from pathlib import Path\n"
        "from blockexpand.writing.lease import hold_lease\n"
        "with hold_lease(Path(sys.argv[1]), Path('out')): os.kill(os.getpid(), signal.SIGKILL)"
    )
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    assert subprocess.run([sys.executable, "-c", code, file], env=environment).returncode == -9
    assert file.exists()
    monkeypatch.setattr(lease, "_STALE_SECONDS", 600)
    began = time.monotonic()
    with lock_target(out) as check:
        check()
    assert time.monotonic() - began < 30
    assert names_beside(out) == []


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"system": lease._name_system(), "pid": os.getpid(), "start": lease._start_of(os.getpid())},
    ],
    ids=["another machine", "a process that lives"],
)
def test_a_lease_that_is_not_renewed_is_taken_over_after_the_wait_only(
    fields: dict[str, object], out: Path, file: Path
) -> None:
    write_record(file, **fields)
    # No clock but our own is asked.
    os.utime(file, (1, 1))
    began = time.monotonic()
    with lock_target(out):
        assert time.monotonic() - began >= 1.5
    assert names_beside(out) == []


def test_a_lease_without_a_sound_record_is_waited_for_too(out: Path, file: Path) -> None:
    file.write_bytes(b"{")
    began = time.monotonic()
    with lock_target(out):
        assert time.monotonic() - began >= 1.5


def test_a_lease_that_is_renewed_is_never_taken_over(out: Path, file: Path) -> None:
    write_record(file)
    over = threading.Event()

    def renew() -> None:
        count = 0
        while not over.wait(0.3):
            count += 1
            write_record(file, count=count)

    thread = threading.Thread(target=renew)
    thread.start()
    try:
        with pytest.raises(OutputBusyError, match=r"\(process 4711 on node7\)"), lock_target(out):
            pass
    finally:
        over.set()
        thread.join()
    assert json.loads(file.read_text())["token"] == "another"


def test_of_many_that_wait_for_a_stale_lease_one_gets_it(out: Path, file: Path) -> None:
    write_record(file)
    held, refused, together = [], [], threading.Lock()

    def run() -> None:
        try:
            with lock_target(out):
                assert together.acquire(blocking=False)
                time.sleep(0.5)
                together.release()
                held.append(1)
        except OutputBusyError:
            refused.append(1)

    threads = [threading.Thread(target=run) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(held) >= 1
    assert len(held) + len(refused) == 6
    assert names_beside(out) == []


def test_a_run_that_lost_its_lease_publishes_nothing(tmp_path: Path, out: Path, file: Path) -> None:
    source = make_source(tmp_path / "source")

    def lose(nbytes: int) -> None:
        write_record(file)

    with pytest.raises(OutputError, match="was held up for so long that another one may have"):
        blockexpand.expand(source, out, new_layers=1, progress=blockexpand.Progress(advance=lose))
    assert not out.exists()
    # What is another's stays.
    assert json.loads(file.read_text())["token"] == "another"


@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")
def test_a_whole_command_where_the_system_call_itself_is_missing(tmp_path: Path) -> None:
    source, out = make_source(tmp_path / "source"), tmp_path / "out"
    command = ["strace", "-f", "-qq", "-o", tmp_path / "log", "-e", "inject=flock:error=ENOSYS"]
    command += [sys.executable, "-m", "blockexpand", "--src", source, "--out", out]
    done = subprocess.run(
        [*command, "--new-layers", "1", "-q"], cwd=REPOSITORY, capture_output=True, text=True
    )
    if "ptrace" in done.stderr.lower():
        pytest.skip("strace may not be used here")
    assert (done.returncode, done.stderr) == (0, "")
    assert "INJECTED" in (tmp_path / "log").read_text()
    assert names_beside(out) == ["log", "source"]
    assert fcntl is not None
