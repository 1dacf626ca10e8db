"""A run is killed at every one of its calls, and no kill may cost or damage anything.

After each kill the source is untouched, OUT is absent, the complete old or the complete new one,
and the same command, run again, ends with the same bytes as a run that nobody disturbed.
"""

from __future__ import annotations

import json
import random
import re
import shutil
import subprocess
import sys
import time
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from contextlib import suppress
from itertools import accumulate
from pathlib import Path

import pytest
from faults import (
    Case,
    Nursery,
    make_source,
    names_beside,
    place,
    prepare,
    scratch,
    snapshot,
    source_state,
    spread,
)
from safetensors import deserialize


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


def check_kill(nursery: Nursery, case: Case, at: int, do: str = "kill") -> str:
    """Kill one run, check what it leaves, run again, check that; return the state of OUT."""
    place(case.old, case.out)
    old = snapshot(case.out)
    killed = nursery.run(case.command, do=do, at=at, lacks=case.lacks)
    where = f"killed at call {at} of {case.calls}: {killed.calls[-1:]}"
    assert killed.code == -9, where
    assert source_state(case.source) == case.before, where
    left = snapshot(case.out)
    swapping = "renameat2" in case.lacks and left is None and old is not None
    assert left in (old, case.wanted) or swapping, where
    rerun = nursery.run(case.command, lacks=case.lacks)
    assert source_state(case.source) == case.before, where
    if rerun.code != 0:
        # All was done and tidied: what is left to say is that OUT exists.
        assert left == case.wanted, where + rerun.err
        assert re.fullmatch(r"blockexpand: .* exists and is not empty; choose .*\n", rerun.err)
    assert snapshot(case.out) == case.wanted, where
    assert names_beside(case.out) == [], where
    return "swapping" if swapping else "new" if left == case.wanted else "old"


def check_kills(nursery: Nursery, case: Case, points: Sequence[int], do: str = "kill") -> None:
    states = [check_kill(nursery, case, at, do) for at in points]
    assert states[0] == "old"
    # Nothing goes back once the new one is there.
    assert states == sorted(states, key=["old", "swapping", "new"].index)
    # There is no call after the last of the points.
    place(case.old, case.out)
    assert nursery.run(case.command, do=do, at=case.calls + 1, lacks=case.lacks).code == 0


CASES = {
    "mirrored shards": ((), {}),
    "a single file": ((), {"shards": 1}),
    "repacked": (("--max-shard-size", "100KB"), {}),
    "linked": (("--hardlink",), {}),
    "replaced": ((), {"overwrite": True}),
    "replaced where folders cannot be swapped": ((), {"overwrite": True, "lacks": ["renameat2"]}),
    "no direct I/O": (("--reflink", "never"), {"lacks": ["direct"]}),
    "read and write only": ((), {"lacks": ["direct", "copy_file_range", "ioctl"]}),
}


@pytest.mark.parametrize("name", CASES)
def test_a_kill_at_any_call_costs_and_damages_nothing(
    name: str, nursery: Nursery, folder: Path
) -> None:
    options, rest = CASES[name]
    case = prepare(nursery, folder, *options, **rest)  # type: ignore[arg-type]
    assert case.calls > 100
    check_kills(nursery, case, spread(case.calls, 65))


def test_a_kill_while_converting(converting_nursery: Nursery, folder: Path) -> None:
    case = prepare(converting_nursery, folder, dtype="F32")
    assert case.calls > 100
    check_kills(converting_nursery, case, spread(case.calls, 60))


@pytest.mark.parametrize("name", ["mirrored shards", "no direct I/O", "replaced"])
def test_a_kill_in_the_middle_of_a_write(name: str, nursery: Nursery, folder: Path) -> None:
    options, rest = CASES[name]
    case = prepare(nursery, folder, *options, **rest)  # type: ignore[arg-type]
    among = ("pwrite", "write", "copy_file_range")
    writes = sum(step in among for step in case.steps)
    for at in range(1, writes + 1, 3):
        place(case.old, case.out)
        old = snapshot(case.out)
        torn = nursery.run(case.command, do="tear", at=at, among=among, lacks=case.lacks)
        assert torn.code == -9
        assert snapshot(case.out) == old
        assert nursery.run(case.command, lacks=case.lacks).code == 0
        assert snapshot(case.out) == case.wanted
        assert names_beside(case.out) == []
    assert writes > 30


def test_what_an_undisturbed_run_makes_is_what_is_wanted(nursery: Nursery, folder: Path) -> None:
    case = prepare(nursery, folder)
    source, made = read_tensors(case.source), read_tensors(case.out)
    for name, tensor in source.items():
        assert made.pop(name) == tensor
    for name, (dtype, shape, data) in made.items():
        found = re.fullmatch(r"model\.layers\.[45]\.(.*)", name)
        assert found is not None
        assert (dtype, shape) == source[f"model.layers.3.{found[1]}"][:2]
        if found[1] in ("self_attn.o_proj.weight", "mlp.down_proj.weight"):
            assert data == bytes(len(data))
        else:
            assert data == source[f"model.layers.3.{found[1]}"][2]
    assert len(made) == 18


def read_tensors(folder: Path) -> dict[str, tuple[str, list[int], bytes]]:
    """Return every tensor of a folder, as the safetensors library reads it."""
    return {
        name: (tensor["dtype"], tensor["shape"], bytes(tensor["data"]))
        for path in folder.glob("*.safetensors")
        for name, tensor in deserialize(path.read_bytes())
    }


@pytest.mark.parametrize("shards", [1, 4])
def test_a_rerun_after_a_kill_at_nine_tenths_moves_one_tenth(
    shards: int, nursery: Nursery, folder: Path
) -> None:
    check_reuse(nursery, folder, shards=shards, layers=8, largest=0.25)


@pytest.mark.long
@pytest.mark.parametrize("shards", [1, 4])
def test_a_rerun_of_more_bytes_after_a_kill_at_nine_tenths_moves_one_tenth(
    shards: int, nursery: Nursery, tmp_path: Path
) -> None:
    check_reuse(nursery, tmp_path, shards=shards, layers=64, largest=0.15)


def check_reuse(
    nursery: Nursery, folder: Path, *, shards: int, layers: int, largest: float
) -> None:
    """Kill a run of some 35 MB per layer at 90 % of its bytes; a rerun may move `largest` again.

    That is more than a tenth by what was in flight, and by what was not noted yet as being on the
    disk: 16 MiB or a 32nd of a file.
    """
    root = make_source(
        folder / "source",
        shards=shards,
        layers=layers,
        hidden=1024,
        intermediate=4096,
        vocabulary=4096,
    )
    out = folder / "parent" / "out"
    out.parent.mkdir()
    command = ("--src", root, "--out", out, "--new-layers", "1", "--reflink", "never", "--json")
    whole = nursery.run(command, settings={})
    wanted = snapshot(out)
    shutil.rmtree(out)
    sums = list(accumulate(call.nbytes for call in whole.calls if call.name == "pwrite"))
    total = sums[-1]
    at = bisect_left(sums, 0.9 * total) + 1
    killed = nursery.run(command, do="kill", at=at, among=["pwrite"], settings={})
    assert killed.code == -9
    written = sum(call.nbytes for call in killed.calls if call.name == "pwrite")
    # Chunks that were on their way are not counted here.
    assert 0.8 < written / total < 0.95
    rerun = nursery.run(command, settings={})
    assert (rerun.code, rerun.err) == (0, "")
    moved_again = sum(call.nbytes for call in rerun.calls if call.name == "pwrite")
    assert 0.05 < moved_again / total < largest
    result = json.loads(rerun.out)
    reused = result["moved"]["reused"]
    assert reused + moved_again == pytest.approx(total, rel=0.01)
    assert f"{reused:,} bytes were there from an earlier run of the same plan" in result["notes"]
    assert snapshot(out) == wanted
    assert names_beside(out) == []


@pytest.mark.long
@pytest.mark.parametrize("name", CASES)
def test_a_kill_at_every_single_call(name: str, nursery: Nursery, folder: Path) -> None:
    options, rest = CASES[name]
    case = prepare(nursery, folder, *options, **rest)  # type: ignore[arg-type]
    check_kills(nursery, case, range(1, case.calls + 1))


@pytest.mark.long
def test_a_kill_at_every_single_call_while_converting(
    converting_nursery: Nursery, folder: Path
) -> None:
    case = prepare(converting_nursery, folder, dtype="F32")
    check_kills(converting_nursery, case, range(1, case.calls + 1))


@pytest.mark.long
@pytest.mark.parametrize("shards", [1, 3])
def test_a_kill_at_a_random_moment_of_a_real_run(shards: int, tmp_path: Path) -> None:
    """No wrapped call, no smaller chunk: a process of its own, on several threads, on the disk."""
    root = make_source(
        tmp_path / "source",
        shards=shards,
        layers=6,
        hidden=1024,
        intermediate=4096,
        vocabulary=4096,
    )
    before = source_state(root)
    out = tmp_path / "parent" / "out"
    out.parent.mkdir()
    command = [sys.executable, "-m", "blockexpand", "--src", root, "--out", out]
    command += ["--new-layers", "2", "--reflink", "never", "--overwrite", "--quiet"]
    here = Path(__file__).resolve().parents[2]
    for _ in range(2):  # the first run is slower than those that follow
        began = time.monotonic()
        assert subprocess.run(command, cwd=here).returncode == 0
        seconds = time.monotonic() - began
    wanted = snapshot(out)
    generator = random.Random(shards)
    killed = 0
    for attempt in range(40):
        if attempt % 4:
            shutil.rmtree(out, ignore_errors=True)
        old = snapshot(out)
        process = subprocess.Popen(command, cwd=here)
        with suppress(subprocess.TimeoutExpired):
            process.wait(generator.uniform(0.05, seconds * 1.1))
        process.kill()
        killed += process.wait() == -9
        assert source_state(root) == before
        assert snapshot(out) in (old, wanted)
        if attempt % 2:
            assert subprocess.run(command, cwd=here).returncode == 0
            assert snapshot(out) == wanted
            assert names_beside(out) == []
    assert killed > 20
