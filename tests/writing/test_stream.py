"""`--stream`: the same bytes with one source shard on the disk at a time, also after a cut."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from checkpoints import mistral_tensors, write_checkpoint
from hub_server import HubServer, hub_environment, read_folder

import blockexpand
from blockexpand.cli.app import main
from blockexpand.errors import ArgumentError, HubError, OutputError, RecipeError
from blockexpand.progress import Progress

ROOT = Path(__file__).resolve().parents[2]
SHARDS = 5
OPTIONS: dict[str, Any] = {"new_layers": 2, "position": "interleaved", "command": "the command"}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of 5 shards of about 2 MB, whose layers do not end where its shards do."""
    tensors = mistral_tensors(layers=4, size=130_000)
    names = list(tensors)
    cuts = [len(names) * part // SHARDS for part in range(SHARDS + 1)]
    folder = write_checkpoint(
        tmp_path_factory.mktemp("stream") / "source",
        [{name: tensors[name] for name in names[first:last]} for first, last in pairwise(cuts)],
    )
    (folder / "tokenizer.json").write_text("{}")
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "tool.jinja").write_text("{{ messages }}")
    return folder


@pytest.fixture
def remote(hub: HubServer, hub_cache: Path, source: Path) -> str:
    hub.add_repo("org/base", source)
    return "org/base"


def shard_sizes(source: Path) -> list[int]:
    return [path.stat().st_size for path in sorted(source.glob("*.safetensors"))]


def blob(path: Path) -> str:
    """Return a pattern for the requests to the storage for a shard."""
    return f"/blobs/{hashlib.sha256(path.read_bytes()).hexdigest()}"


def fetched(hub: HubServer, path: Path) -> int:
    return sum(request.nbytes for request in hub.seen(blob(path), method="GET"))


def disk_nbytes(*folders: Path) -> int:
    """Return what the disk holds below folders: holes and what was just removed do not count."""
    total, seen = 0, set()
    # Folders vanish meanwhile, which os.walk does not mind.
    for folder, _, names in (entry for root in folders for entry in os.walk(root)):
        for name in names:
            with suppress(FileNotFoundError):
                status = os.lstat(Path(folder, name))
                if status.st_ino not in seen:
                    seen.add(status.st_ino)
                    total += status.st_blocks * 512
    return total


@contextmanager
def watching(*folders: Path) -> Iterator[list[int]]:
    """Measure what the disk holds, again and again; the list has every measurement."""
    measured: list[int] = []
    ended = threading.Event()

    def watch() -> None:
        while not ended.is_set():
            measured.append(disk_nbytes(*folders))
            time.sleep(0.001)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield measured
    finally:
        ended.set()
        thread.join()


CASES: dict[str, dict[str, Any]] = {
    "mirrored": {},
    "at the end": {"position": "end"},
    "repacked": {"max_shard_size": "3MB"},
    "one file": {"max_shard_size": "5GB"},
    "converted": {"dtype": "float32"},
    "converted and repacked": {"dtype": "float32", "max_shard_size": "5MB"},
}


def test_branch_that_moved_since_is_verified_as_it_was(
    hub: HubServer, remote: str, hub_cache: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    blockexpand.expand(remote, out, **OPTIONS)
    assert blockexpand.verify(remote, out)[0].findings == ()
    hub.add_repo(remote, {**hub.files(remote), "README.md": b"---\nlicense: mit\n---\n"})
    assert blockexpand.verify(remote, out)[0].findings == ()
    newest = blockexpand.verify(remote, out, revision="main")[0]
    assert newest.findings == ()
    assert [note.partition(" ")[0] for note in newest.notes] == ["README.md"]


@pytest.mark.parametrize("case", CASES)
def test_same_bytes_as_without(
    case: str, hub: HubServer, remote: str, hub_cache: Path, source: Path, tmp_path: Path
) -> None:
    options = OPTIONS | CASES[case]
    done: list[int] = []
    out, whole = tmp_path / "a" / "out", tmp_path / "b" / "out"
    result = blockexpand.expand(
        remote, out, stream=True, progress=Progress(advance=done.append), **options
    )
    # No shard has come into the cache, each was fetched once, and the header before.
    assert not [path for path in hub_cache.rglob("*.safetensors")]
    for path in source.glob("*.safetensors"):
        nbytes = path.stat().st_size
        assert nbytes <= fetched(hub, path) < nbytes + 50_000
    assert sum(done) == result.plan.nbytes
    assert [path.name for path in out.parent.iterdir()] == ["out"]
    whole_result = blockexpand.expand(remote, whole, reflink="never", **options)
    assert read_folder(out) == read_folder(whole)
    assert result.moved == whole_result.moved


@pytest.mark.parametrize("case", ["mirrored", "at the end", "repacked", "converted"])
def test_disk_holds_the_output_and_one_shard(
    case: str, remote: str, hub_cache: Path, source: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "here"
    folder.mkdir()
    with watching(folder, hub_cache) as measured:
        blockexpand.expand(remote, folder / "out", stream=True, **OPTIONS | CASES[case])
    end = disk_nbytes(folder, hub_cache)
    # Beside OUT and one shard: the journals, the folders' state, rounding to blocks.
    assert max(measured) <= end + max(shard_sizes(source)) + 200_000
    assert len(measured) > 20


def test_float32_to_bfloat16_keeps_to_one_shard(
    hub: HubServer, hub_cache: Path, tmp_path: Path
) -> None:
    """The output is half the source: what is fetched ahead must be held back."""
    tensors = mistral_tensors(layers=3, dtype="F32", size=60_000)
    names = list(tensors)
    folder = write_checkpoint(
        tmp_path / "wide", [{name: tensors[name] for name in names[part::5]} for part in range(5)]
    )
    hub.add_repo("org/wide", folder)
    here = tmp_path / "here"
    here.mkdir()
    with watching(here, hub_cache) as measured:
        blockexpand.expand("org/wide", here / "out", stream=True, new_layers=1, position="start")
    limit = disk_nbytes(here, hub_cache) + max(shard_sizes(folder)) + 200_000
    assert max(measured) <= limit


def cut(hub: HubServer, shard: Path) -> None:
    """Let the first request for a shard's weights break off, and the next find nothing."""
    # Two requests before it fetch the header, which is shorter than that.
    hub.fail(f"GET .*{blob(shard)}", times=3, cut_after=1_500_000)
    hub.fail(f"GET .*{blob(shard)}", times=99, status=404)


def cut_then_go_on(
    hub: HubServer, remote: str, source: Path, out: Path, number: int, **options: Any
) -> None:
    """Let a shard's transfer break for good, see what stays, and run again."""
    shards = sorted(source.glob("*.safetensors"))
    cut(hub, shards[number])
    with pytest.raises(HubError) as caught:
        blockexpand.expand(remote, out, stream=True, **OPTIONS | options)
    hub.faults.clear()
    assert "\n" not in str(caught.value)
    assert "finished parts stay in" in str(caught.value)
    assert not out.exists()
    hub.requests.clear()
    blockexpand.expand(remote, out, stream=True, **OPTIONS | options)
    for path in shards[:number]:
        # Headers alone: what was used is not fetched again.
        assert fetched(hub, path) < 50_000
    assert fetched(hub, shards[number]) < shards[number].stat().st_size - 1_000_000
    assert [path.name for path in out.parent.iterdir()] == [out.name]


@pytest.mark.parametrize("options", [{}, {"max_shard_size": "5GB"}], ids=["mirrored", "one file"])
@pytest.mark.parametrize("number", [0, 2, 4])
def test_cut_is_gone_on_from(
    number: int,
    options: dict[str, Any],
    hub: HubServer,
    remote: str,
    source: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("blockexpand.checkpoints.hub.ranges._wait_s", lambda *_: 0.0)
    out, whole = tmp_path / "a" / "out", tmp_path / "b" / "out"
    cut_then_go_on(hub, remote, source, out, number, **options)
    blockexpand.expand(remote, whole, **OPTIONS | options)
    assert read_folder(out) == read_folder(whole)


def test_killed_run_is_gone_on_from(
    hub: HubServer, remote: str, source: Path, tmp_path: Path
) -> None:
    shards = sorted(source.glob("*.safetensors"))
    out, home = tmp_path / "a" / "out", tmp_path / "other-home"
    words = ["--src", remote, "--out", str(out), "--new-layers", "2", "--stream"]
    stall = threading.Event()
    # The header comes first; the transfer of the weights then stands still.
    hub.fail(f"GET .*{blob(shards[3])}", times=99, stall=stall, stall_at=300_000)
    process = subprocess.Popen(
        [sys.executable, "-m", "blockexpand", *words],
        env=hub_environment(hub, home) | {"PYTHONPATH": str(ROOT)},
        stderr=subprocess.PIPE,
    )
    try:
        deadline = time.monotonic() + 60
        while len(list(out.parent.glob(".out.blockexpand-*/files/*.safetensors"))) < 3:
            assert time.monotonic() < deadline and process.poll() is None
            time.sleep(0.01)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.communicate()
        stall.set()
    assert not out.exists()
    hub.faults.clear()
    hub.requests.clear()
    options = {"new_layers": 2, "command": "c"}
    blockexpand.expand(remote, out, stream=True, **options)
    assert all(fetched(hub, path) < 50_000 for path in shards[:3])
    blockexpand.expand(remote, tmp_path / "whole", **options)
    assert read_folder(out) == read_folder(tmp_path / "whole")


def test_another_commit_with_the_same_headers_is_begun_anew(
    hub: HubServer,
    remote: str,
    source: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Sizes and headers are equal, the weights are not: nothing of the cut run may be used."""
    monkeypatch.setattr("blockexpand.checkpoints.hub.ranges._wait_s", lambda *_: 0.0)
    shards = sorted(source.glob("*.safetensors"))
    out = tmp_path / "a" / "out"
    cut(hub, shards[2])
    with pytest.raises(HubError):
        blockexpand.expand(remote, out, stream=True, **OPTIONS)
    hub.faults.clear()
    files = read_folder(source)
    first = files[shards[0].name]
    files[shards[0].name] = first[:-4] + bytes(byte ^ 1 for byte in first[-4:])
    hub.add_repo("org/base", files)
    blockexpand.expand(remote, out, stream=True, **OPTIONS)
    blockexpand.expand(remote, tmp_path / "whole", **OPTIONS)
    assert read_folder(out) == read_folder(tmp_path / "whole")


def test_shards_of_the_cache_are_not_fetched(
    hub: HubServer, remote: str, hub_cache: Path, tmp_path: Path
) -> None:
    blockexpand.expand(remote, tmp_path / "whole", **OPTIONS)
    before = read_folder(hub_cache)
    hub.requests.clear()
    blockexpand.expand(remote, tmp_path / "out", stream=True, **OPTIONS)
    assert not [request for request in hub.requests if request.nbytes > 50_000]
    assert read_folder(tmp_path / "out") == read_folder(tmp_path / "whole")
    assert read_folder(hub_cache) == before


def test_no_room_is_told_first(
    remote: str, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import shutil
    from collections import namedtuple

    out = tmp_path / "a" / "out"
    result = blockexpand.expand(remote, tmp_path / "b" / "out", **OPTIONS)
    usage = namedtuple("usage", ["total", "used", "free"])
    free = result.plan.nbytes - result.moved.holes + max(shard_sizes(source)) // 2
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage(0, 0, free))
    with pytest.raises(OutputError, match="not enough disk"):
        blockexpand.expand(remote, out, stream=True, **OPTIONS)
    assert not out.parent.exists()


def test_command_line(remote: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    words = ["--src", remote, "--out", str(out), "--new-layers", "2", "--stream", "--json"]
    assert main(words) == 0
    assert json.loads(capfd.readouterr().out)["layers"] == 6
    assert main(["verify", remote, str(out)]) == 0


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"verify_after": "tensors"}, "--verify needs the whole source"),
        ({"hardlink": True}, "--hardlink needs"),
        ({"reflink": "always"}, "--reflink=always needs"),
    ],
)
def test_what_needs_the_whole_source_is_refused(
    options: dict[str, Any], said: str, tmp_path: Path
) -> None:
    with pytest.raises(RecipeError, match=said):
        blockexpand.expand("org/base", tmp_path / "out", stream=True, new_layers=1, **options)


def test_folder_is_refused(source: Path, tmp_path: Path, make_tiny: Callable[..., Path]) -> None:
    with pytest.raises(ArgumentError, match="for a repository of the Hub alone"):
        blockexpand.expand(source, tmp_path / "out", stream=True, new_layers=1)
    assert list(tmp_path.iterdir()) == []
