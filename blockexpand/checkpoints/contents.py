"""What a plan needs to see of a quantised model besides headers and config. It only reads.

Files beside config.json repeat its quantisation config for other loaders, and bitsandbytes keeps
the shape of a four-bit weight in a small tensor of its own, as JSON.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from itertools import groupby
from pathlib import Path
from typing import NamedTuple, Protocol

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


class State(NamedTuple):
    """A small tensor that says how a weight is quantised, and where it lies in its shard."""

    name: str
    file: str
    start: int
    stop: int


def find_states(config: JsonObject, shards: Iterable[_Shard]) -> list[State]:
    """Return the tensors of a quantised model that a plan has to see; of any other, none."""
    if not _is_quantized(config):
        return []
    states = []
    for shard in shards:
        for entry in shard.header.entries:
            if _STATE in entry.name and entry.spec.nbytes <= _MOST_STATE_NBYTES:
                start = shard.header.data_start + entry.data_offset
                states.append(State(entry.name, shard.file.name, start, start + entry.spec.nbytes))
    return states


def find_repeating(config: JsonObject, side_files: Collection[str]) -> list[str]:
    """Return the files of a quantised model that repeat its config; of any other, none."""
    return [name for name in QUANTIZATION_FILES if name in side_files and _is_quantized(config)]


def read_contents(
    root: Path, config: JsonObject, shards: Iterable[_Shard], side_files: Collection[str]
) -> dict[str, bytes]:
    """Return small files and tensors of a quantised model by name; of any other, nothing."""
    contents: dict[str, bytes] = {}
    for name in find_repeating(config, side_files):
        with (root / name).open("rb") as stream:
            contents[name] = stream.read(_MOST_FILE_NBYTES)
    for file, states in groupby(find_states(config, shards), lambda state: state.file):
        with (root / file).open("rb") as stream:
            for state in states:
                stream.seek(state.start)
                contents[state.name] = stream.read(state.stop - state.start)
    return contents


def _is_quantized(config: JsonObject) -> bool:
    return any(config.get(field) for field in _FIELDS)
