"""Uploads with the real client: what arrives, how one goes on, what is said when one fails."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest
from hub_server import SHARDS, WANTED, HubServer, checkpoint_files

from blockexpand.errors import HubError, UsageError
from blockexpand.publishing.folder import push_folder

TOKEN = "hf_abcdefghijklmnopqrstuvwxyz012345"
REPO = "user/grown"
FILES = {name: data for name, data in checkpoint_files().items() if name in WANTED}

# The client's own upload of large files passes `data=` where its HTTP library wants `content=`.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")


@pytest.fixture
def out(tmp_path: Path, hub: HubServer, hub_cache: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A finished output, and a Hub that knows the token."""
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    hub.allow(TOKEN)
    folder = tmp_path / "out"
    for name, data in FILES.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return folder


def describe(folder: Path) -> dict[str, tuple[bytes, int]]:
    return {
        path.relative_to(folder).as_posix(): (
            path.read_bytes() if path.is_file() else b"",
            stat.S_IMODE(path.stat().st_mode),
        )
        for path in folder.rglob("*")
    }


@pytest.mark.parametrize("private", [False, True])
def test_everything_arrives(
    hub: HubServer, out: Path, private: bool, capfd: pytest.CaptureFixture[str]
) -> None:
    before = describe(out)
    address = push_folder(out, REPO, private=private, token=TOKEN)
    assert hub.files(REPO) == FILES
    assert hub.repos[REPO].private is private
    assert address == f"{hub.url}/{REPO}/commit/{hub.repos[REPO].refs['main']}"
    assert describe(out) == before
    assert {r.token for r in hub.requests if r.origin == "cdn"} == {None}
    assert capfd.readouterr() == ("", "")


def test_token_of_the_environment(
    hub: HubServer, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    push_folder(out, REPO)
    assert hub.files(REPO) == FILES


def test_name_without_an_owner_is_the_users(hub: HubServer, out: Path) -> None:
    assert "/user/mine/commit/" in push_folder(out, "mine", token=TOKEN)
    assert hub.files("user/mine") == FILES


def test_second_upload_sends_only_what_changed(hub: HubServer, out: Path) -> None:
    push_folder(out, REPO, token=TOKEN)
    sent = len(hub.seen("/upload/", method="PUT"))
    push_folder(out, REPO, token=TOKEN)
    assert len(hub.seen("/upload/", method="PUT")) == sent
    (out / SHARDS[0]).write_bytes(b"new")
    push_folder(out, REPO, token=TOKEN)
    assert len(hub.seen("/upload/", method="PUT")) == sent + 1
    assert hub.files(REPO)[SHARDS[0]] == b"new"


def test_files_of_an_existing_repository_stay(hub: HubServer, out: Path) -> None:
    hub.add_repo(REPO, {"notes.txt": b"mine"}, private_token=TOKEN)
    push_folder(out, REPO, token=TOKEN)
    assert hub.files(REPO) == {"notes.txt": b"mine", **FILES}
    assert hub.repos[REPO].private


def failure(out: Path, **options: object) -> str:
    before = describe(out)
    with pytest.raises(HubError) as caught:
        push_folder(out, REPO, **options)  # type: ignore[arg-type]
    line = str(caught.value)
    assert "\n" not in line and TOKEN not in line
    assert line.startswith(f"{REPO}: ")
    assert f"{out} is complete" in line and f"`hf upload {REPO} {out}" in line
    assert describe(out) == before
    return line


@pytest.mark.parametrize(
    ("what", "fault", "said"),
    [
        ("POST /api/repos/create", {"status": 403}, "may not do that"),
        ("POST /api/repos/create", {"status": 500}, "status 500"),
        ("POST .*/preupload/", {"status": 500}, "status 500"),
        ("POST .*/batch", {"status": 503}, "status 503"),
        ("PUT /upload/", {"status": 500}, "status 500"),
        ("PUT /upload/", {"status": 403}, "may not do that"),
        ("PUT /upload/", {"cut_after": 0, "body": b"x", "reset": True}, "cannot reach"),
        ("POST .*/verify", {"status": 404}, "no such repository"),
        ("POST .*/commit/", {"status": 429}, "too many requests"),
    ],
)
def test_upload_that_fails_leaves_the_output_and_says_how_to_go_on(
    hub: HubServer, out: Path, what: str, fault: dict[str, object], said: str
) -> None:
    injected = hub.fail(what, times=999, **fault)
    assert said in failure(out, token=TOKEN)
    injected.times = 0
    push_folder(out, REPO, token=TOKEN)
    assert hub.files(REPO) == FILES


def test_busy_hub_is_asked_again(hub: HubServer, out: Path) -> None:
    hub.fail("PUT /upload/", times=2, status=503)
    hub.fail("POST .*/preupload/", times=2, status=429)
    push_folder(out, REPO, token=TOKEN)
    assert hub.files(REPO) == FILES


def test_no_token(hub: HubServer, out: Path) -> None:
    assert "a token that may write" in failure(out)
    assert not hub.requests


def test_unknown_token(hub: HubServer, out: Path) -> None:
    line = failure(out, token="hf_unknown", private=True)
    assert "does not accept this token" in line and line.endswith("--private`")


def test_server_that_repeats_the_token(hub: HubServer, out: Path) -> None:
    body = b'{"error": "authorization: Bearer %b is not enough"}' % TOKEN.encode()
    hub.fail("POST .*/commit/", times=99, status=403, body=body)
    assert "is not enough" in failure(out, token=TOKEN)


def test_malformed_repository(hub: HubServer, out: Path) -> None:
    with pytest.raises(UsageError, match="no repository id"):
        push_folder(out, "a/b/c", token=TOKEN)
