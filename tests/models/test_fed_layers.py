"""Fields of a whole model that name decoder layers by number go on to name the same layers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from family_zoo import make_checkpoint
from zoo import ZOO

import blockexpand
from blockexpand.errors import CheckpointError


def test_the_layers_that_images_are_added_to_keep_them(tmp_path: Path) -> None:
    recipe = next(recipe for recipe in ZOO if recipe.name == "granite4_vision")
    make_checkpoint(recipe, tmp_path / "source")
    blockexpand.expand(tmp_path / "source", tmp_path / "out", position=[1, 1, 4], dtype="source")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    # 0, 1, two clones, 2, 3, 4, a clone, 5
    assert config["deepstack_layer_map"] == [[0, 0], [1, 5]]
    assert config["spatial_target_layers"] == [4, 8]
    path = tmp_path / "source" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"deepstack_layer_map": [[0, "x"]]}))
    with pytest.raises(CheckpointError, match="must hold numbers of layers"):
        blockexpand.expand(tmp_path / "source", tmp_path / "other", new_layers=1)
