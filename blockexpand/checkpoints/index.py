"""The index of a sharded checkpoint: read strictly, and compared with what the shards hold.

Where the two disagree and `transformers` loads the same model all the same, it is taken as it is
read there, with a note; else it is a fault. It opens no file.
Source: the index as `huggingface_hub` and `transformers` write it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from ..errors import CheckpointError
from ..formats.json_object import parse_json_object
from ..formats.names import explain_bad_name
from ..messages import and_more, show
from .files import INDEX_FILE

_MOST_SHOWN = 3

_LAYER = re.compile(r"(?:^|.*\.)layers\.([0-9]{1,9})\.")


def parse_weight_map(data: bytes, file: str = INDEX_FILE) -> dict[str, str]:
    """Return the index's map of tensor name → shard name, each a plain file name.

    Raises: CheckpointError for a map that is none, or a value that leaves the folder.
    """
    weight_map = parse_json_object(data, file).get("weight_map")
    if not isinstance(weight_map, dict):
        raise CheckpointError(
            f"{file}: weight_map: expected an object of tensor name to shard, found "
            f"{show(weight_map)}"
        )
    if not weight_map:
        raise CheckpointError(f"{file}: weight_map is empty: the checkpoint has no tensor")
    values = list(weight_map.values())
    # The names first of all, since other values cannot be in a set.
    for shard in [v for v in values if type(v) is not str] or set(values):
        if not _is_plain_shard_name(shard):
            raise CheckpointError(
                f"{file}: weight_map names the shard {show(shard)}; expected the plain name of a "
                ".safetensors file in the same folder"
            )
    return weight_map


def compare_with_index(
    shards: Mapping[str, Iterable[str]], weight_map: Mapping[str, str], config: Mapping[str, Any]
) -> tuple[list[str], list[str]]:
    """Return the faults of an index, and what is noted of it; `shards` has the tensors of each.

    A tensor that the index leaves out is there nevertheless. One that no shard has is harmless
    where it belongs to a module, or a layer beyond the config's, of which nothing is there.
    """
    found: dict[str, str] = {}
    for shard, tensors in shards.items():
        found.update(dict.fromkeys(tensors, shard))
    if found == weight_map:
        return [], []
    faults: list[str] = []
    absent: list[str] = []
    present: set[str] | None = None
    for name, shard in weight_map.items():
        if shard not in shards or found.get(name) == shard:
            continue
        if name in found:
            faults.append(
                f"{INDEX_FILE}: tensor {show(name)} should be in {shard}, but is in {found[name]}"
            )
            continue
        if present is None:
            present = {_module(other) for other in found}
        if _module(name) not in present and not _is_needed(name, config):
            absent.append(show(name))
        else:
            faults.append(
                f"{INDEX_FILE}: tensor {show(name)} should be in {shard}, but no shard has it: "
                f"fetch {shard} again, or take the entry out"
            )
    unlisted = [show(name) for name in found if name not in weight_map]
    notes = []
    if absent:
        notes.append(
            f"{INDEX_FILE} names {and_more(absent, _MOST_SHOWN)}, which no shard has: left out, as "
            "transformers does"
        )
    if unlisted:
        notes.append(
            f"{INDEX_FILE} leaves out {and_more(unlisted, _MOST_SHOWN)}, which the shards have: "
            "taken along, as transformers reads every tensor of a shard"
        )
    return faults, notes


def _module(name: str) -> str:
    """Return what a tensor stands or falls with: its layer, or else the model's part it is in."""
    layer = _LAYER.match(name)
    return name[: layer.end()] if layer is not None else name.partition(".")[0]


def _is_needed(name: str, config: Mapping[str, Any]) -> bool:
    """Tell whether a model of this config cannot do without a tensor, as far as it is known."""
    layer = _LAYER.match(name)
    if layer is None:
        return "head" in name or "score" in name
    text = config.get("text_config")
    settings = text if isinstance(text, dict) else config
    layers = settings.get("num_hidden_layers")
    return not isinstance(layers, int) or int(layer[1]) < layers


def _is_plain_shard_name(name: object) -> bool:
    return (
        type(name) is str
        and name.endswith(".safetensors")
        and not name.startswith(".")
        and "/" not in name
        and explain_bad_name(name) is None
    )
