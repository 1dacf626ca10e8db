"""Output files with every offset fixed, and their index. Pure.

What an output tensor is has been decided before; here it gets its place.
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from json.encoder import encode_basestring_ascii
from typing import NamedTuple

from .checkpoint import Shard
from .file_selection import WEIGHTS_FILE
from .layout import Arrangement, Copy, Origin, Part, mirror_shards, pack_shards
from .safetensors_header import render_header
from .tensor_spec import TensorSpec


class PlannedTensor(NamedTuple):
    """A tensor of an output file; `offset` is absolute in that file."""

    name: str
    spec: TensorSpec
    offset: int
    origin: Origin


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedFile:
    """An output shard: `header` (with its length bytes), then the tensors without gaps.

    `identical_to` names the source shard whose every byte, header included, it repeats.
    """

    name: str
    header: bytes
    tensors: tuple[PlannedTensor, ...]
    nbytes: int
    identical_to: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Document:
    """A small output file, as finished bytes."""

    name: str
    data: bytes


def plan_files(
    residents: Sequence[tuple[str, Sequence[Part]]],
    blocks: Sequence[Sequence[Part]],
    shards: Mapping[str, Shard],
    max_shard_nbytes: int | None,
    block_nbytes: int,
) -> tuple[PlannedFile, ...]:
    """Arrange parts in files and fix every offset.

    `residents` are the source shards' keys with the parts that stay in them, `blocks` the parts of
    each further copy of a layer. `max_shard_nbytes` None mirrors the source's shards.
    """
    if max_shard_nbytes is None:
        arrangements = mirror_shards(residents, blocks, block_nbytes)
    else:
        in_order = [part for _, parts in residents for part in parts]
        in_order += [part for block in blocks for part in block]
        arrangements = pack_shards(in_order, max_shard_nbytes, block_nbytes)
    return tuple(
        _place(name, arrangement, shards, block_nbytes)
        for name, arrangement in zip(_shard_names(len(arrangements)), arrangements, strict=True)
    )


def render_index(files: Sequence[PlannedFile]) -> bytes:
    """Return the index as `transformers` writes it: names sorted, sizes of the data alone."""
    places = {tensor.name: file.name for file in files for tensor in file.tensors}
    n_parameters = sum(math.prod(t.spec.shape) for file in files for t in file.tensors)
    nbytes = sum(t.spec.nbytes for file in files for t in file.tensors)
    # By hand and name by name: the json module takes several times as long with an indent, and
    # the memory of the whole text as often.
    text = io.BytesIO()
    text.write(
        f"""{{
  "metadata": {{
    "total_parameters": {n_parameters},
    "total_size": {nbytes}
  }},
  "weight_map": {{
""".encode()
    )
    separator = ""
    for name in sorted(places):
        text.write(f'{separator}    {encode_basestring_ascii(name)}: "{places[name]}"'.encode())
        separator = ",\n"
    text.write(b"\n  }\n}\n")
    return text.getvalue()


def _place(
    name: str, arrangement: Arrangement, shards: Mapping[str, Shard], block_nbytes: int
) -> PlannedFile:
    """Fix every offset of one output file."""
    parts = arrangement.parts
    source = shards[arrangement.mirrors] if arrangement.mirrors else None
    if source is not None and _repeats(parts, source):
        header = source.header_bytes
        identical_to = arrangement.mirrors
    else:
        metadata = dict(source.header.metadata or {}) if source is not None else {}
        # transformers reads no shard whose header does not name the format.
        metadata.setdefault("format", "pt")
        header = render_header(
            ((part.name, part.spec) for part in parts),
            metadata,
            data_start_modulo=(arrangement.residue, block_nbytes),
        )
        identical_to = None
    tensors = []
    offset = len(header)
    for part in parts:
        tensors.append(PlannedTensor(part.name, part.spec, offset, part.origin))
        offset += part.spec.nbytes
    return PlannedFile(
        name=name, header=header, tensors=tuple(tensors), nbytes=offset, identical_to=identical_to
    )


def _repeats(parts: Sequence[Part], shard: Shard) -> bool:
    """Tell whether an output file would be its source shard, byte for byte."""
    entries = shard.header.entries
    return (
        "format" in (shard.header.metadata or {})
        and len(parts) == len(entries)
        and all(
            part.name == entry.name and part.spec == entry.spec and isinstance(part.origin, Copy)
            for part, entry in zip(parts, entries, strict=True)
        )
    )


def _shard_names(count: int) -> Iterable[str]:
    if count == 1:
        return [WEIGHTS_FILE]
    return [f"model-{index:05d}-of-{count:05d}.safetensors" for index in range(1, count + 1)]
