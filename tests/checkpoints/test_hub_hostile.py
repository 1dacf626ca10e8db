"""A Hub that lies: in names, sizes, digests, headers and waits. Nothing of it reaches a file."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hub_server import SHARDS, HubServer, checkpoint_files, hub_environment, read_folder

from blockexpand.checkpoints.hub.answers import LONGEST_ASKED_WAIT_S, parse_wait_s
from blockexpand.checkpoints.hub.digests import is_whole
from blockexpand.checkpoints.hub.download import download_checkpoint
from blockexpand.checkpoints.hub.files import RepoFile, RepoRef, RepoSnapshot
from blockexpand.checkpoints.hub.headers import fetch_headers
from blockexpand.checkpoints.hub.listing import check_files, make_repo_file, parse_siblings
from blockexpand.checkpoints.hub.snapshot import open_snapshot
from blockexpand.checkpoints.hub.stream import stream_shards
from blockexpand.errors import HubError
from blockexpand.publishing.target import check_push

TOKEN = "hf_abcdefghijklmnopqrstuvwxyz012345"
REPO = "org/name"
REF = RepoRef(repo_id=REPO, revision=None)
FILES = checkpoint_files(nbytes=400_000)


def describe(files: dict[str, bytes], **change: Any) -> bytes:
    """Return a repository's description, in which the first file is listed with a change."""
    siblings = [{"rfilename": name, "size": len(data)} for name, data in files.items()]
    siblings[0] |= change
    return json.dumps({"sha": "a" * 40, "siblings": siblings}).encode()


def refusal(action: Any) -> str:
    with pytest.raises(HubError) as caught:
        action()
    line = str(caught.value)
    assert line.isprintable() and len(line) < 500
    return line


# ----------------------------------------------------------------------- names

BAD_NAMES = ["/abs.json", "sub\\..\\..\\x.json", "../x.json", "a//b", "", "a\nb", "C:\\x", None, 5]


@pytest.mark.parametrize("name", BAD_NAMES)
def test_a_listed_name_that_leads_elsewhere(hub: HubServer, hub_cache: Path, name: object) -> None:
    hub.add_repo(REPO, FILES)
    hub.fail("GET /api/models", status=200, body=describe(FILES, rfilename=name))
    line = refusal(lambda: open_snapshot(REF))
    assert "the Hub lists a file" in line and "whose name" in line
    assert len(hub.requests) == 1


@pytest.mark.parametrize("name", [name for name in BAD_NAMES if isinstance(name, str)])
def test_a_name_of_the_tree_that_leads_elsewhere(
    hub: HubServer, hub_cache: Path, name: str
) -> None:
    hub.add_repo(REPO, FILES)
    hub.lists_sizes = False
    tree = [{"type": "file", "path": name, "size": 3, "oid": "b" * 40}]
    hub.fail("/tree/", status=200, body=json.dumps(tree).encode())
    assert "whose name" in refusal(lambda: open_snapshot(REF))


@pytest.mark.parametrize("stream", [False, True])
def test_a_file_of_the_user_is_not_emptied(
    hub: HubServer, tmp_path: Path, tiny_mistral: Path, stream: bool
) -> None:
    """The whole command, with a listing that names a file of the user's by its path and length."""
    files = read_folder(tiny_mistral)
    victim = tmp_path / "victim.txt"
    victim.write_bytes(b"v" * 900)
    hub.add_repo(REPO, files)
    siblings = [{"rfilename": name, "size": len(data)} for name, data in files.items()]
    siblings.append({"rfilename": str(victim), "size": 900})
    body = json.dumps({"sha": hub.repos[REPO].refs["main"], "siblings": siblings}).encode()
    hub.fail("GET /api/models", times=9, status=200, body=body)
    command = ["--src", REPO, "--out", str(tmp_path / "out"), "--new-layers", "1"]
    run = subprocess.run(
        [sys.executable, "-m", "blockexpand", *command, *(["--stream"] if stream else [])],
        env=hub_environment(hub, tmp_path / "home"),
        capture_output=True,
        text=True,
    )
    assert victim.read_bytes() == b"v" * 900
    assert run.returncode != 0 and "Traceback" not in run.stderr
    assert run.stderr.count("\n") == 1 and "is absolute" in run.stderr
    assert not (tmp_path / "out").exists()


def test_a_file_twice_or_also_as_a_folder() -> None:
    one = RepoFile(name="a/b", nbytes=1)
    assert "lists 'a/b' twice" in refusal(lambda: check_files([one, one], REPO))
    other = RepoFile(name="a", nbytes=1)
    assert "'a' as a file and as a folder" in refusal(lambda: check_files([one, other], REPO))


def test_names_that_differ_in_case_are_two_files(hub: HubServer, hub_cache: Path) -> None:
    if (hub_cache.parent.parent / "A").exists() is (hub_cache.parent.parent / "a").exists() is True:
        pytest.skip("this file system takes both for one")
    files = {**FILES, "Tokenizer.json": b'{"version": "2.0"}'}
    hub.add_repo(REPO, files)
    folder = download_checkpoint(open_snapshot(REF))
    assert (folder / "tokenizer.json").read_bytes() == files["tokenizer.json"]
    assert (folder / "Tokenizer.json").read_bytes() == files["Tokenizer.json"]


# ------------------------------------------------------------- sizes and forms


@pytest.mark.parametrize("size", [-5, "12", 3.5, True, [], 10**30])
def test_a_size_that_is_none(hub: HubServer, hub_cache: Path, size: object) -> None:
    hub.add_repo(REPO, FILES)
    hub.fail("GET /api/models", status=200, body=describe(FILES, size=size))
    assert "as its size" in refusal(lambda: open_snapshot(REF))


@pytest.mark.parametrize("size", [-5, "12", None, 10**30])
def test_a_size_of_the_tree_that_is_none(hub: HubServer, hub_cache: Path, size: object) -> None:
    hub.add_repo(REPO, FILES)
    hub.lists_sizes = False
    tree = [{"type": "file", "path": "a", "size": size, "oid": "b" * 40}]
    hub.fail("/tree/", status=200, body=json.dumps(tree).encode())
    assert "as its size" in refusal(lambda: open_snapshot(REF))


@pytest.mark.parametrize(
    "siblings", ["text", 7, [7], ["config.json"], [[]], [{}], {"a": 1}, [None], [{"size": 1}]]
)
def test_a_listing_that_is_none(hub: HubServer, hub_cache: Path, siblings: object) -> None:
    hub.add_repo(REPO, FILES)
    body = json.dumps({"sha": "a" * 40, "siblings": siblings}).encode()
    hub.fail("GET /api/models", status=200, body=body)
    assert "no list of files" in refusal(lambda: open_snapshot(REF)) or siblings == [{}]


@pytest.mark.parametrize("tree", [7, "x", [7], [{}], [{"type": "file"}], {"a": 1}, None])
def test_a_tree_that_is_none(hub: HubServer, hub_cache: Path, tree: object) -> None:
    hub.add_repo(REPO, FILES)
    hub.lists_sizes = False
    hub.fail("/tree/", status=200, body=json.dumps(tree).encode())
    refusal(lambda: download_checkpoint(open_snapshot(REF)))


@pytest.mark.parametrize("lfs", [{"sha256": 5}, {"sha256": "../../x"}, {"sha256": "AB"}, {}])
def test_a_digest_of_another_form_is_none(lfs: object) -> None:
    item = {"rfilename": "a", "size": 1, "lfs": lfs, "blobId": "../x"}
    assert parse_siblings([item], REPO) == (RepoFile(name="a", nbytes=1),)


# --------------------------------------------------------------------- digests


def flip(hub: HubServer, data: bytes) -> bytes:
    """Have the storage give other bytes, of the same length, for a file; return them."""
    other = data[:-1] + bytes([data[-1] ^ 1])
    hub.uploads[hashlib.sha256(data).hexdigest()] = other
    return other


def test_other_bytes_of_a_shard_are_refused_and_deleted(hub: HubServer, hub_cache: Path) -> None:
    hub.add_repo(REPO, FILES)
    good, digest = FILES[SHARDS[1]], hashlib.sha256(FILES[SHARDS[1]]).hexdigest()
    flip(hub, good)
    line = refusal(lambda: download_checkpoint(open_snapshot(REF)))
    assert SHARDS[1] in line and digest in line and "run the same command again" in line
    assert not [path for path in hub_cache.rglob("*") if path.name in (digest, SHARDS[1])]
    hub.uploads[digest] = good
    folder = download_checkpoint(open_snapshot(REF))
    assert (folder / SHARDS[1]).read_bytes() == good


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors.index.json"])
def test_other_bytes_of_a_small_file_are_refused(
    hub: HubServer, hub_cache: Path, name: str
) -> None:
    hub.add_repo(REPO, FILES)
    snapshot = open_snapshot(REF)
    commit = hub.repos[REPO].refs["main"]
    hub.repos[REPO].commits[commit] = {**FILES, name: FILES[name].replace(b":", b" ", 1)}
    line = refusal(lambda: download_checkpoint(snapshot))
    assert name in line and "other bytes" in line


def test_a_cached_file_that_was_damaged_is_named(hub: HubServer, hub_cache: Path) -> None:
    hub.add_repo(REPO, FILES)
    path = (download_checkpoint(open_snapshot(REF)) / SHARDS[0]).resolve()
    path.write_bytes(b"\0" * path.stat().st_size)
    line = refusal(lambda: download_checkpoint(open_snapshot(REF)))
    assert f"delete {path}" in line and path.exists()


def test_a_damaged_file_of_the_cache_is_not_streamed(
    hub: HubServer, hub_cache: Path, tmp_path: Path
) -> None:
    hub.add_repo(REPO, FILES)
    snapshot = open_snapshot(REF)
    path = (download_checkpoint(snapshot) / SHARDS[0]).resolve()
    path.write_bytes(b"\0" * path.stat().st_size)
    for shard in stream_shards(snapshot, [SHARDS[0]], tmp_path / "stream"):
        assert shard.read_bytes() == FILES[SHARDS[0]]


def test_what_was_found_right_is_not_read_again(
    hub: HubServer, hub_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("blockexpand.checkpoints.hub.digests._WORTH_NOTING_NBYTES", 1000)
    read: list[str] = []

    def sha256(*data: bytes) -> Any:
        # A file is read piece by piece; a text that was just fetched comes at once.
        if not data:
            read.append("sha256")
        return hashlib.sha256(*data)

    counted = SimpleNamespace(sha256=sha256, sha1=hashlib.sha1)
    monkeypatch.setattr("blockexpand.checkpoints.hub.digests.hashlib", counted)
    hub.add_repo(REPO, FILES)
    folder = download_checkpoint(open_snapshot(REF))
    assert len(read) == len(SHARDS)
    download_checkpoint(open_snapshot(REF))
    assert len(read) == len(SHARDS)
    # A change of the file is seen, also where its length and time of change are set back.
    path = (folder / SHARDS[0]).resolve()
    status = path.stat()
    path.write_bytes(b"\0" * status.st_size)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert "other bytes" in refusal(lambda: download_checkpoint(open_snapshot(REF)))


def test_notes_that_cannot_be_kept_are_no_fault(
    hub: HubServer, hub_cache: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("blockexpand.checkpoints.hub.digests._WORTH_NOTING_NBYTES", 1000)
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    hub.add_repo(REPO, FILES)
    for _ in range(2):
        download_checkpoint(open_snapshot(REF))


# ------------------------------------------------------------ headers and waits


@pytest.mark.parametrize("value", ['"/{root}/pwned"', '"../../../pwned"', 'W/"a\\\\b"', '".."'])
@pytest.mark.parametrize("header", ["ETag", "X-Linked-Etag", "X-Repo-Commit"])
def test_a_header_that_leads_out_of_the_cache(
    hub: HubServer, hub_cache: Path, tmp_path: Path, header: str, value: str
) -> None:
    hub.add_repo(REPO, FILES)
    root = str(tmp_path).lstrip("/")
    data = FILES["config.json"]
    commit = hub.repos[REPO].refs["main"]
    headers = {"ETag": '"x"', "X-Repo-Commit": commit, "X-Linked-Size": str(len(data))}
    headers[header] = value.format(root=root)
    hub.fail("HEAD /.*config.json", times=99, status=200, body=data, headers=headers)
    line = refusal(lambda: download_checkpoint(open_snapshot(REF)))
    assert header.lower() in line and "leads out of the cache" in line
    assert not list(tmp_path.rglob("*pwned*"))


@pytest.mark.parametrize(
    ("asked", "waited"),
    [
        ("7", 7),
        ("0", 0),
        ("100000", LONGEST_ASKED_WAIT_S),
        ("9" * 30, LONGEST_ASKED_WAIT_S),
        ("9" * 10_000, LONGEST_ASKED_WAIT_S),
        ("-5", None),
        ("1e9", None),
        ("٣", None),
        ("Wed, 21 Oct 2015 07:28:00 GMT", None),
        ("", None),
        (None, None),
    ],
)
def test_a_wait_that_is_asked_for_is_capped(asked: str | None, waited: int | None) -> None:
    assert parse_wait_s(asked) == waited


@pytest.mark.parametrize("asked", ["100000", "99999999999999999999"])
@pytest.mark.parametrize(
    "what", ["GET /api/models", "HEAD /.*config.json", "GET /.*config.json", "GET /blobs/"]
)
def test_long_waits_are_cut_and_said(
    hub: HubServer, hub_cache: Path, monkeypatch: pytest.MonkeyPatch, asked: str, what: str
) -> None:
    waits: list[float] = []
    told: list[str] = []
    monkeypatch.setattr("time.sleep", waits.append)
    monkeypatch.setattr(
        "threading.Event.wait", lambda self, timeout=None: waits.append(timeout or 0) or False
    )
    hub.add_repo(REPO, FILES)
    hub.fail(what, status=503, headers={"Retry-After": asked})
    snapshot = open_snapshot(REF, tell=told.append)
    if what.startswith("HEAD"):
        download_checkpoint(snapshot, tell=told.append)
    else:
        fetch_headers(snapshot, tell=told.append)
    if what != "GET /blobs/" or waits:
        assert max(waits) <= LONGEST_ASKED_WAIT_S + 1
    assert all("the Hub asks to wait" in line and "300 s are waited" in line for line in told)
    assert told


def test_a_rate_limit_that_never_ends_is_capped(
    hub: HubServer, hub_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[float] = []
    monkeypatch.setattr("time.sleep", waits.append)
    hub.add_repo(REPO, FILES)
    headers = {"RateLimit": '"api";r=0;t=86400'}
    hub.fail("HEAD /.*config.json", times=2, status=429, headers=headers)
    download_checkpoint(open_snapshot(REF))
    assert 300 < max(waits) <= 301


# ----------------------------------------------------------------- many files


def test_twenty_thousand_listed_files_cost_no_square(hub: HubServer, hub_cache: Path) -> None:
    files = tuple(make_repo_file(REPO, name=f"side/{n:05d}.json", nbytes=0) for n in range(20_000))
    started = time.monotonic()
    snapshot = RepoSnapshot(repo_id=REPO, revision="main", commit="a" * 40, files=files)
    for file in files:
        assert snapshot.file(file.name) is file
    check_files(files, REPO)
    assert time.monotonic() - started < 2


# ------------------------------------------------------------------- the token


@pytest.mark.parametrize(
    "what",
    ["whoami", "auth-check", "revision", "tree", "HEAD /.*config.json", "GET /.*resolve"],
)
def test_no_token_goes_to_another_host(
    hub: HubServer, hub_cache: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    """A redirect is followed, if at all, without what the Hub alone may see."""
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    hub.allow(TOKEN)
    hub.add_repo(REPO, FILES)
    hub.lists_sizes = what != "tree"
    elsewhere = {"Location": f"{hub.cdn_url}/elsewhere"}
    hub.fail(what, times=99, status=302, headers=elsewhere)
    for action in (
        lambda: check_push(REPO, token=TOKEN),
        lambda: download_checkpoint(open_snapshot(REF, token=TOKEN), token=TOKEN),
        lambda: fetch_headers(open_snapshot(REF, token=TOKEN), token=TOKEN),
    ):
        with contextlib.suppress(HubError):
            action()
    assert any(request.token == TOKEN for request in hub.requests if request.origin == "hub")
    assert {request.token for request in hub.requests if request.origin == "cdn"} <= {None}


@pytest.mark.skipif(os.name == "nt" or os.geteuid() != 0, reason="needs another user's file")
def test_notes_of_another_user_do_not_call_a_file_checked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr("blockexpand.checkpoints.hub.digests._WORTH_NOTING_NBYTES", 1)
    path = tmp_path / "shard"
    path.write_bytes(b"right")
    listed = RepoFile(name="shard", nbytes=5, sha256=hashlib.sha256(b"right").hexdigest())
    assert is_whole(path, listed, noted=True)
    notes = tmp_path / "blockexpand" / "checked"
    # Another user notes that the wrong bytes are the right ones.
    path.write_bytes(b"wrong")
    status = path.stat()
    times = f"{status.st_size} {status.st_mtime_ns} {status.st_ctime_ns}"
    notes.write_text(f"{listed.sha256} {status.st_ino} {times}\n")
    assert is_whole(path, listed, noted=True)
    os.chown(notes, 12345, -1)
    assert not is_whole(path, listed, noted=True)
