"""Block adapters by way of the Hub, with the real client: `extract` uploads, `apply` fetches."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from checkpoints import read_header, read_tensors
from faults import make_source
from hub_server import HubServer, read_folder
from trained import move_new_blocks

import blockexpand
from blockexpand.cli.app import main
from blockexpand.errors import CheckpointError

TOKEN = "hf_abcdefghijklmnopqrstuvwxyz012345"

pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")


def test_blocks_go_to_the_hub_and_come_back(
    tmp_path: Path, hub: HubServer, hub_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    hub.allow(TOKEN)
    base = make_source(tmp_path / "base")
    hub.add_repo("org/base", base)
    trained = move_new_blocks(base, tmp_path / "trained")
    found = blockexpand.extract(
        trained, tmp_path / "blocks", base="org/base", push_to_hub="user/blocks", token=TOKEN
    )
    assert found.pushed is not None
    uploaded = hub.files("user/blocks")
    assert uploaded == read_folder(tmp_path / "blocks")
    stated = json.loads(uploaded["block_adapter.json"])["base"]
    assert stated["repo"] == "org/base" and len(stated["commit"]) == 40
    assert b"base_model_relation: adapter" in uploaded["README.md"]
    assert str(tmp_path).encode() not in b"".join(uploaded.values())

    hub.requests.clear()
    result = blockexpand.apply("org/base", "user/blocks", out=tmp_path / "out", token=TOKEN)
    applied, wanted = read_tensors(tmp_path / "out"), read_tensors(trained)
    assert {k: v[:3] for k, v in applied.items()} == {k: v[:3] for k, v in wanted.items()}
    assert result.plan.adapters == ("user/blocks",)


def test_blocks_of_a_trained_model_on_the_hub(
    shared: Path, tmp_path: Path, hub: HubServer, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its manifest comes along: it tells which layers are new."""
    hub.add_repo("user/trained", shared)
    blockexpand.extract("user/trained", tmp_path / "again", base="org/base", token=TOKEN)
    assert read_tensors(tmp_path / "again") == read_tensors(tmp_path / "blocks")
    assert main(["show", "user/trained"]) == 0
    new = len(json.loads((tmp_path / "again" / "block_adapter.json").read_text())["new_layers"])
    assert f"+ {new} new = " in capsys.readouterr().out


def test_a_repository_that_is_no_adapter_is_told_before_anything_is_fetched(
    tmp_path: Path, hub: HubServer, hub_cache: Path
) -> None:
    base = make_source(tmp_path / "base")
    hub.add_repo("org/base", base)
    with pytest.raises(CheckpointError, match=r"org/base: the repository has no block_adapter"):
        blockexpand.apply(base, "org/base", out=tmp_path / "out")
    adapter = json.dumps({"format_version": 1}).encode()
    hub.add_repo("org/bad", {"block_adapter.json": adapter, "evil.safetensors": b"x" * 99})
    with pytest.raises(CheckpointError, match=r"org/bad/block_adapter\.json: "):
        blockexpand.apply(base, "org/bad", out=tmp_path / "out")
    assert not any("evil" in request.path for request in hub.requests)
    assert not (tmp_path / "out").exists()


@pytest.fixture
def shared(
    tmp_path: Path, hub: HubServer, hub_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """Return a trained model's folder; its base and its blocks lie on the Hub."""
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    hub.allow(TOKEN)
    base = make_source(tmp_path / "base")
    hub.add_repo("org/base", base)
    trained = move_new_blocks(base, tmp_path / "trained")
    blockexpand.extract(
        trained, tmp_path / "blocks", base="org/base", push_to_hub="user/blocks", token=TOKEN
    )
    hub.requests.clear()
    return trained


def read_repo(hub: HubServer, repo: str, folder: Path, revision: str = "main") -> dict[str, Any]:
    """Return the tensors of a repository, read by hand."""
    folder.mkdir()
    for name, data in hub.files(repo, revision).items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return {name: tensor[:3] for name, tensor in read_tensors(folder).items()}


def test_blocks_are_put_on_their_base_on_the_hub(
    shared: Path, tmp_path: Path, hub: HubServer
) -> None:
    result = blockexpand.apply_on_hub(
        "org/base", "user/blocks", repo="user/model", token=TOKEN, work=tmp_path / "work"
    )
    wanted = {name: tensor[:3] for name, tensor in read_tensors(shared).items()}
    assert read_repo(hub, "user/model", tmp_path / "read") == wanted
    assert b"proven by the Hub's digests" in hub.files("user/model")["README.md"]
    shards = [name for name in hub.files("org/base") if name.endswith(".safetensors")]
    assert len(result.done.copies) == len(shards) > 0
    digests = {
        name: hashlib.sha256(hub.files("org/base")[name]).hexdigest()[:16] for name in shards
    }
    fetched = [r.path for r in hub.requests if r.origin == "cdn" and r.method == "GET" and r.nbytes]
    # Of the base nothing but headers is fetched.
    for digest in digests.values():
        assert sum(r.nbytes for r in hub.requests if digest in r.path) < 20_000, fetched
    assert not list((tmp_path / "work").iterdir())
    assert result.done.fetched_nbytes == 0
    assert str(result.pushed).endswith(hub.repos["user/model"].refs["main"])


def test_tensors_of_the_base_that_were_trained_too_go_along(
    shared: Path, tmp_path: Path, hub: HubServer
) -> None:
    """A shard that takes from the base and from the adapter."""
    name, shard = next(
        (name, shard)
        for shard in shared.glob("*.safetensors")
        for name in read_header(shard)[0]
        if name == "model.norm.weight"
    )
    header, start = read_header(shard)
    first, last = (start + offset for offset in header[name]["data_offsets"])
    data = bytearray(shard.read_bytes())
    data[first:last] = bytes(byte ^ 1 for byte in data[first:last])
    shard.write_bytes(data)
    blockexpand.extract(shared, tmp_path / "more", base="org/base", with_changed=True, token=TOKEN)
    result = blockexpand.apply_on_hub(
        "org/base", tmp_path / "more", repo="user/model", token=TOKEN, work=tmp_path / "work"
    )
    assert result.done.fetched_nbytes > 0
    wanted = {name: tensor[:3] for name, tensor in read_tensors(shared).items()}
    assert read_repo(hub, "user/model", tmp_path / "read") == wanted


def test_a_base_that_digests_do_not_prove_is_refused_on_the_hub(
    shared: Path, tmp_path: Path, hub: HubServer
) -> None:
    files = dict(hub.files("org/base"))
    shard = next(name for name in files if name.endswith(".safetensors"))
    files[shard] = files[shard][:-1] + bytes([files[shard][-1] ^ 1])
    hub.add_repo("org/other", files)
    with pytest.raises(CheckpointError, match=r"org/other: the Hub's digests .* --trust-base"):
        blockexpand.apply_on_hub("org/other", "user/blocks", repo="user/model", token=TOKEN)
    assert "user/model" not in hub.repos
    blockexpand.apply_on_hub(
        "org/other",
        "user/blocks",
        repo="user/model",
        token=TOKEN,
        trust_base=True,
        work=tmp_path / "work",
    )
    assert b"were not looked at" in hub.files("user/model")["README.md"]


def test_the_commands_of_adapters_take_what_is_said_of_a_commit(
    shared: Path, tmp_path: Path, hub: HubServer, capfd: pytest.CaptureFixture[str]
) -> None:
    trained, base = str(shared), str(tmp_path / "base")
    more = ["--token", TOKEN, "--no-progress", "--json"]
    words = ["--out", str(tmp_path / "again"), "--base", base, "--commit-message", "My blocks"]
    words += ["--private", "--push-to-hub", "user/private"]
    assert main(["extract", trained, *words, *more]) == 0
    assert hub.repos["user/private"].private
    assert hub.messages[-1] == "My blocks"

    hub.add_repo("user/model", {"README.md": b"mine"})
    words = ["--push-to-hub", "user/model", "--create-pr", "--commit-message", "Whole"]
    assert main(["apply", base, "user/blocks", "--out", str(tmp_path / "out"), *words, *more]) == 0
    assert hub.files("user/model") == {"README.md": b"mine"}
    assert "config.json" in hub.files("user/model", "refs/pr/1")
    assert hub.messages[-1] == "Whole"

    assert main(["apply", "org/base", "user/blocks", "--on-hub", *words, *more]) == 0
    assert "config.json" in hub.files("user/model", "refs/pr/2")
    capfd.readouterr()
    assert main(["apply", "org/base", "user/blocks", "--on-hub", "--out", "x", *words, *more]) == 2
    assert "--out does not go with --on-hub" in capfd.readouterr().err
    dry = ["--push-to-hub", "user/new", "--on-hub", "--dry-run"]
    assert main(["apply", "org/base", "user/blocks", *dry, *more]) == 0
    assert json.loads(capfd.readouterr().out)["copied_nbytes"] > 0
    assert "user/new" not in hub.repos
