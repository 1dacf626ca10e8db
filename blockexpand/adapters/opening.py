"""A block adapter's folder, opened: its JSON, and the headers of the files that it names.

It reads headers and block_adapter.json, and nothing that the JSON does not name in its own folder.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from ..checkpoints.checkpoint import Shard
from ..errors import CheckpointError, HeaderError
from ..formats.safetensors import LENGTH_NBYTES, parse_header, read_header
from ..fs.reading import describe_file
from ..planning.origins import Extent
from .format import ADAPTER_FILE, MAX_ADAPTER_NBYTES, BlockAdapter, DigestedTensor, parse_adapter


class PlacedTensor(NamedTuple):
    """A tensor of an adapter, and where its bytes are: `extent.file` is in the adapter's folder."""

    tensor: DigestedTensor
    extent: Extent


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenedAdapter:
    """An adapter in a folder; `placed` has every tensor that it stores, under its name.

    `name` is what may be told of where it came from: a repository, or the folder's own name.
    """

    name: str
    root: Path
    adapter: BlockAdapter
    shards: tuple[Shard, ...]
    placed: Mapping[str, PlacedTensor]


def open_adapter(folder: Path, name: str | None = None) -> OpenedAdapter:
    """Open an adapter's folder. Raises: CheckpointError where it is none, or incomplete."""
    file = folder / ADAPTER_FILE
    if not file.is_file():
        what = f"no {ADAPTER_FILE} in it" if folder.is_dir() else "no such folder"
        raise CheckpointError(
            f"{folder}: {what}; expected a folder that `blockexpand extract` made"
        )
    with file.open("rb") as stream:
        adapter = parse_adapter(stream.read(MAX_ADAPTER_NBYTES + 1), str(file))
    stored = {**adapter.tensors, **adapter.changed}
    shards = tuple(_open_shard(folder, name) for name in adapter.files)
    placed: dict[str, PlacedTensor] = {}
    for shard in shards:
        for entry in shard.header.entries:
            where = f"{folder / shard.file.name}: tensor {entry.name!r}"
            if entry.name not in stored:
                raise CheckpointError(f"{where} is not in {ADAPTER_FILE}; fetch the adapter again")
            if entry.name in placed:
                raise CheckpointError(f"{where} is in two files; fetch the adapter again")
            told = stored[entry.name]
            if told.spec != entry.spec:
                raise CheckpointError(
                    f"{where}: expected {told.spec.dtype} {list(told.spec.shape)} as in "
                    f"{ADAPTER_FILE}, found {entry.spec.dtype} {list(entry.spec.shape)}; fetch "
                    "the adapter again"
                )
            offset = shard.header.data_start + entry.data_offset
            extent = Extent(shard.file.name, offset, entry.spec.nbytes)
            placed[entry.name] = PlacedTensor(told, extent)
    missing = [name for name in stored if name not in placed]
    if missing:
        raise CheckpointError(
            f"{folder}: tensor {missing[0]!r} and {len(missing) - 1} more are in no file; fetch "
            "the adapter again"
            if len(missing) > 1
            else f"{folder}: tensor {missing[0]!r} is in no file; fetch the adapter again"
        )
    return OpenedAdapter(
        name=name or folder.resolve().name,
        root=folder,
        adapter=adapter,
        shards=shards,
        placed=placed,
    )


def _open_shard(folder: Path, name: str) -> Shard:
    path = folder / name
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file, but {ADAPTER_FILE} names it; fetch it")
    with path.open("rb") as stream:
        status = os.fstat(stream.fileno())
        try:
            found = read_header(stream, status.st_size)
            header = parse_header(found[LENGTH_NBYTES:], status.st_size)
        except HeaderError as error:
            raise CheckpointError(f"{path}: {error}") from None
    return Shard(file=describe_file(name, status), header=header, header_bytes=found)
