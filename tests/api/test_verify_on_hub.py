"""`verify SRC ME/REPO`: proven without a download of the model; a Hub that lies is told."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from checkpoints import read_header
from hub_server import HubServer, read_folder

import blockexpand
from blockexpand.cli.app import main
from blockexpand.errors import BlockExpandError, CheckpointError, HubError, UsageError

TOKEN = "hf_abcdefghijklmnopqrstuvwxyz012345"
SOURCE, REPO = "org/name", "user/grown"


@pytest.fixture
def put(
    tiny_mistral: Path, hub: HubServer, hub_cache: Path, tmp_path: Path, monkeypatch: Any
) -> Callable[..., Path]:
    """Return a function that expands SOURCE and puts the output on the Hub, changed if asked."""
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    monkeypatch.setattr("blockexpand.checkpoints.hub.pieces._WORTH_A_REQUEST_NBYTES", 16)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    hub.add_repo(SOURCE, tiny_mistral)

    def make(change: Callable[[dict[str, bytes]], None] | None = None, **options: Any) -> Path:
        out = tmp_path / f"out{len(hub.repos)}"
        blockexpand.expand(tiny_mistral, out, **{"new_layers": 1, "dtype": "source", **options})
        files = read_folder(out)
        if change is not None:
            change(files)
        hub.add_repo(REPO, files)
        hub.requests.clear()
        return out

    return make


def shards(files: Any) -> list[str]:
    return sorted(name for name in files if name.endswith(".safetensors"))


def flip(files: dict[str, bytes], name: str, offset: int = -1) -> None:
    data = bytearray(files[name])
    data[offset] ^= 1
    files[name] = bytes(data)


def ways(result: Any) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {"digest": set(), "read": set()}
    for proof in result.verification.proofs:
        found[proof.by] |= set(proof.files)
    return found


def test_no_work_folder_of_somebody_else_is_used(
    put: Callable[..., Path], hub: HubServer, tmp_path: Path
) -> None:
    put()
    assert blockexpand.verify(SOURCE, REPO).ok
    (elsewhere := tmp_path / "elsewhere").mkdir()
    commit = hub.repos[REPO].refs["main"]
    folder = tmp_path / "cache" / "blockexpand" / "verify" / f"user--grown-{commit[:16]}"
    folder.symlink_to(elsewhere)
    with pytest.raises(blockexpand.OutputError, match="is another user's, or no folder"):
        blockexpand.verify(SOURCE, REPO)
    assert not any(elsewhere.iterdir())


@pytest.mark.parametrize("local", [True, False])
def test_copies_are_proven_by_digest_and_the_rest_is_read(
    put: Callable[..., Path], hub: HubServer, tiny_mistral: Path, tmp_path: Path, local: bool
) -> None:
    put()
    result = blockexpand.verify(str(tiny_mistral) if local else SOURCE, REPO)
    assert result.ok and result.verification.keeps_function
    assert not result.verification.trained
    files = hub.files(REPO)
    copied = [name for name in shards(files) if files[name] in hub.files(SOURCE).values()]
    assert 0 < len(copied) < len(shards(files))
    found = ways(result)
    assert set(copied) <= found["digest"]
    assert set(shards(files)) - set(copied) <= found["read"]
    # Every file was compared, one way or the other.
    assert found["digest"] | found["read"] == set(files)
    for name in copied:
        digest = hashlib.sha256(files[name]).hexdigest()
        header = read_header(tmp_path / "out1" / name)[1]
        assert sum(r.nbytes for r in hub.requests if digest in r.path) < 3 * header + 300_000
    assert not list((tmp_path / "cache" / "blockexpand" / "verify").iterdir())


@pytest.mark.parametrize("local", [True, False])
@pytest.mark.parametrize(
    "options",
    [
        {"new_layers": 2, "position": "interleaved"},
        {"dtype": "float32"},
        {"max_shard_size": "100KB"},
    ],
)
def test_other_layouts_are_read_and_compared(
    put: Callable[..., Path],
    hub: HubServer,
    tiny_mistral: Path,
    options: dict[str, Any],
    local: bool,
) -> None:
    put(**options)
    src = str(tiny_mistral) if local else SOURCE
    assert blockexpand.verify(src, REPO).ok
    # A negative control: a byte of an original, in a shard that is read.
    files = dict(hub.files(REPO))
    name = shards(files)[0]
    flip(files, name)
    hub.add_repo(REPO, files)
    found = blockexpand.verify(src, REPO).findings
    assert [(f.file, f.tensor is not None) for f in found] == [(name, True)]


def test_each_change_of_a_repository_is_named(
    put: Callable[..., Path], hub: HubServer, tiny_mistral: Path
) -> None:
    put()
    right = dict(hub.files(REPO))
    first, last = shards(right)[0], shards(right)[-1]
    changes: dict[str, Callable[[dict[str, bytes]], Any]] = {
        first: lambda files: flip(files, first),
        "tokenizer.json": lambda files: files.update({"tokenizer.json": b"{}"}),
        "config.json": lambda files: files.update(
            {"config.json": files["config.json"].replace(b'"mistral"', b'"mixtral"')}
        ),
        "evil.py": lambda files: files.update({"evil.py": b"import os"}),
        "model.safetensors.index.json": lambda files: files.update(
            {
                "model.safetensors.index.json": files["model.safetensors.index.json"].replace(
                    b"total_size", b"other_size"
                )
            }
        ),
    }
    for name, change in changes.items():
        if name == "tokenizer.json" and name not in right:
            continue
        files = dict(right)
        change(files)
        hub.add_repo(REPO, files)
        found = blockexpand.verify(SOURCE, REPO).findings
        assert {f.file for f in found} == {name}, name
    # New blocks may be trained, unless they must not.
    files = dict(right)
    flip(files, last)
    hub.add_repo(REPO, files)
    result = blockexpand.verify(SOURCE, REPO)
    assert result.ok and len(result.verification.trained) == 1
    assert not blockexpand.verify(SOURCE, REPO, untrained=True).ok


def test_a_source_of_other_weights_is_told(
    put: Callable[..., Path], hub: HubServer, tiny_mistral: Path, tmp_path: Path
) -> None:
    put()
    files = {
        name: data[:-1] + bytes([data[-1] ^ 1]) if name.endswith(".safetensors") else data
        for name, data in hub.files(SOURCE).items()
    }
    hub.add_repo("org/other", files)
    assert not blockexpand.verify("org/other", REPO).ok


def test_a_hub_that_gives_other_bytes_than_it_lists_is_told(
    put: Callable[..., Path], hub: HubServer, tiny_mistral: Path
) -> None:
    put()
    name = shards(hub.files(REPO))[-1]
    data = hub.files(REPO)[name]
    lie = data[:-1] + bytes([data[-1] ^ 1])
    # What is read whole is held to its digest.
    hub.uploads[hashlib.sha256(data).hexdigest()] = lie
    with pytest.raises(HubError, match="other bytes than the Hub lists"):
        blockexpand.verify(SOURCE, REPO)


def test_a_listing_that_claims_copies_of_what_it_does_not_hold(
    put: Callable[..., Path], hub: HubServer, tiny_mistral: Path
) -> None:
    """The Hub's word for a digest is all that a copy is proven by, and the output says so."""
    put()
    result = blockexpand.verify(SOURCE, REPO)
    assert any("what the Hub lists" in note for note in result.verification.notes)


def test_a_hub_without_digests_has_everything_read(
    put: Callable[..., Path], hub: HubServer, tiny_mistral: Path
) -> None:
    put()
    commit = hub.repos[REPO].refs["main"]
    siblings = [{"rfilename": n, "size": len(d)} for n, d in hub.files(REPO).items()]
    body = json.dumps({"sha": commit, "siblings": siblings}).encode()
    hub.fail(f"GET /api/models/{REPO}/revision/", times=9, status=200, body=body)
    result = blockexpand.verify(SOURCE, REPO)
    assert result.ok
    assert not ways(result)["digest"] and set(shards(hub.files(REPO))) <= ways(result)["read"]


def test_what_a_trainer_saved_in_other_shards_is_read(
    put: Callable[..., Path], hub: HubServer, tiny_mistral: Path, tmp_path: Path
) -> None:
    from transformers import AutoModelForCausalLM

    out = put()
    AutoModelForCausalLM.from_pretrained(out, dtype="auto").save_pretrained(tmp_path / "saved")
    files = read_folder(tmp_path / "saved")
    files["block_expansion.json"] = (out / "block_expansion.json").read_bytes()
    hub.add_repo(REPO, files)
    result = blockexpand.verify(SOURCE, REPO)
    tensors = [f for f in result.findings if f.tensor or f.file.endswith(".safetensors")]
    assert not tensors
    assert result.verification.identical == result.verification.originals
    assert any("another program saved it" in note for note in result.verification.notes)


def test_what_cannot_be_proven_there_is_refused_in_a_line(
    put: Callable[..., Path], hub: HubServer, tiny_mistral: Path
) -> None:
    put(lambda files: files.pop("block_expansion.json") and None)
    cases: list[tuple[type[BlockExpandError], str, dict[str, Any]]] = [
        (CheckpointError, r"no block_expansion\.json.*hf download", {}),
        (UsageError, "--logits needs both models here", {"logits": True}),
    ]
    for kind, said, options in cases:
        with pytest.raises(kind, match=said):
            blockexpand.verify(SOURCE, REPO, **options)
    put(lambda files: files.update({"block_expansion.json": b"{}"}))
    with pytest.raises(CheckpointError, match="original_layers"):
        blockexpand.verify(SOURCE, REPO)


def test_the_command_says_how(
    put: Callable[..., Path],
    hub: HubServer,
    tiny_mistral: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    put()
    assert main(["verify", SOURCE, REPO, "--no-progress"]) == 0
    said = capfd.readouterr().out
    assert "verified: " in said and "the Hub lists the digest of the source's file" in said
    assert "1 shard, " in said and "read from the Hub and compared, with " in said
    assert main(["verify", SOURCE, REPO, "--json", "--no-progress"]) == 0
    proofs = json.loads(capfd.readouterr().out)["proofs"]
    assert {proof["by"] for proof in proofs} == {"digest", "read"}
    files = dict(hub.files(REPO))
    flip(files, shards(files)[0])
    hub.add_repo(REPO, files)
    assert main(["verify", SOURCE, REPO, "--no-progress"]) == 1
