"""Digests by which a run of `train` knows itself, and its output, again."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ..checkpoints.checkpoint import Checkpoint, Shard
from ..formats.tensor_spec import TensorSpec

_CHUNK_NBYTES = 16 << 20


class _Place(NamedTuple):
    file: Path
    offset: int
    spec: TensorSpec


def find_tensors(root: Path, shards: Sequence[Shard]) -> dict[str, _Place]:
    """Return where each tensor of shards in a folder lies."""
    return {
        entry.name: _Place(
            root / shard.file.name, shard.header.data_start + entry.data_offset, entry.spec
        )
        for shard in shards
        for entry in shard.header.entries
    }


def digest_tensors(places: Mapping[str, _Place], names: Iterable[str]) -> str:
    """Return the SHA-256 of tensors by name, dtype, shape and bytes, in whichever files they lie.

    Raises: OSError; KeyError for a name that has no place.
    """
    digest = hashlib.sha256()
    for name in sorted(names):
        file, offset, spec = places[name]
        digest.update(json.dumps([name, spec.dtype, spec.shape]).encode())
        with file.open("rb") as stream:
            stream.seek(offset)
            left = spec.nbytes
            while left and (data := stream.read(min(left, _CHUNK_NBYTES))):
                digest.update(data)
                left -= len(data)
    return digest.hexdigest()


def digest_run(checkpoint: Checkpoint, new: Iterable[str], told: Mapping[str, Any]) -> str:
    """Return a digest of all that decides what a training makes.

    That is what is `told` of settings and texts, and the model with its `new` tensors as they are.
    """
    digest = hashlib.sha256(json.dumps(told, sort_keys=True).encode())
    digest.update(checkpoint.config_bytes)
    for shard in checkpoint.shards:
        digest.update(shard.header_bytes)
    digest.update(digest_tensors(find_tensors(checkpoint.root, checkpoint.shards), new).encode())
    return digest.hexdigest()
