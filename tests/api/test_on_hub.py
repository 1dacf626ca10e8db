"""Expansion on the Hub with the real client: what is copied there, fetched, sent, and proven."""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hub_server import HubServer, hub_environment, read_folder
from older import is_older

import blockexpand
from blockexpand.api import on_hub
from blockexpand.errors import ArgumentError, HubError, OutputError, TransferError
from blockexpand.progress import Progress

needs_copies = pytest.mark.skipif(
    is_older("huggingface_hub", (1, 17)), reason="this client cannot have the Hub copy files"
)

TOKEN = "hf_abcdefghijklmnopqrstuvwxyz012345"
SOURCE = "org/name"
REPO = "user/grown"

# The client's own upload of large files passes `data=` where its HTTP library wants `content=`.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")


@pytest.fixture
def grow(
    tiny_mistral: Path,
    hub: HubServer,
    hub_cache: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Callable[..., Any]:
    """Return a function that expands SOURCE on the Hub, and notes what it is told."""
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    # In shards of some kB a request is worth less than in real ones.
    monkeypatch.setattr("blockexpand.checkpoints.hub.pieces._WORTH_A_REQUEST_NBYTES", 16)
    hub.allow(TOKEN)
    hub.add_repo(SOURCE, tiny_mistral)

    def run(told: list[str] | None = None, repo: str = REPO, **more: Any) -> Any:
        return blockexpand.expand_on_hub(
            SOURCE,
            repo,
            token=TOKEN,
            work=tmp_path / "work",
            progress=Progress(tell=(told if told is not None else []).append),
            **{"new_layers": 1, "dtype": "source", **more},
        )

    return run


def local(source: Path, out: Path, **options: Any) -> dict[str, bytes]:
    """Return the weights, config and index of the same expansion made here."""
    blockexpand.expand(source, out, **({"new_layers": 1, "dtype": "source"} | options))
    return {n: d for n, d in read_folder(out).items() if not n.startswith(("README", "block_"))}


def weights(files: dict[str, bytes]) -> dict[str, bytes]:
    return {n: d for n, d in files.items() if not n.startswith(("README", "block_"))}


@needs_copies
def test_unchanged_shards_never_leave_the_hub(
    grow: Callable[..., Any], hub: HubServer, tiny_mistral: Path, tmp_path: Path
) -> None:
    told: list[str] = []
    result = grow(told)
    assert weights(hub.files(REPO)) == local(tiny_mistral, tmp_path / "out")
    shards = [tiny_mistral / name for name in sorted(hub.files(SOURCE)) if "000" in name]
    size = sum(path.stat().st_size for path in shards)
    fetched = sum(r.nbytes for r in hub.requests if r.origin == "cdn" and r.method == "GET")
    # A layer is fetched and a new shard is sent; the shards themselves are not.
    assert len(result.done.copies) == len(shards) and len(result.done.made) == 1
    assert fetched < size and not [r for r in hub.seen("/blobs/") if r.nbytes > size / 2]
    assert any(
        f"{len(shards)} of {len(shards) + 1} shards are copied on the Hub" in t for t in told
    )
    assert len(hub.repos[REPO].commits) == 2  # the empty one, and ours
    assert result.pushed.endswith(hub.repos[REPO].refs["main"])
    assert not list((tmp_path / "work").iterdir())
    assert {r.token for r in hub.requests if r.origin == "cdn"} == {None}


@needs_copies
def test_it_says_so_before_it_sends(grow: Callable[..., Any], hub: HubServer) -> None:
    hub.fail("POST /api/models/.*/preupload", times=99, status=500)
    told: list[str] = []
    with pytest.raises(HubError, match="in trouble"):
        grow(told)
    assert "copied on the Hub" in told[0] and "to fetch" in told[0] and "to send" in told[0]
    assert set(hub.files(REPO)) == set()


def test_interleaved_streams_what_changes(
    grow: Callable[..., Any], hub: HubServer, tiny_mistral: Path, tmp_path: Path
) -> None:
    options = {"new_layers": 2, "position": "interleaved"}
    grow(**options)
    expected = local(tiny_mistral, tmp_path / "out", **options)
    assert weights(hub.files(REPO)) == expected


@pytest.mark.parametrize("name", ["../outside.safetensors", "/etc/outside", "a//b", "config.json"])
def test_a_plan_whose_names_leave_the_folder_is_refused(
    grow: Callable[..., Any], hub: HubServer, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = on_hub.add_card

    def lie(*arguments: Any) -> Any:
        plan = real(*arguments)
        return replace(plan, files=(*plan.files[:-1], replace(plan.files[-1], name=name)))

    monkeypatch.setattr(on_hub, "add_card", lie)
    with pytest.raises(OutputError, match="would be called"):
        grow()
    assert REPO not in hub.repos


def test_a_work_folder_that_another_put_there_is_not_gone_on_with(
    grow: Callable[..., Any], hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "mine.txt").write_text("mine")
    planted = tmp_path / "planted"
    planted.symlink_to(elsewhere)
    monkeypatch.setattr(on_hub, "_work_folder", lambda *arguments: planted)
    with pytest.raises(OutputError, match="is another user's, or no folder"):
        grow()
    assert set(hub.files(REPO)) == set()
    assert (elsewhere / "mine.txt").read_text() == "mine"


@pytest.mark.parametrize("why", ["region", "no xet", "failed"])
def test_where_the_hub_does_not_copy_the_bytes_are_sent(
    grow: Callable[..., Any],
    hub: HubServer,
    tiny_mistral: Path,
    tmp_path: Path,
    why: str,
) -> None:
    told: list[str] = []
    if why == "no xet":
        hub.tells_xet = False
    elif why == "region":
        hub.add_repo(REPO, {})
        hub.repos[REPO].region = "eu"
    else:
        body = json.dumps({"failed": [{"sha256": "ab", "error": "quota"}]}).encode()
        hub.fail("duplicate", times=9, status=200, body=body)
    grow(told)
    assert weights(hub.files(REPO)) == local(tiny_mistral, tmp_path / "out")
    assert any("sent" in line and ("not copied" in line or "not copy" in line) for line in told)


def test_a_copy_that_lies_is_found(grow: Callable[..., Any], hub: HubServer) -> None:
    name = next(name for name in hub.files(SOURCE) if name.endswith("00001-of-00003.safetensors"))
    data = hub.files(SOURCE)[name]
    hub.swapped[hashlib.sha256(data).hexdigest()] = data[:-1] + bytes([data[-1] ^ 1])
    with pytest.raises(HubError, match=r"holds another model-00001-of-0000.* do not use it"):
        grow()


@needs_copies
def test_a_source_that_is_listed_twice_unlike_is_refused(
    grow: Callable[..., Any], hub: HubServer
) -> None:
    commit = hub.repos[SOURCE].refs["main"]
    entries = [
        {
            "type": "file",
            "path": name,
            "size": len(data),
            "oid": "a" * 40,
            "lfs": {"oid": "b" * 64, "size": len(data), "pointerSize": 1},
            "xetHash": "c" * 64,
        }
        for name, data in hub.files(SOURCE).items()
    ]
    hub.fail(
        f"GET /api/models/{SOURCE}/tree/{commit}", status=200, body=json.dumps(entries).encode()
    )
    with pytest.raises(HubError, match="two digests"):
        grow()
    assert REPO not in hub.repos


def test_files_that_are_there_are_refused_then_committed_on(
    grow: Callable[..., Any], hub: HubServer
) -> None:
    before = hub.add_repo(
        REPO, {"README.md": b"mine", "old.safetensors": b"x", ".gitattributes": b""}
    )
    with pytest.raises(HubError, match=r"has files \('README.md' and 1 more\);.* give --overwrite"):
        grow()
    assert hub.repos[REPO].refs["main"] == before
    grow(overwrite=True)
    assert "old.safetensors" not in hub.files(REPO) and ".gitattributes" in hub.files(REPO)
    assert before in hub.repos[REPO].commits
    assert hub.repos[REPO].commits[before]["old.safetensors"] == b"x"


def test_a_branch_that_moves_meanwhile(grow: Callable[..., Any], hub: HubServer) -> None:
    """Two runs at once, or somebody at work: whoever comes second changes nothing."""
    hub.add_repo(REPO, {})
    hub.fail(
        f"POST /api/models/{REPO}/preupload",
        then=lambda: hub.add_repo(REPO, {"theirs.txt": b"theirs"}),
        times=1,
    )
    with pytest.raises(HubError, match="the branch moved while this ran"):
        grow()
    assert hub.files(REPO) == {"theirs.txt": b"theirs"}


def test_a_source_that_moves_meanwhile(
    grow: Callable[..., Any], hub: HubServer, tiny_mistral: Path, tmp_path: Path
) -> None:
    hub.fail(
        f"GET /api/models/{SOURCE}/tree/",
        then=lambda: hub.add_repo(SOURCE, {"config.json": b"{}"}),
        times=1,
    )
    grow()
    assert weights(hub.files(REPO)) == local(tiny_mistral, tmp_path / "out")


def test_going_on_after_a_cut(
    grow: Callable[..., Any], hub: HubServer, tiny_mistral: Path, tmp_path: Path
) -> None:
    """What was sent is neither fetched nor sent again."""
    options = {"new_layers": 2, "position": "interleaved"}
    with pytest.MonkeyPatch.context() as patch:
        sent = 0

        from blockexpand.api import on_hub_shards

        real = on_hub_shards.upload_file

        def fail_second(*arguments: Any, **more: Any) -> Any:
            nonlocal sent
            sent += 1
            if sent == 2:
                raise HubError("cut")
            return real(*arguments, **more)

        patch.setattr(on_hub_shards, "upload_file", fail_second)
        with pytest.raises(HubError, match="cut"):
            grow(**options)
    before = len(hub.seen("/upload/", "PUT"))
    assert before == 1 and set(hub.files(REPO)) == set()
    result = grow(**options)
    assert weights(hub.files(REPO)) == local(tiny_mistral, tmp_path / "out", **options)
    assert len(hub.seen("/upload/", "PUT")) == len(result.done.made) > 1


@pytest.mark.parametrize("kind", ["folder", "nested", "list", "other run"])
def test_notes_that_are_none_are_no_fault_or_one_line(
    kind: str, grow: Callable[..., Any], hub: HubServer, tiny_mistral: Path, tmp_path: Path
) -> None:
    def stop(*arguments: Any) -> Any:
        raise HubError("cut")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("blockexpand.api.on_hub_shards.commit", lambda *arguments, **more: stop())
        patch.setattr(Path, "unlink", lambda path, **more: None)
        with pytest.raises(HubError, match="cut"):
            grow()
    (notes,) = (tmp_path / "work").glob("*/sent.json")
    if kind == "folder":
        notes.unlink()
        notes.mkdir()
        with pytest.raises(TransferError, match=r"sent\.json: cannot write"):
            grow()
        return
    other = json.loads(notes.read_text()) | {"for": {"repo": "user/other"}}
    notes.write_text({"nested": "[" * 99_999, "list": "[]"}.get(kind, json.dumps(other)))
    grow()
    assert weights(hub.files(REPO)) == local(tiny_mistral, tmp_path / "out")


def test_notes_that_cannot_be_removed_are_told(grow: Callable[..., Any], hub: HubServer) -> None:
    """What they say the Hub has would fail again."""
    hub.fail("POST .*/commit/", times=9, status=400, body=b'{"error": "no such object"}')

    real = Path.unlink

    def refuse(path: Path, missing_ok: bool = False) -> None:
        if path.name == "sent.json":
            raise PermissionError(13, "Permission denied")
        real(path, missing_ok=missing_ok)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "unlink", refuse)
        with pytest.raises(HubError, match=r"no such object.*sent\.json cannot be removed"):
            grow()


def test_a_pull_request_and_a_message(grow: Callable[..., Any], hub: HubServer) -> None:
    hub.add_repo(REPO, {"README.md": b"mine"})
    address = grow(create_pr=True, commit_message="Four more blocks").pushed
    assert "/discussions/" in address
    assert hub.files(REPO) == {"README.md": b"mine"}
    assert "config.json" in hub.files(REPO, "refs/pr/1")


def test_a_branch(grow: Callable[..., Any], hub: HubServer) -> None:
    hub.add_repo(REPO, {"README.md": b"mine"})
    grow(repo=f"{REPO}@grown", overwrite=True)
    assert hub.files(REPO) == {"README.md": b"mine"}
    assert "config.json" in hub.files(REPO, "grown")


def test_a_folder_is_refused(grow: Callable[..., Any], tiny_mistral: Path, tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match="is a folder here"):
        blockexpand.expand_on_hub(str(tiny_mistral), REPO, new_layers=1, token=TOKEN)


def test_the_snippet_of_the_page_runs(
    grow: Callable[..., Any], hub: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = (Path(__file__).parents[2] / "docs" / "hub.md").read_text()
    (snippet,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    exec(snippet.replace("me/", "user/"), {"blockexpand": blockexpand})
    assert "config.json" in hub.files("user/grown")


@needs_copies
def test_the_command(
    grow: Callable[..., Any], hub: HubServer, tiny_mistral: Path, tmp_path: Path
) -> None:
    words = ["--src", SOURCE, "--push-to-hub", REPO, "--on-hub", "--new-layers", "1"]
    words += ["--dtype", "source", "--json", "--commit-message", "Grown"]
    run = subprocess.run(
        [sys.executable, "-m", "blockexpand", *words],
        env=hub_environment(hub, tmp_path / "home", HF_TOKEN=TOKEN),
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    result = json.loads(run.stdout)
    assert result["pushed"].endswith(hub.repos[REPO].refs["main"])
    assert result["copied_nbytes"] > 0
    assert "copied on the Hub" in run.stderr
    assert TOKEN not in run.stdout + run.stderr
    assert weights(hub.files(REPO)) == local(tiny_mistral, tmp_path / "out")
    for name, data in hub.files(REPO).items():
        assert TOKEN.encode() not in data and str(tmp_path).encode() not in data, name


def test_a_client_that_cannot_be_told_what_was_sent_sends_it_with_the_commit(
    grow: Callable[..., Any],
    hub: HubServer,
    tiny_mistral: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Going on after a cut needs fields of the client that are not public."""
    from huggingface_hub import CommitOperationAdd

    fields = dict(CommitOperationAdd.__dataclass_fields__)
    del fields["_is_uploaded"]
    monkeypatch.setattr(CommitOperationAdd, "__dataclass_fields__", fields)
    monkeypatch.setattr(
        "blockexpand.publishing.commit._uploaded_addition",
        lambda file: pytest.fail("a field was set that the client may not have"),
    )
    options = {"new_layers": 2, "position": "interleaved"}
    grow(**options)
    assert weights(hub.files(REPO)) == local(tiny_mistral, tmp_path / "out", **options)


def test_the_work_folder_that_is_given_keeps_what_was_in_it(
    grow: Callable[..., Any], hub: HubServer, tmp_path: Path
) -> None:
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "mine.txt").write_text("mine")
    grow()
    assert [path.name for path in (tmp_path / "work").iterdir()] == ["mine.txt"]
