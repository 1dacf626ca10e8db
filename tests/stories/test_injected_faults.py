"""The scripts that give real runs real faults, and cut the power: they find what they look for."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import cut_power
import inject_faults
import pytest

SCRIPTS = Path(inject_faults.__file__).resolve().parent

needs_strace = pytest.mark.skipif(shutil.which("strace") is None, reason="strace is missing")


def run(script: str, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, SCRIPTS / script, *words], capture_output=True, text=True
    )


@needs_strace
@pytest.mark.timeout(300)
def test_a_few_faults_in_every_test_run() -> None:
    done = run("inject_faults.py", "--cases", "new", "--runs", "8", "--seed", "3")
    assert done.returncode == 0, done.stdout + done.stderr
    found = re.search(r"(\d+) runs, (\d+) faults, 0 wrong, seed 3", done.stdout)
    assert found is not None, done.stdout
    assert int(found[2]) >= int(found[1]) >= 4


@needs_strace
@pytest.mark.long
@pytest.mark.timeout(7200)
def test_a_thousand_faults() -> None:
    done = run("inject_faults.py", "--runs", "200", "--jobs", "2")
    assert done.returncode == 0, done.stdout + done.stderr
    found = re.search(r"(\d+) runs, (\d+) faults, 0 wrong", done.stdout)
    assert found is not None, done.stdout
    assert int(found[2]) >= 1000


@pytest.mark.mount
@pytest.mark.timeout(300)
def test_a_few_cuts_of_the_power() -> None:
    if os.name == "nt" or os.geteuid() != 0:
        pytest.skip("mounting needs root")
    left, wrong = cut_power.cut_power(2, seed=1)
    assert wrong == []
    assert sum(left.values()) == 2


@pytest.mark.long
@pytest.mark.mount
@pytest.mark.timeout(7200)
def test_many_cuts_of_the_power() -> None:
    if os.name == "nt" or os.geteuid() != 0:
        pytest.skip("mounting needs root")
    left, wrong = cut_power.cut_power(100, seed=2)
    assert wrong == []
    assert len(left) == 3


def test_what_strace_says_is_understood() -> None:
    lines = [
        '10 openat(AT_FDCWD</w>, "/w/a") = -1 EIO (Input/output error) (INJECTED)',
        '10 openat(AT_FDCWD</w>, "/w/b") = 3</w/b>',
    ]
    assert inject_faults.find_hits(lines) == lines[:1]


def test_a_wrong_end_is_told(tmp_path: Path) -> None:
    source = inject_faults.make_source(tmp_path / "source")
    before = inject_faults.state_of(source)
    (tmp_path / "parent" / "out").mkdir(parents=True)
    case = inject_faults.Case(
        name="new",
        folder=tmp_path,
        command=("-c", "pass"),
        before=before,
        wanted=None,
        old=None,
        places=(),
    )

    def check(code: int, said: str) -> str | None:
        done = subprocess.CompletedProcess([], code, stdout="", stderr=said)
        return inject_faults.check(case, done, None)

    assert check(1, "blockexpand: no\n") == "exit status"
    assert check(3, "Traceback (most recent call last)\n") == "not one line"
    assert check(3, "one\ntwo\n") == "not one line"
    assert check(3, "one\n") == "OUT is neither the old nor the new one"
    (tmp_path / "parent" / "out").rmdir()
    assert check(3, "one\n") is None
    (source / "config.json").write_text("{}")
    assert check(3, "one\n") == "the source was changed"
