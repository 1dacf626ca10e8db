"""A Hub that misbehaves, with the real client: what passes is retried, the rest is one line."""

from __future__ import annotations

import hashlib
import threading
from pathlib import Path
from typing import Any

import pytest
from hub_server import SHARDS, WANTED, HubServer, checkpoint_files, read_folder

from blockexpand.checkpoints.hub.client import client_utils, http_library
from blockexpand.checkpoints.hub.download import download_checkpoint
from blockexpand.checkpoints.hub.failures import without_secrets
from blockexpand.checkpoints.hub.files import RepoRef
from blockexpand.checkpoints.hub.headers import fetch_headers
from blockexpand.checkpoints.hub.snapshot import open_snapshot
from blockexpand.errors import HubError

TOKEN = "hf_abcdefghijklmnopqrstuvwxyz012345"
REPO = "org/name"
REF = RepoRef(repo_id=REPO, revision=None)
FILES = checkpoint_files(nbytes=400_000)
BIG = hashlib.sha256(FILES[SHARDS[0]]).hexdigest()
DOWNLOADED = {name: FILES[name] for name in WANTED}


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Let retries wait for nothing; return what they would have waited."""
    from huggingface_hub import constants

    waits: list[float] = []
    monkeypatch.setattr("time.sleep", waits.append)
    monkeypatch.setattr("blockexpand.checkpoints.hub.ranges._LONGEST_WAIT_S", 0.0)
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1 << 14)
    return waits


def download() -> dict[str, bytes]:
    return read_folder(download_checkpoint(open_snapshot(REF)))


def failure(action: Any = download) -> str:
    with pytest.raises(HubError) as caught:
        action()
    line = str(caught.value)
    assert "\n" not in line and line.startswith("org/name") and len(line) < 500
    assert "secret-signature" not in line
    return line


def leftovers(cache: Path) -> list[str]:
    """Return what a broken download left in the cache beside whole files."""
    whole = {hashlib.sha256(data).hexdigest() for data in FILES.values()}
    blobs = [path for path in cache.rglob("*") if path.is_file() and path.parent.name == "blobs"]
    return [path.name for path in blobs if len(path.name) == 64 and path.name not in whole] + [
        path.name for path in cache.rglob("*incomplete*")
    ]


# ------------------------------------------------------------------- download


def test_connection_cut_in_a_shard_goes_on_where_it_broke(hub: HubServer, hub_cache: Path) -> None:
    hub.add_repo(REPO, FILES)
    hub.fail(f"GET /blobs/{BIG}", cut_after=100_000)
    assert download() == DOWNLOADED
    first, second = hub.seen(f"/blobs/{BIG}")
    assert first.range is None and second.range is not None
    start = int(second.range.removeprefix("bytes=").removesuffix("-"))
    assert 0 < start <= 100_000
    assert second.nbytes == len(FILES[SHARDS[0]]) - start


@pytest.mark.parametrize("reset", [False, True])
def test_connection_cut_again_and_again(hub: HubServer, hub_cache: Path, reset: bool) -> None:
    hub.add_repo(REPO, FILES)
    fault = hub.fail(f"GET /blobs/{BIG}", times=99, cut_after=0, reset=reset)
    assert "cannot reach" in failure()
    assert not leftovers(hub_cache)
    assert not [path for path in hub_cache.rglob(SHARDS[0])]
    # The same command later fetches the one shard that is missing.
    fault.times = 0
    others = len(hub.seen("/blobs/")) - len(hub.seen(f"/blobs/{BIG}"))
    assert download() == DOWNLOADED
    assert len(hub.seen("/blobs/")) - len(hub.seen(f"/blobs/{BIG}")) == others


@pytest.mark.parametrize("status", [429, 500, 503])
@pytest.mark.parametrize("what", ["GET /api/models", "HEAD /.*/config.json", "HEAD /.*00001"])
def test_busy_hub_is_asked_again(
    hub: HubServer, hub_cache: Path, short_waits: list[float], what: str, status: int
) -> None:
    hub.add_repo(REPO, FILES)
    hub.fail(what, times=2, status=status, headers={"Retry-After": "7"} if status == 429 else {})
    assert download() == DOWNLOADED
    assert bool(short_waits)
    if status == 429:
        assert 8.0 in short_waits  # the client adds one second to what the Hub asks for


def test_busy_storage_is_asked_again(hub: HubServer, hub_cache: Path) -> None:
    hub.add_repo(REPO, FILES)
    hub.fail(f"GET /blobs/{BIG}", times=2, status=429)
    assert download() == DOWNLOADED


@pytest.mark.parametrize(
    ("what", "status", "said"),
    [
        ("GET /api/models", 429, "too many requests"),
        ("GET /api/models", 500, "the Hub is in trouble (status 500"),
        ("HEAD /.*00001", 503, "the Hub is in trouble (status 503"),
        ("GET /blobs/", 500, "the Hub is in trouble (status 500"),
        ("GET /blobs/", 403, "the Hub refuses access"),
    ],
)
def test_hub_that_stays_busy(
    hub: HubServer, hub_cache: Path, what: str, status: int, said: str
) -> None:
    hub.add_repo(REPO, FILES)
    hub.fail(what, times=999, status=status)
    assert said in failure()
    assert not leftovers(hub_cache)


def test_busy_hub_with_a_cached_snapshot_is_not_waited_for(
    hub: HubServer, hub_cache: Path, short_waits: list[float]
) -> None:
    hub.add_repo(REPO, FILES)
    download()
    hub.fail("GET /api/models", times=99, status=503)
    snapshot = open_snapshot(REF)
    assert snapshot.cached is not None
    assert download() == DOWNLOADED
    assert not short_waits


def test_expired_token(hub: HubServer, hub_cache: Path) -> None:
    hub.add_repo(REPO, FILES)
    body = b'{"error": "User Access Token \\"laptop\\" is expired"}'
    hub.fail("GET /api/models", status=401, body=body)
    assert 'this token (User Access Token "laptop" is expired)' in failure(
        lambda: open_snapshot(REF, token=TOKEN)
    )


@pytest.mark.parametrize("kind", ["ConnectTimeout", "ConnectError", "ProxyError", "ReadTimeout"])
def test_where_nobody_answers_it_is_not_asked_twice(
    hub: HubServer, hub_cache: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    asked = []

    def refuse(*args: object, **kwargs: object) -> None:
        asked.append(args)
        raise getattr(http_library(), kind)("no answer")

    monkeypatch.setattr(type(client_utils().get_session()), "request", refuse)
    assert f"cannot reach {hub.url} ({kind}: no answer)" in failure(lambda: open_snapshot(REF))
    assert (len(asked) == 1) == (kind != "ReadTimeout")


def test_wrong_length_is_refused(hub: HubServer, hub_cache: Path) -> None:
    hub.add_repo(REPO, FILES)
    hub.fail(f"GET /blobs/{BIG}", times=99, short_by=100)
    nbytes = len(FILES[SHARDS[0]])
    assert f"should be of size {nbytes} but has size {nbytes - 100}" in failure()
    assert not leftovers(hub_cache)


# -------------------------------------------------------------------- headers


@pytest.mark.parametrize(
    "fault",
    [
        {"status": 429, "headers": {"Retry-After": "0"}},
        {"status": 500},
        {"status": 503},
        {"cut_after": 0},
        {"cut_after": 3},
        {"cut_after": 3, "reset": True},
        {"short_by": 3},
        {"ignore_range": True},
    ],
)
@pytest.mark.parametrize("what", ["GET /blobs/", "GET /org/name/resolve/.*safetensors$"])
def test_headers_in_spite_of_faults(
    hub: HubServer, hub_cache: Path, fault: dict[str, Any], what: str
) -> None:
    hub.add_repo(REPO, FILES)
    snapshot = open_snapshot(REF)
    hub.fail(what, times=5, **fault)
    for shard in fetch_headers(snapshot).shards:
        length = int.from_bytes(FILES[shard.name][:8], "little")
        assert shard.header_bytes == FILES[shard.name][: 8 + length]


def test_storage_that_refuses_ranges(hub: HubServer, hub_cache: Path) -> None:
    hub.add_repo(REPO, {"config.json": b"{}", "model.safetensors": FILES[SHARDS[0]]})
    snapshot = open_snapshot(REF)
    hub.fail("GET /blobs/", status=416, body=b"no ranges here, and this is no part of the file")
    (shard,) = fetch_headers(snapshot).shards
    length = int.from_bytes(FILES[SHARDS[0]][:8], "little")
    assert shard.header_bytes == FILES[SHARDS[0]][: 8 + length]
    hub.fail("GET /blobs/", times=999, status=416)
    assert "status 416" in failure(lambda: fetch_headers(snapshot))


def test_storage_that_does_not_answer_in_time(
    hub: HubServer, hub_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 0.2)
    hub.add_repo(REPO, FILES)
    answer = threading.Event()
    hub.fail("GET /blobs/", times=2, stall=answer)
    assert len(fetch_headers(open_snapshot(REF)).shards) == 2
    hub.fail("GET /blobs/", times=99, stall=answer)
    assert "cannot reach" in failure(lambda: fetch_headers(open_snapshot(REF)))
    answer.set()


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ({"status": 500}, "status 500"),
        ({"status": 429}, "too many requests"),
        ({"status": 403}, "refuses access"),
        ({"cut_after": 0}, "cannot reach"),
        ({"short_by": 8}, "sends nothing after byte 0"),
    ],
)
def test_headers_that_never_come(
    hub: HubServer, hub_cache: Path, fault: dict[str, Any], said: str
) -> None:
    hub.add_repo(REPO, FILES)
    hub.fail("GET /blobs/", times=999, **fault)
    assert said in failure(lambda: fetch_headers(open_snapshot(REF)))


def test_storage_that_holds_another_length_than_the_hub_lists(
    hub: HubServer, hub_cache: Path
) -> None:
    hub.add_repo(REPO, FILES)
    hub.uploads[BIG] = FILES[SHARDS[0]][:-5]
    nbytes = len(FILES[SHARDS[0]])
    said = failure(lambda: fetch_headers(open_snapshot(REF)))
    assert f"{SHARDS[0]} has {nbytes - 5} bytes; expected {nbytes}" in said
    hub.uploads[BIG] = b""
    assert "has 0 bytes" in failure(lambda: fetch_headers(open_snapshot(REF)))


# --------------------------------------------------------------------- tokens


@pytest.mark.parametrize(
    "text",
    [
        f"GET https://user:{TOKEN}@hub.example/org/name failed",
        "GET https://user:sesame@hub.example/org/name failed",
        f"headers: {{'authorization': 'Bearer {TOKEN}', 'user-agent': 'x'}}",
        "headers: {'Authorization': 'Basic sesame'}",
        "https://cdn.example/blob?X-Amz-Signature=sesame&X-Amz-Credential=sesame is gone",
        f"https://cdn.example/blob?token={TOKEN}",
        f"the token {TOKEN} is not valid",
        "the token api_org_sesamesesamesesame is not valid",
    ],
)
def test_no_secret_is_left_in_a_text(text: str) -> None:
    masked = without_secrets(text, None)
    assert TOKEN[5:] not in masked and "sesame" not in masked


def test_any_token_that_is_known_is_masked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "of+the/environment")
    text = "a my-own-token b of+the/environment c of%2Bthe%2Fenvironment d"
    assert without_secrets(text, "my-own-token") == "a *** b *** c *** d"


@pytest.mark.parametrize("status", [400, 403, 500])
@pytest.mark.parametrize("token", [TOKEN, "sesame-without-a-known-shape"])
def test_server_that_repeats_the_token(
    hub: HubServer, hub_cache: Path, status: int, token: str
) -> None:
    hub.add_repo(REPO, FILES, private_token=token)
    body = b'{"error": "bad header authorization: Bearer %b for %b\\nretry"}'
    hub.fail("GET", times=99, status=status, body=body % (token.encode(), token.encode()))
    line = failure(lambda: open_snapshot(REF, token=token))
    assert token not in line and "retry" in line
