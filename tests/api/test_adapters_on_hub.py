"""Block adapters by way of the Hub, with the real client: `extract` uploads, `apply` fetches."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from checkpoints import read_tensors
from faults import make_source
from hub_server import HubServer, read_folder
from trained import move_new_blocks

import blockexpand
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
