"""A quantised checkpoint's catalogue as if it had never been quantised, for proofs. Pure."""

from __future__ import annotations

import json
from dataclasses import replace

from ..checkpoints.checkpoint import Checkpoint
from ..formats.json_object import JsonObject
from ..formats.safetensors import HeaderEntry
from ..formats.tensor_spec import make_tensor_spec
from ..models.quantization.find import find_quantization
from ..models.quantization.shapes import find_shape


def unquantized(checkpoint: Checkpoint) -> Checkpoint:
    """Return the catalogue of a quantised checkpoint as if its modules had never been quantised."""
    quantization = find_quantization(checkpoint.config, checkpoint.specs)
    if quantization is None:
        return checkpoint
    shards = []
    for shard in checkpoint.shards:
        entries: list[HeaderEntry] = []
        for entry in shard.header.entries:
            member = quantization.members.get(entry.name)
            name, spec = entry.name, entry.spec
            if member is not None:
                if member.module is None or member.role != "q":
                    continue
                shape = find_shape(member.module, spec, checkpoint.contents)
                name, spec = member.module.weight, make_tensor_spec("BF16", shape)
            entries.append(HeaderEntry(name, spec, entry.data_offset))
        shards.append(replace(shard, header=replace(shard.header, entries=tuple(entries))))
    config = drop_quantization(checkpoint.config)
    return replace(
        checkpoint,
        config=config,
        config_bytes=json.dumps(config).encode(),
        shards=tuple(shards),
        specs={entry.name: entry.spec for shard in shards for entry in shard.header.entries},
        contents={},
    )


def drop_quantization(config: JsonObject) -> JsonObject:
    """Return a config.json without what it says of quantisation."""
    fields = ("quantization_config", "compression_config")
    return {
        key: drop_quantization(value) if key == "text_config" and value else value
        for key, value in config.items()
        if key not in fields
    }
