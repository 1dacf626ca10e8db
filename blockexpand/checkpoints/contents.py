"""What a plan needs to see of a quantised model besides headers and config. It only reads.

Files beside config.json repeat its quantisation config for other loaders, and bitsandbytes keeps
the shape of a four-bit weight in a small tensor of its own, as JSON.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Protocol

from ..formats.json_object import JsonObject
from ..formats.safetensors import Header
from ..fs.reading import FileStat
from .files import QUANTIZATION_FILES

_FIELDS = ("quantization_config", "compression_config", "text_config")

_STATE = ".quant_state.bitsandbytes__"

_MOST_STATE_NBYTES = 1 << 14

_MOST_FILE_NBYTES = 1 << 24


class _Shard(Protocol):
    @property
    def file(self) -> FileStat: ...
    @property
    def header(self) -> Header: ...


def read_contents(
    root: Path, config: JsonObject, shards: Iterable[_Shard], side_files: Collection[str]
) -> dict[str, bytes]:
    """Return small files and tensors of a quantised model by name; of any other, nothing."""
    if not any(config.get(field) for field in _FIELDS):
        return {}
    contents: dict[str, bytes] = {}
    for name in QUANTIZATION_FILES:
        if name in side_files:
            with (root / name).open("rb") as stream:
                contents[name] = stream.read(_MOST_FILE_NBYTES)
    for shard in shards:
        states = [
            entry
            for entry in shard.header.entries
            if _STATE in entry.name and entry.spec.nbytes <= _MOST_STATE_NBYTES
        ]
        if not states:
            continue
        with (root / shard.file.name).open("rb") as stream:
            for entry in states:
                stream.seek(shard.header.data_start + entry.data_offset)
                contents[entry.name] = stream.read(entry.spec.nbytes)
    return contents
