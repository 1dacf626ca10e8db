"""Shards that come one at a time: order, disk, overlap, going on after a cut or a kill."""

from __future__ import annotations

import hashlib
import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from hub_server import HubServer, hub_environment, safetensors_bytes

from blockexpand.checkpoints.hub.download import download_checkpoint
from blockexpand.checkpoints.hub.files import RepoRef, RepoSnapshot
from blockexpand.checkpoints.hub.snapshot import open_snapshot
from blockexpand.checkpoints.hub.stream import stream_shards
from blockexpand.errors import HubError

REF = RepoRef(repo_id="org/name", revision=None)
NBYTES = 3_000_000
NAMES = [f"model-0000{k}-of-00004.safetensors" for k in (1, 2, 3, 4)]
FILES = {
    "config.json": b"{}",
    "model.safetensors.index.json": json.dumps(
        {"weight_map": {f"t{k}": name for k, name in enumerate(NAMES)}}
    ).encode(),
    **{name: safetensors_bytes(NBYTES, f"t{k}", k)[0] for k, name in enumerate(NAMES)},
}
SIZES = [len(FILES[name]) for name in NAMES]


@pytest.fixture
def snapshot(hub: HubServer, hub_cache: Path) -> RepoSnapshot:
    hub.add_repo("org/name", FILES)
    return open_snapshot(REF)


def blob(name: str) -> str:
    """Return a pattern for the requests to the storage for this shard."""
    return f"/blobs/{hashlib.sha256(FILES[name]).hexdigest()}"


def folder_nbytes(folder: Path) -> int:
    total = 0
    for path in folder.iterdir():
        try:
            total += path.lstat().st_size
        except FileNotFoundError:  # renamed meanwhile
            continue
    return total


def wait_until(condition: Callable[[], object], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.005)


def part_nbytes(folder: Path, name: str) -> int:
    return sum(path.stat().st_size for path in folder.glob(f".{name}.*.part"))


def test_each_shard_comes_in_order_and_goes_again(snapshot: RepoSnapshot, tmp_path: Path) -> None:
    folder, counted = tmp_path / "stream", []
    seen = []
    for path in stream_shards(snapshot, NAMES, folder, progress=counted.append):
        seen.append(path.name)
        assert path == folder / path.name
        assert path.read_bytes() == FILES[path.name]
        # None of those before is left.
        assert not {other.name for other in folder.iterdir()} & set(seen[:-1])
    assert seen == NAMES
    assert list(folder.iterdir()) == []
    assert sum(counted) == sum(SIZES)


def test_only_the_shards_that_are_asked_for(
    hub: HubServer, snapshot: RepoSnapshot, tmp_path: Path
) -> None:
    wanted = [NAMES[2], NAMES[0]]
    assert [p.name for p in stream_shards(snapshot, wanted, tmp_path)] == wanted
    assert not hub.seen(blob(NAMES[1])) and not hub.seen(blob(NAMES[3]))


def test_next_shard_comes_while_this_one_is_in_use(snapshot: RepoSnapshot, tmp_path: Path) -> None:
    with closing(stream_shards(snapshot, NAMES, tmp_path)) as shards:
        first = next(shards)
        wait_until((tmp_path / NAMES[1]).exists)
        assert first.exists()
        # But not the one after it: at most two shards lie there.
        time.sleep(0.05)
        assert {path.name for path in tmp_path.iterdir()} == set(NAMES[:2])


@pytest.mark.parametrize("ahead", [None, 0, NBYTES // 3])
def test_disk_holds_the_output_and_one_shard(
    snapshot: RepoSnapshot, tmp_path: Path, ahead: int | None
) -> None:
    """A writer whose output has `ratio` bytes per source byte, beside the streamed shards."""
    folder = tmp_path / "stream"
    # Where less than a whole shard may be fetched ahead the output may be smaller than the source.
    ratio = 1.0 if ahead is None else ahead / NBYTES
    written, peak = 0.0, 0.0

    def measure(_: int = 0) -> None:
        nonlocal peak
        peak = max(peak, written + folder_nbytes(folder))

    limits = None if ahead is None else dict.fromkeys(NAMES, ahead)
    shards = stream_shards(snapshot, NAMES, folder, ahead_nbytes=limits, progress=measure)
    for path, following in zip(shards, [*NAMES[1:], None], strict=True):
        if following is not None:
            limit = SIZES[0] if ahead is None else ahead
            wait_until(
                lambda name=following, limit=limit: (
                    (folder / name).exists() or part_nbytes(folder, name) >= limit
                )
            )
        written += ratio * path.stat().st_size
        measure()
    assert peak <= ratio * sum(SIZES) + max(SIZES) + 1


def test_going_on_after_a_cut(hub: HubServer, snapshot: RepoSnapshot, tmp_path: Path) -> None:
    hub.fail(f"GET {blob(NAMES[0])}", cut_after=2_200_000)
    started = time.monotonic()
    for path in stream_shards(snapshot, NAMES, tmp_path):
        assert path.read_bytes() == FILES[path.name]
    assert time.monotonic() - started < 10
    first, second = hub.seen(blob(NAMES[0]))
    # Every byte that came counts, however few came between two cuts.
    assert (first.range, second.range) == (
        f"bytes=0-{SIZES[0] - 1}",
        f"bytes={first.nbytes}-{SIZES[0] - 1}",
    )


def test_many_cuts_are_no_failure_while_bytes_come(
    hub: HubServer, snapshot: RepoSnapshot, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("blockexpand.checkpoints.hub.ranges._LONGEST_WAIT_S", 0.0)
    hub.fail(f"GET {blob(NAMES[0])}", times=12, cut_after=100_000)
    assert next(stream_shards(snapshot, NAMES, tmp_path)).read_bytes() == FILES[NAMES[0]]
    assert len(hub.seen(blob(NAMES[0]))) == 13


def test_going_on_in_a_second_call(
    hub: HubServer, snapshot: RepoSnapshot, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("blockexpand.checkpoints.hub.ranges._MOST_FAILURES", 0)
    hub.fail(f"GET {blob(NAMES[1])}", cut_after=2_200_000)
    taken = []
    with pytest.raises(HubError, match="run the same command again") as caught:
        for path in stream_shards(snapshot, NAMES, tmp_path):
            taken.append(path.name)
    assert "\n" not in str(caught.value)
    # The failure of a shard that was fetched ahead is told when it is asked for.
    assert taken == NAMES[:1]
    for path in stream_shards(snapshot, NAMES[1:], tmp_path):
        assert path.read_bytes() == FILES[path.name]
    assert hub.seen(blob(NAMES[1]))[1].range == f"bytes=2200000-{SIZES[1] - 1}"


def test_going_on_after_a_kill(hub: HubServer, hub_cache: Path, tmp_path: Path) -> None:
    hub.add_repo("org/name", FILES)
    stall = threading.Event()
    hub.fail(f"GET {blob(NAMES[1])}", stall=stall, stall_at=2_200_000)
    script = (
        "import sys, pathlib\n"
        "from blockexpand.checkpoints.hub import open_snapshot, parse_repo_ref, stream_shards\n"
        "snapshot = open_snapshot(parse_repo_ref('org/name'))\n"
        "for path in stream_shards(snapshot, sys.argv[2:], pathlib.Path(sys.argv[1])):\n"
        "    print(path.name, flush=True)\n"
        "    sys.stdin.readline()\n"
    )
    folder = tmp_path / "stream"
    process = subprocess.Popen(
        [sys.executable, "-c", script, str(folder), *NAMES],
        env=hub_environment(hub, tmp_path / "other"),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline().strip() == NAMES[0]
            wait_until(lambda: part_nbytes(folder, NAMES[1]) >= 2 << 20)
        finally:
            process.send_signal(signal.SIGKILL)
    stall.set()
    kept = part_nbytes(folder, NAMES[1])
    shards = stream_shards(open_snapshot(REF), NAMES, folder)
    assert {path.name: path.read_bytes() for path in shards} == {n: FILES[n] for n in NAMES}
    assert kept >= 2 << 20
    assert hub.seen(blob(NAMES[1]))[-1].range == f"bytes={kept}-{SIZES[1] - 1}"
    # The first one had come before the kill: it was checked and used as it was.
    assert len(hub.seen(blob(NAMES[0]))) == 1


def test_whole_shard_of_an_earlier_call_is_used(
    hub: HubServer, snapshot: RepoSnapshot, tmp_path: Path
) -> None:
    with closing(stream_shards(snapshot, NAMES, tmp_path)) as shards:
        next(shards)
    assert (tmp_path / NAMES[0]).exists()
    before = hub.sent(blob(NAMES[0]))
    assert next(stream_shards(snapshot, NAMES, tmp_path)).read_bytes() == FILES[NAMES[0]]
    assert hub.sent(blob(NAMES[0])) == before


def test_damaged_leftovers_are_not_used(snapshot: RepoSnapshot, tmp_path: Path) -> None:
    data = bytearray(FILES[NAMES[0]])
    data[1_000_000] ^= 1
    (tmp_path / NAMES[0]).write_bytes(data)
    (tmp_path / NAMES[1]).write_bytes(b"short")
    (tmp_path / "model-of-another.safetensors").write_bytes(b"x")
    (tmp_path / f".{NAMES[2]}.0123456789abcdef.part").write_bytes(b"x")
    digest = hashlib.sha256(FILES[NAMES[3]]).hexdigest()[:16]
    (tmp_path / f".{NAMES[3]}.{digest}.part").write_bytes(b"x" * (SIZES[3] + 1))
    for path in stream_shards(snapshot, NAMES, tmp_path):
        assert path.read_bytes() == FILES[path.name]
    assert list(tmp_path.iterdir()) == []


def test_part_that_holds_other_bytes_is_deleted_and_said(
    snapshot: RepoSnapshot, tmp_path: Path
) -> None:
    digest = hashlib.sha256(FILES[NAMES[0]]).hexdigest()
    part = tmp_path / f".{NAMES[0]}.{digest[:16]}.part"
    part.write_bytes(b"x" * 1000)
    with pytest.raises(HubError, match="other bytes than the Hub lists \\(sha256") as caught:
        next(stream_shards(snapshot, NAMES, tmp_path))
    assert digest in str(caught.value)
    assert not part.exists()
    assert next(stream_shards(snapshot, NAMES, tmp_path)).read_bytes() == FILES[NAMES[0]]


def test_cached_shards_are_linked_to(
    hub: HubServer, snapshot: RepoSnapshot, tmp_path: Path
) -> None:
    cached = download_checkpoint(snapshot)
    before = hub.sent("/blobs/")
    for path in stream_shards(snapshot, NAMES, tmp_path / "stream"):
        assert path.read_bytes() == FILES[path.name]
    assert hub.sent("/blobs/") == before
    assert (cached / NAMES[0]).read_bytes() == FILES[NAMES[0]]


def test_leaving_early_ends_the_download(
    hub: HubServer, snapshot: RepoSnapshot, tmp_path: Path
) -> None:
    stall = threading.Event()
    hub.fail(f"GET {blob(NAMES[1])}", times=9, stall=stall, stall_at=1_200_000)
    started = time.monotonic()
    with closing(stream_shards(snapshot, NAMES, tmp_path)) as shards:
        next(shards)
        wait_until(lambda: part_nbytes(tmp_path, NAMES[1]) >= 1 << 20)
        threading.Timer(0.1, stall.set).start()
    assert time.monotonic() - started < 5
    assert not [thread for thread in threading.enumerate() if "ThreadPool" in thread.name]
    assert 1 << 20 <= part_nbytes(tmp_path, NAMES[1]) < SIZES[1]
