"""The Hub, with the real client against a server on this machine."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hub_server import (
    SHARDS,
    UNWANTED,
    WANTED,
    HubServer,
    checkpoint_files,
    hub_environment,
    read_folder,
    safetensors_bytes,
)

from blockexpand.checkpoints.checkpoint import open_checkpoint
from blockexpand.checkpoints.hub.download import download_checkpoint, download_side_files
from blockexpand.checkpoints.hub.files import RepoRef, parse_repo_ref, wanted_files
from blockexpand.checkpoints.hub.headers import fetch_headers
from blockexpand.checkpoints.hub.snapshot import open_snapshot
from blockexpand.checkpoints.sources import HubOptions, open_headers
from blockexpand.errors import CheckpointError, HubError, UsageError

TOKEN = "hf_abcdefghijklmnopqrstuvwxyz012345"
REPO = "org/name"
REF = RepoRef(repo_id=REPO, revision=None)
# ---------------------------------------------------------------------- names


@pytest.mark.parametrize(
    ("src", "revision", "expected"),
    [
        ("org/name", None, ("org/name", None)),
        ("gpt2", None, ("gpt2", None)),
        ("org/name@v1.0", None, ("org/name", "v1.0")),
        ("org/name@refs/pr/3", None, ("org/name", "refs/pr/3")),
        ("org/name", "dev", ("org/name", "dev")),
        ("org/name@dev", "dev", ("org/name", "dev")),
        ("mistralai/Mistral-7B-v0.1@main", None, ("mistralai/Mistral-7B-v0.1", "main")),
    ],
)
def test_repo_ref(src: str, revision: str | None, expected: tuple[str, str | None]) -> None:
    assert parse_repo_ref(src, revision) == RepoRef(repo_id=expected[0], revision=expected[1])


@pytest.mark.parametrize(
    ("src", "revision", "said"),
    [
        ("", None, "expected org/name"),
        ("a/b/c", None, "expected org/name"),
        ("./gone", None, "no repository id of the Hub"),
        ("/data/gone", None, "no repository id of the Hub"),
        ("org/na--me", None, "expected org/name"),
        ("org/name\n", None, "expected org/name"),
        ("https://huggingface.co/org/name", None, "give only org/name"),
        ("https://me:sesame@hub.example/org/name", None, "give only org/name"),
        ("org/name@", None, "no name of a branch"),
        ("org/name", "", "no name of a branch"),
        ("org/name@a b", None, "no name of a branch"),
        ("org/name@../../x", None, "no name of a branch"),
        ("org/name@a", "b", "another revision"),
    ],
)
def test_malformed_repo_ref(src: str, revision: str | None, said: str) -> None:
    with pytest.raises((HubError, UsageError), match=said) as caught:
        parse_repo_ref(src, revision)
    assert "\n" not in str(caught.value)
    assert "sesame" not in str(caught.value)


# ------------------------------------------------------------------ selection


def test_wanted_files_of_a_sharded_repository() -> None:
    chosen = wanted_files(frozenset(checkpoint_files()), SHARDS, REPO)
    assert chosen.shards == SHARDS
    assert chosen.documents == ("config.json", "model.safetensors.index.json", "README.md")
    assert {*chosen.documents, *chosen.shards, *chosen.side_files} == WANTED
    # Version control's own files are no weights: nobody needs to hear of them.
    assert set(chosen.left_behind) == set(UNWANTED) - {".gitattributes"}


def test_single_file_goes_before_an_index_as_in_transformers() -> None:
    names = {*checkpoint_files(), "model.safetensors"}
    chosen = wanted_files(names, (), REPO)
    assert chosen.shards == ("model.safetensors",)
    assert "model.safetensors.index.json" not in chosen.documents
    assert set(SHARDS) <= set(chosen.left_behind)


@pytest.mark.parametrize(
    ("names", "shards", "said"),
    [
        ({"config.json", "pytorch_model.bin"}, (), "convert"),
        ({"config.json", "model.gguf"}, (), "no safetensors"),
        ({"model.safetensors"}, (), "no config.json"),
        (
            {"config.json", "model.safetensors.index.json", "a.safetensors"},
            ("a.safetensors", "b.safetensors"),
            "names b.safetensors",
        ),
    ],
)
def test_repository_that_lacks_something(
    names: set[str], shards: tuple[str, ...], said: str
) -> None:
    with pytest.raises(HubError, match=said) as caught:
        wanted_files(names, shards, "org/name")
    assert str(caught.value).startswith("org/name: ")


# ------------------------------------------------------------------- download


def test_download_takes_what_is_needed_and_nothing_else(hub: HubServer, hub_cache: Path) -> None:
    files = checkpoint_files()
    commit = hub.add_repo(REPO, files)
    counted: list[int] = []
    snapshot = open_snapshot(REF)
    folder = download_checkpoint(snapshot, progress=counted.append)
    assert snapshot.commit == commit
    assert folder == hub_cache / "models--org--name" / "snapshots" / commit
    assert read_folder(folder) == {name: files[name] for name in WANTED}
    assert sum(counted) == sum(len(files[name]) for name in WANTED)
    asked = {request.path for request in hub.seen("/resolve/", method=None)}
    assert not [path for path in asked if any(path.endswith(f"/{name}") for name in UNWANTED)]
    # Every file was asked for at the pinned commit, none at the branch.
    assert all(f"/resolve/{commit}/" in path for path in asked)


def test_no_room_for_a_download_is_told_before_it(
    hub: HubServer, hub_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = checkpoint_files()
    hub.add_repo(REPO, files)
    needed = sum(len(files[name]) for name in WANTED)
    usage = shutil.disk_usage(hub_cache.parent.parent)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=needed - 1))
    with pytest.raises(
        HubError, match=f"{needed:,} bytes to download, {needed - 1:,} free"
    ) as caught:
        download_checkpoint(open_snapshot(REF))
    assert str(hub_cache) in str(caught.value)
    assert not hub_cache.exists()
    # What an earlier download has begun needs no room a second time.
    begun = hub_cache / "models--org--name" / "blobs" / "some.incomplete"
    begun.parent.mkdir(parents=True)
    begun.write_bytes(b"x")
    assert download_checkpoint(open_snapshot(REF)).is_dir()


def test_commit_that_the_hub_forgot_is_taken_from_the_cache(
    hub: HubServer, hub_cache: Path
) -> None:
    first = RepoRef(repo_id=REPO, revision=hub.add_repo(REPO, checkpoint_files(fill=1)))
    folder = download_checkpoint(open_snapshot(first))
    hub.add_repo(REPO, checkpoint_files(fill=2))
    del hub.repos[REPO].commits[str(first.revision)]
    assert download_checkpoint(open_snapshot(first)) == folder


def test_second_download_moves_no_file(hub: HubServer, hub_cache: Path) -> None:
    hub.add_repo(REPO, checkpoint_files())
    download_checkpoint(open_snapshot(REF))
    before = len(hub.seen("/resolve/|/blobs/", method=None))
    download_checkpoint(open_snapshot(REF))
    assert len(hub.seen("/resolve/|/blobs/", method=None)) == before


def test_revisions(hub: HubServer, hub_cache: Path) -> None:
    old = hub.add_repo(REPO, checkpoint_files(fill=1), revision="v1")
    new = hub.add_repo(REPO, checkpoint_files(fill=2))
    for asked, commit, fill in [("v1", old, 1), (None, new, 2), (old, old, 1)]:
        snapshot = open_snapshot(RepoRef(repo_id=REPO, revision=asked))
        assert snapshot.commit == commit
        config = json.loads((download_checkpoint(snapshot) / "config.json").read_bytes())
        assert config["fill"] == fill


def test_revision_with_slashes_is_no_path(hub: HubServer, hub_cache: Path) -> None:
    commit = hub.add_repo(REPO, checkpoint_files(), revision="refs/pr/1")
    assert open_headers(f"{REPO}@refs/pr/1", HubOptions()).name.commit == commit
    with pytest.raises(CheckpointError, match="give only org/name of the address"):
        open_headers(f"https://huggingface.co/{REPO}", HubOptions())
    with pytest.raises(CheckpointError, match="no such folder; give a folder"):
        open_headers("models/of/mine@home", HubOptions())


def test_legacy_name_and_cache_dir(hub: HubServer, hub_cache: Path, tmp_path: Path) -> None:
    hub.add_repo("gpt2", checkpoint_files())
    snapshot = open_snapshot(parse_repo_ref("gpt2"), cache_dir=tmp_path / "other")
    folder = download_checkpoint(snapshot, cache_dir=tmp_path / "other")
    assert folder.parents[2] == tmp_path / "other"
    assert not hub_cache.exists()


def test_side_files_without_weights(hub: HubServer, hub_cache: Path) -> None:
    hub.add_repo(REPO, checkpoint_files())
    folder = download_side_files(open_snapshot(REF))
    assert read_folder(folder).keys() == WANTED - set(SHARDS)
    assert hub.sent("/blobs/") == 0


def test_branch_that_moves_after_it_was_looked_up(hub: HubServer, hub_cache: Path) -> None:
    files = checkpoint_files(fill=1)
    hub.add_repo(REPO, files)
    snapshot = open_snapshot(REF)
    hub.add_repo(REPO, checkpoint_files(fill=2))
    assert fetch_headers(snapshot).documents["config.json"] == files["config.json"]
    folder = download_checkpoint(snapshot)
    assert read_folder(folder) == {name: files[name] for name in WANTED}


def test_branch_that_moves_between_two_files(hub: HubServer, hub_cache: Path) -> None:
    first = hub.add_repo(REPO, checkpoint_files(fill=1))
    hub.fail("HEAD .*/config.json", then=lambda: hub.add_repo(REPO, checkpoint_files(fill=2)))
    folder = download_checkpoint(open_snapshot(REF))
    assert hub.repos[REPO].refs["main"] != first
    files = checkpoint_files(fill=1)
    assert read_folder(folder) == {name: files[name] for name in WANTED}


def test_file_of_the_cache_with_a_wrong_length_is_named(hub: HubServer, hub_cache: Path) -> None:
    hub.add_repo(REPO, checkpoint_files())
    folder = download_checkpoint(open_snapshot(REF))
    blob = (folder / SHARDS[0]).resolve()
    blob.write_bytes(b"short")
    # The header is not read from it, or a plan would call the repository broken.
    snapshot = open_snapshot(REF)
    shard = fetch_headers(snapshot).shards[0]
    assert shard.nbytes == snapshot.file(shard.name).nbytes > 5
    assert shard.header_bytes == checkpoint_files()[SHARDS[0]][: len(shard.header_bytes)]
    with pytest.raises(HubError, match=f"{SHARDS[0]} has 5 bytes") as caught:
        download_checkpoint(snapshot)
    assert str(blob) in str(caught.value)
    # Doing what the message says helps.
    blob.unlink()
    assert (download_checkpoint(open_snapshot(REF)) / SHARDS[0]).read_bytes() == (
        checkpoint_files()[SHARDS[0]]
    )


def test_blobs_that_the_cache_shares_between_repositories(hub: HubServer, hub_cache: Path) -> None:
    """With Xet the client moves blobs to a store of the whole cache and links to them there."""
    shared = pytest.importorskip("huggingface_hub.utils._shared_blobs")
    files = checkpoint_files()
    hub.add_repo(REPO, files)
    folder = download_checkpoint(open_snapshot(REF))
    for number, name in enumerate(SHARDS):
        assert shared.publish_blob_to_shared_store(
            blob_path=str(folder.parents[1] / "blobs" / hashlib.sha256(files[name]).hexdigest()),
            xet_hash=f"{number}" * 64,
            cache_dir=hub_cache,
            expected_size=len(files[name]),
        )
        assert (folder / name).resolve().is_relative_to(hub_cache / "blobs")
    checkpoint = open_checkpoint(folder)
    assert [shard.file.nbytes for shard in checkpoint.shards] == [len(files[n]) for n in SHARDS]
    assert download_checkpoint(open_snapshot(REF)) == folder


# -------------------------------------------------------------------- headers


def test_headers_come_by_range_requests_without_a_byte_of_a_tensor(
    hub: HubServer, hub_cache: Path
) -> None:
    files = checkpoint_files(nbytes=3_000_000)
    hub.add_repo(REPO, files)
    headers = fetch_headers(open_snapshot(REF))
    assert not hub_cache.exists()
    expected = [safetensors_bytes(3_000_000, "a")[1], safetensors_bytes(1_500_000, "b")[1]]
    assert [shard.name for shard in headers.shards] == list(SHARDS)
    assert [shard.header_bytes for shard in headers.shards] == expected
    assert [shard.nbytes for shard in headers.shards] == [len(files[name]) for name in SHARDS]
    assert hub.sent("/blobs/") == sum(map(len, expected))
    assert all(request.range for request in hub.seen("/blobs/"))
    assert headers.documents == {
        name: files[name] for name in ("config.json", "model.safetensors.index.json", "README.md")
    }
    side = WANTED - set(SHARDS) - set(headers.documents)
    assert {(f.name, f.nbytes) for f in headers.side_files} == {(n, len(files[n])) for n in side}
    assert "pytorch_model-00001-of-00002.bin" in headers.left_behind


def test_headers_of_cached_shards_need_no_request(hub: HubServer, hub_cache: Path) -> None:
    hub.add_repo(REPO, checkpoint_files())
    snapshot = open_snapshot(REF)
    fetched = fetch_headers(snapshot)
    download_checkpoint(snapshot)
    before = len(hub.requests)
    assert fetch_headers(snapshot) == fetched
    assert len(hub.requests) == before


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"", b""),
        (b"abc", b"abc"),
        (b"\xff" * 64, b"\xff" * 8),
        ((200_000_000).to_bytes(8, "little") + b"{}", (200_000_000).to_bytes(8, "little")),
    ],
)
def test_nonsense_for_a_header_is_handed_on_for_the_parser_to_judge(
    hub: HubServer, hub_cache: Path, data: bytes, expected: bytes
) -> None:
    hub.add_repo(REPO, {"config.json": b"{}", "model.safetensors": data})
    (shard,) = fetch_headers(open_snapshot(REF)).shards
    assert (shard.nbytes, shard.header_bytes) == (len(data), expected)


def test_header_that_ends_beyond_its_file_is_called_that(hub: HubServer, hub_cache: Path) -> None:
    header = (5000).to_bytes(8, "little") + b'{"a": '
    hub.add_repo(REPO, {"config.json": b"{}", "model.safetensors": header})
    with pytest.raises(CheckpointError, match="header ends beyond the file; expected at least"):
        open_headers(REPO, HubOptions())


def test_server_without_ranges_is_not_read_to_the_end(hub: HubServer, hub_cache: Path) -> None:
    data, header = safetensors_bytes(30_000_000)
    hub.add_repo(REPO, {"config.json": b"{}", "model.safetensors": data})
    hub.fail("GET /blobs/", times=99, ignore_range=True)
    (shard,) = fetch_headers(open_snapshot(REF)).shards
    assert shard.header_bytes == header
    assert hub.sent("/blobs/") < len(data)


def test_mirror_that_lists_sizes_in_the_tree_only(hub: HubServer, hub_cache: Path) -> None:
    files = checkpoint_files()
    hub.add_repo(REPO, files)
    expected = open_snapshot(REF)
    hub.lists_sizes = False
    hub.files_per_page = 4
    assert open_snapshot(REF) == expected
    assert {file.name: file.nbytes for file in expected.files} == {n: len(files[n]) for n in files}
    # A listing costs one request where the Hub says all of it at once.
    assert len(hub.seen("/tree/")) == -(-len(files) // 4)


def test_document_that_is_no_small_text(
    hub: HubServer, hub_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("blockexpand.checkpoints.hub.headers.MOST_JSON_NBYTES", 1000)
    hub.add_repo(REPO, {**checkpoint_files(), "config.json": b" " * 1001})
    with pytest.raises(HubError, match=r"config.json: expected at most 1000 bytes, found 1001"):
        fetch_headers(open_snapshot(REF))


def test_only_the_beginning_of_a_huge_card_is_fetched(hub: HubServer, hub_cache: Path) -> None:
    card = b"---\nlicense: mit\n---\n" + b"x" * (3 << 20)
    hub.add_repo(REPO, {**checkpoint_files(), "README.md": card})
    assert fetch_headers(open_snapshot(REF)).documents["README.md"] == card[: 1 << 20]


# -------------------------------------------------------------------- offline


def go_offline(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)


def test_offline_takes_the_cached_snapshot(
    hub: HubServer, hub_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add_repo(REPO, checkpoint_files())
    online = open_snapshot(REF)
    folder = download_checkpoint(online)
    headers = fetch_headers(online)
    go_offline(monkeypatch)
    before = len(hub.requests)
    offline = open_snapshot(REF)
    assert (offline.commit, offline.cached) == (online.commit, folder)
    assert download_checkpoint(offline) == folder
    assert fetch_headers(offline).shards == headers.shards
    assert len(hub.requests) == before


@pytest.mark.parametrize("offline", [True, False])
def test_neither_connection_nor_cache(
    hub: HubServer, hub_cache: Path, monkeypatch: pytest.MonkeyPatch, offline: bool
) -> None:
    if offline:
        go_offline(monkeypatch)
    else:
        from huggingface_hub import constants

        monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    said = "HF_HUB_OFFLINE" if offline else "cannot reach http://127.0.0.1:9"
    with pytest.raises(HubError, match=said):
        open_snapshot(REF)


def test_no_connection_but_a_cached_snapshot(
    hub: HubServer, hub_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    hub.add_repo(REPO, checkpoint_files())
    folder = download_checkpoint(open_snapshot(REF))
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    assert download_checkpoint(open_snapshot(REF)) == folder


def test_half_a_cached_snapshot_offline_is_refused(
    hub: HubServer, hub_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add_repo(REPO, checkpoint_files())
    (download_checkpoint(open_snapshot(REF)) / SHARDS[1]).unlink()
    go_offline(monkeypatch)
    with pytest.raises(HubError, match=f"names {SHARDS[1]}.*") as caught:
        download_checkpoint(open_snapshot(REF))
    assert "in the cache" in str(caught.value) and "was not finished" in str(caught.value)


# ---------------------------------------------------------------- no entrance


def refusal(token: str | None = None, ref: RepoRef = REF) -> str:
    """Return the one line with which a download is refused."""
    with pytest.raises(HubError) as caught:
        download_checkpoint(open_snapshot(ref, token=token), token=token)
    line = str(caught.value)
    assert "\n" not in line
    assert line.startswith((f"{ref.repo_id}: ", f"{ref.repo_id}@"))
    assert TOKEN not in line and "Bearer" not in line
    assert caught.value.__cause__ is None
    return line


def test_missing_repository(hub: HubServer, hub_cache: Path) -> None:
    hub.allow(TOKEN)
    assert "no such public repository; if it is private, give --token" in refusal()
    assert "no such repository that this token may see" in refusal(TOKEN)


def test_missing_revision(hub: HubServer, hub_cache: Path) -> None:
    hub.add_repo(REPO, checkpoint_files())
    line = refusal(ref=RepoRef(repo_id=REPO, revision="v9"))
    assert "no revision 'v9'" in line
    # One that was deleted on the Hub is not taken from the cache without a word.
    gone = RepoRef(repo_id=REPO, revision="v1")
    hub.add_repo(REPO, checkpoint_files(), revision="v1")
    download_checkpoint(open_snapshot(gone))
    del hub.repos[REPO].refs["v1"]
    assert "no revision 'v1'" in refusal(ref=gone)


def test_private_repository(
    hub: HubServer, hub_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add_repo(REPO, checkpoint_files(), private_token=TOKEN)
    hub.allow("hf_other")
    assert "if it is private, give --token" in refusal()
    assert "that this token may see" in refusal("hf_other")
    assert "does not accept this token (Invalid cred" in refusal("hf_unknown")
    download_checkpoint(open_snapshot(REF, token=TOKEN), token=TOKEN)
    assert {r.token for r in hub.seen("/blobs/") if r.origin == "cdn"} == {None}


def test_token_of_the_environment(
    hub: HubServer, hub_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add_repo(REPO, checkpoint_files(), private_token=TOKEN)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    snapshot = open_snapshot(REF)
    assert len(fetch_headers(snapshot).shards) == 2
    assert download_checkpoint(snapshot).is_dir()
    assert {r.token for r in hub.seen("/blobs/") if r.origin == "cdn"} == {None}


def test_gated_repository(hub: HubServer, hub_cache: Path) -> None:
    hub.add_repo(REPO, checkpoint_files(), gated=True)
    hub.allow("hf_other")
    hub.allow(TOKEN, REPO)
    advice = "accept the licence at https://huggingface.co/org/name"
    assert advice in (line := refusal()) and line.endswith("give --token")
    assert advice in refusal("hf_other")
    with pytest.raises(HubError, match="accept the licence"):
        fetch_headers(open_snapshot(REF))
    assert download_checkpoint(open_snapshot(REF, token=TOKEN), token=TOKEN).is_dir()


def test_only_pickles(hub: HubServer, hub_cache: Path) -> None:
    hub.add_repo(REPO, {"config.json": b"{}", "pytorch_model.bin": b"\x80"})
    assert "convert" in refusal()
    assert not hub.seen("/resolve/", method=None)


def test_index_that_names_a_shard_which_was_never_uploaded(hub: HubServer, hub_cache: Path) -> None:
    files = checkpoint_files()
    del files[SHARDS[1]]
    hub.add_repo(REPO, files)
    assert f"names {SHARDS[1]}, which is not there" in refusal()
    assert hub.sent("/blobs/") == 0


@pytest.mark.parametrize("shard", ["../../x.safetensors", "/etc/x.safetensors", "a/b.safetensors"])
def test_index_that_leaves_the_folder(hub: HubServer, hub_cache: Path, shard: str) -> None:
    index = json.dumps({"weight_map": {"a": shard}}).encode()
    hub.add_repo(REPO, {"config.json": b"{}", "model.safetensors.index.json": index})
    assert "weight_map names the shard" in refusal()


@pytest.mark.parametrize("body", [b'{"hello": "world"}', b"<html>Log in</html>", b"", b"[]"])
def test_endpoint_that_is_no_hub(hub: HubServer, hub_cache: Path, body: bytes) -> None:
    hub.add_repo(REPO, checkpoint_files())
    hub.fail("GET /api/models", status=200, body=body)
    assert "does HF_ENDPOINT name a Hub?" in refusal()


# -------------------------------------------------- as a process of its own

SCRIPT = """
import json, sys
from blockexpand.errors import CheckpointError, HubError
from blockexpand.checkpoints.hub import download_checkpoint, fetch_headers
from blockexpand.checkpoints.hub import open_snapshot, parse_repo_ref
before = [name for name in ("torch", "transformers", "huggingface_hub") if name in sys.modules]
try:
    snapshot = open_snapshot(parse_repo_ref(sys.argv[1]))
    headers = fetch_headers(snapshot)
    folder = download_checkpoint(snapshot)
    heavy = [name for name in ("torch", "transformers") if name in sys.modules]
    print(json.dumps([snapshot.commit, str(folder), len(headers.shards), before + heavy]))
except HubError as error:
    sys.exit(f"error: {error}")
"""


def run_script(env: dict[str, str], src: str = REPO) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", SCRIPT, src], env=env, capture_output=True, text=True, timeout=60
    )


def test_environment_variables_hold(hub: HubServer, tmp_path: Path) -> None:
    commit = hub.add_repo(REPO, checkpoint_files(), private_token=TOKEN)
    plain = hub_environment(hub, tmp_path / "home")
    refused = run_script(plain)
    assert (refused.returncode, refused.stdout) == (1, "")
    assert refused.stderr.count("\n") == 1 and "if it is private, give --token" in refused.stderr
    done = run_script({**plain, "HF_TOKEN": TOKEN})
    assert (done.returncode, done.stderr) == (0, "")
    folder = tmp_path / "home" / "hub" / "models--org--name" / "snapshots" / commit
    assert json.loads(done.stdout) == [commit, str(folder), 2, []]
    before = len(hub.requests)
    offline = run_script({**plain, "HF_HUB_OFFLINE": "1"})
    assert json.loads(offline.stdout)[:2] == [commit, str(folder)]
    assert len(hub.requests) == before
    nowhere = run_script({**plain, "HF_HUB_OFFLINE": "1"}, "org/other")
    assert nowhere.returncode == 1
    assert nowhere.stderr.count("\n") == 1 and "HF_HUB_OFFLINE is set" in nowhere.stderr
