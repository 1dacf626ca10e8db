"""A whole adapter whose JSON lies: `apply` refuses it in one line, and nothing is written."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from faults import make_source
from trained import move_new_blocks

import blockexpand
from blockexpand.errors import BlockExpandError

PREFIX = "model.layers."


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Return a base and the blocks that were trained in it: layers 4 and 5 of 6."""
    folder = tmp_path_factory.mktemp("made")
    base = make_source(folder / "base")
    trained = move_new_blocks(base, folder / "trained")
    return base, blockexpand.extract(trained, folder / "blocks", base=base).out


def first(value: dict[str, Any], field: str = "tensors") -> str:
    return next(iter(value[field]))


def rename(value: dict[str, Any], old: str, new: str) -> None:
    value["tensors"] = {name.replace(old, new): tensor for name, tensor in value["tensors"].items()}


LIES: dict[str, Callable[[dict[str, Any]], Any]] = {
    "no neutral values": lambda v: v.update(neutral={}),
    "a neutral value that is none": lambda v: v["neutral"].update(
        {"mlp.down_proj.weight": float("nan")}
    ),
    "another neutral value": lambda v: v["neutral"].update({"mlp.down_proj.weight": 1.0}),
    "a neutral tensor more": lambda v: v["neutral"].update({"input_layernorm.weight": 0.0}),
    "a map that is out of range": lambda v: v.update(layer_map=[0, 1, 2, 3, 4, 3]),
    "a map of negative layers": lambda v: v.update(layer_map=[0, 1, 2, 3, -1, 3]),
    "new layers that are originals": lambda v: v.update(new_layers=[3, 4]),
    "new layers that overlap": lambda v: v.update(new_layers=[4, 4]),
    "a layer more in the map": lambda v: v.update(layer_map=[*v["layer_map"], 3]),
    "the prefix of another module": lambda v: (
        v.update(layer_prefix="vision.layers."),
        rename(v, PREFIX, "vision.layers."),
    ),
    "an empty prefix": lambda v: v.update(layer_prefix="."),
    "tensors of an original layer": lambda v: rename(v, "layers.4.", "layers.0."),
    "a tensor twice": lambda v: v.update(changed={first(v): v["tensors"][first(v)]}),
    "a tensor that is not there": lambda v: v["tensors"].update(
        {PREFIX + "4.extra.weight": v["tensors"][first(v)]}
    ),
    "a tensor less": lambda v: v["tensors"].pop(first(v)),
    "another shape": lambda v: v["tensors"][first(v)].__setitem__(1, [1]),
    "another dtype": lambda v: v["tensors"][first(v)].__setitem__(0, "F16"),
    "another digest": lambda v: v["tensors"][first(v)].__setitem__(2, "0" * 64),
    "a path": lambda v: v.update(files=["../base/model-00001-of-00003.safetensors"]),
    "a file of the base": lambda v: v.update(files=["model.safetensors"]),
    "a file that is not there": lambda v: v.update(files=["blocks-00001-of-00002.safetensors"]),
    "a changed tensor of no layer": lambda v: v.update(
        changed={"elsewhere": v["tensors"][first(v)]}
    ),
    "a base of another type": lambda v: v["base"]["config"].update(model_type="llama"),
    "a base of an unknown type": lambda v: v["base"]["config"].update(model_type="../x"),
    "a base of another depth": lambda v: v["base"]["config"].update(num_hidden_layers=5),
    "a base of other digests": lambda v: [
        t.__setitem__(2, "0" * 64) for t in v["base"]["tensors"].values()
    ],
    "a base with fewer tensors": lambda v: v["base"]["tensors"].pop("model.norm.weight"),
    "a config that is none": lambda v: v["base"].update(config={}),
    "another number of layers": lambda v: v.update(
        config_changes=[{"path": ["num_hidden_layers"], "value": 4}]
    ),
    "a change through a value": lambda v: v.update(
        config_changes=[{"path": ["hidden_size", "x"], "value": 4}]
    ),
    "remote code": lambda v: v.update(config_changes=[{"path": ["auto_map"], "value": {}}]),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_lie_is_refused_and_nothing_written(
    lie: str, made: tuple[Path, Path], tmp_path: Path
) -> None:
    base, blocks = made
    shutil.copytree(blocks, tmp_path / "blocks")
    path = tmp_path / "blocks" / "block_adapter.json"
    value = json.loads(path.read_text())
    LIES[lie](value)
    path.write_text(json.dumps(value))
    with pytest.raises(BlockExpandError) as caught:
        blockexpand.apply(base, tmp_path / "blocks", out=tmp_path / "out", scale=0)
    line = str(caught.value)
    assert "\n" not in line and len(line) < 900, line
    assert sorted(p.name for p in tmp_path.iterdir()) == ["blocks"]


@pytest.mark.parametrize("scale", [float("nan"), float("inf")])
def test_a_scale_that_is_no_number(made: tuple[Path, Path], tmp_path: Path, scale: float) -> None:
    base, blocks = made
    with pytest.raises(BlockExpandError, match="scale: expected a finite number"):
        blockexpand.apply(base, blocks, out=tmp_path / "out", scale=scale)
    assert not (tmp_path / "out").exists()
