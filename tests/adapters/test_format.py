"""block_adapter.json as a stranger may write it: every field is checked before it is used."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from blockexpand.adapters.format import parse_adapter, render_adapter
from blockexpand.errors import CheckpointError

DIGEST = "0123456789abcdef" * 4
BLOCK = "model.layers.2.mlp.down_proj.weight"


def content() -> dict[str, Any]:
    """An adapter with one new layer after the last of two, written by hand."""
    return {
        "format_version": 1,
        "base": {
            "model": "org/base",
            "repo": "org/base",
            "commit": "c" * 40,
            "config": {"model_type": "llama", "num_hidden_layers": 2},
            "shards": [
                {
                    "name": "model.safetensors",
                    "nbytes": 100,
                    "header_sha256": DIGEST,
                    "sha256": DIGEST,
                }
            ],
            "tensors": {"model.layers.1.mlp.down_proj.weight": ["BF16", [2, 2], DIGEST]},
        },
        "original_layers": 2,
        "layers": 3,
        "layer_map": [0, 1, 1],
        "new_layers": [2],
        "layer_prefix": "model.layers.",
        "neutral": {"mlp.down_proj.weight": 0.0},
        "files": ["blocks.safetensors"],
        "tensors": {BLOCK: ["BF16", [2, 2], DIGEST]},
        "changed": {},
        "config_changes": [],
    }


def parse(value: dict[str, Any]) -> Any:
    return parse_adapter(json.dumps(value).encode(), "block_adapter.json")


def test_what_is_written_is_read_back() -> None:
    adapter = parse(content())
    assert adapter.new_layers == (2,)
    assert adapter.original_layers == 2
    assert adapter.base.name.repo == "org/base"
    assert adapter.tensors[BLOCK].spec.nbytes == 8
    assert parse_adapter(render_adapter(adapter), "again") == adapter


def edit(*path: str | int, value: Any) -> Callable[[dict[str, Any]], None]:
    def change(target: Any) -> None:
        for key in path[:-1]:
            target = target[key]
        target[path[-1]] = value

    return change


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (edit("format_version", value=2), "newer blockexpand"),
        (edit("format_version", value="1"), "format_version"),
        (edit("files", value=["../blocks.safetensors"]), "files"),
        (edit("files", value=["/etc/passwd"]), "files"),
        (edit("files", value=["model.safetensors"]), "files"),
        (edit("files", value=[]), "files"),
        (edit("files", value=["blocks.safetensors", "blocks.safetensors"]), "files"),
        (edit("layer_map", value=[0, 1, 2]), "layer_map"),
        (edit("layer_map", value=[1, 0, 1]), "every layer of the base once, in order"),
        (edit("layer_map", value="0,1,1"), "layer_map"),
        (edit("new_layers", value=[]), "new_layers"),
        (edit("new_layers", value=[3]), "new_layers"),
        (edit("new_layers", value=[2, 2]), "new_layers"),
        (edit("new_layers", value=[True]), "new_layers"),
        (edit("original_layers", value=0), "original_layers"),
        (edit("original_layers", value=10**9), "original_layers"),
        (edit("layer_prefix", value="model.layers"), "layer_prefix"),
        (edit("neutral", value={"x": "0"}), "neutral"),
        (edit("tensors", value={"model.layers.0.x": ["BF16", [2], DIGEST]}), "tensors"),
        (edit("tensors", value={"elsewhere": ["BF16", [2], DIGEST]}), "tensors"),
        (edit("tensors", BLOCK, value=["BF16", [2, 2], "0"]), "sha256"),
        (edit("tensors", BLOCK, value=["BF17", [2, 2], DIGEST]), "unknown dtype"),
        (edit("tensors", BLOCK, value=["BF16", [-1], DIGEST]), "overflows"),
        (edit("tensors", BLOCK, value=["BF16", [1 << 62, 4], DIGEST]), "overflows"),
        (edit("base", value=None), "base"),
        (edit("base", "config", value=[]), "base.config"),
        (edit("base", "shards", 0, "name", value="../x.safetensors"), "base.shards"),
        (edit("base", "shards", 0, "nbytes", value=-1), "base.shards"),
        (edit("base", "repo", value=1), "base.repo"),
        (edit("config_changes", value=[{"path": []}]), "config_changes"),
        (edit("config_changes", value=[{"path": ["auto_map"], "value": {}}]), "auto_map"),
        (edit("config_changes", value=[{"path": ["x", "model_type"]}]), "x.model_type"),
    ],
)
def test_each_bad_field_is_named(change: Callable[[dict[str, Any]], None], said: str) -> None:
    value = content()
    change(value)
    with pytest.raises(CheckpointError, match=r"^block_adapter\.json: ") as caught:
        parse(value)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 600
