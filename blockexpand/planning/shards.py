"""Where each tensor of the output comes from, and how tensors are arranged in files. Pure.

The arrangement is made so that bytes can be moved without being read: neighbours in the source
stay neighbours, and what is copied lands at the source's offset modulo the block size wherever
that is possible, so that file systems can share whole blocks.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from json.encoder import encode_basestring_ascii
from typing import NamedTuple

from ..checkpoints.checkpoint import Shard
from ..checkpoints.files import WEIGHTS_FILE
from ..formats.safetensors import render_header
from ..formats.tensor_spec import DTYPE_BITS, TensorSpec
from .new_shards import NEW_SHARD_NBYTES, arrange_blocks, best_residue, is_aligned
from .origins import Convert, Copy, Dequantize, Gather, Origin, Part, Scale, sources_of

# Of the index's text, as it is written.
_LINES_AT_ONCE = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrangement:
    """One output file's tensors in order; the data section starts at `residue` modulo the block.

    `mirrors` names the source shard that it holds as it is, but for names and dtypes; where the
    residue is None it is that shard byte for byte, header included.
    """

    parts: tuple[Part, ...]
    residue: int | None
    mirrors: str | None = None


def mirror_shards(
    kept: Sequence[tuple[str, Sequence[Part]]],
    blocks: Sequence[Sequence[Part]],
    block_nbytes: int,
    repeated: Container[str] = (),
) -> list[Arrangement]:
    """Keep each source shard as an output file, and put the new blocks into further files.

    `kept` are the source shards' names with the parts that stay in them, `blocks` the new
    blocks' parts in the source's order. Those of the source that are `repeated` keep every byte.
    """
    mirrored = [
        Arrangement(parts=tuple(parts), residue=None, mirrors=name)
        if name in repeated
        else _arrange(parts, block_nbytes, mirrors=name)
        for name, parts in kept
        if parts
    ]
    new = [_arrange(parts, block_nbytes) for parts in arrange_blocks(blocks, block_nbytes)]
    return mirrored + new


def pack_shards(
    parts: Sequence[Part], max_shard_nbytes: int, block_nbytes: int
) -> list[Arrangement]:
    """Fill files of at most `max_shard_nbytes` of data in the given order.

    A tensor that is larger than that gets a file of its own, as in `transformers`.
    """
    files: list[list[Part]] = [[]]
    room = max_shard_nbytes
    for part in parts:
        if files[-1] and part.spec.nbytes > room:
            files.append([])
            room = max_shard_nbytes
        files[-1].append(part)
        room -= part.spec.nbytes
    return [_arrange(file, block_nbytes) for file in files]


def _arrange(parts: Sequence[Part], block_nbytes: int, mirrors: str | None = None) -> Arrangement:
    if mirrors is None or any(
        isinstance(part.origin, Convert | Scale | Dequantize | Gather) for part in parts
    ):
        parts = _align(parts)
    residue, _ = best_residue(parts, block_nbytes)
    return Arrangement(parts=tuple(parts), residue=residue, mirrors=mirrors)


def _align(parts: Sequence[Part]) -> Sequence[Part]:
    """Put wider elements first where the given order would leave one off its natural alignment.

    Readers view the mapped file as elements, which fails off alignment. Conversion and repacking
    can cause that, when an odd number of narrow elements comes before wider ones.
    """
    if is_aligned(parts):
        return parts
    return sorted(parts, key=lambda part: -DTYPE_BITS[part.spec.dtype])


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
    kept: Sequence[tuple[str, Sequence[Part]]],
    blocks: Sequence[Sequence[Part]],
    shards: Mapping[str, Shard],
    max_shard_nbytes: int | None,
    block_nbytes: int,
) -> tuple[PlannedFile, ...]:
    """Arrange parts in files and fix every offset.

    `kept` are the source shards' keys with the parts that stay in them, `blocks` the parts of
    each further copy of a layer. `max_shard_nbytes` None mirrors the source's shards.
    """
    if max_shard_nbytes is None:
        repeated = {key for key, parts in kept if parts and _repeats(parts, shards[key], key)}
        arrangements = mirror_shards(kept, blocks, block_nbytes, repeated)
    else:
        in_order = [part for _, parts in kept for part in parts]
        in_order += [part for block in blocks for part in block]
        arrangements = pack_shards(in_order, max_shard_nbytes, block_nbytes)
    return tuple(
        _place(name, arrangement, shards, block_nbytes)
        for name, arrangement in zip(_shard_names(len(arrangements)), arrangements, strict=True)
    )


def plan_blocks(
    parts: Sequence[Part], name_files: Callable[[int], Sequence[str]], block_nbytes: int
) -> tuple[PlannedFile, ...]:
    """Plan files of parts alone, in their order; `name_files` names that many of them."""
    arrangements = pack_shards(parts, NEW_SHARD_NBYTES, block_nbytes)
    return tuple(
        _place(name, arrangement, {}, block_nbytes)
        for name, arrangement in zip(name_files(len(arrangements)), arrangements, strict=True)
    )


def render_index(files: Sequence[PlannedFile]) -> bytes:
    """Return the index as `transformers` writes it: names sorted, sizes of the data alone."""
    names: list[str] = []
    n_parameters = nbytes = 0
    ends: list[str] = []
    for file in files:
        specs = [tensor.spec for tensor in file.tensors]
        n_parameters += sum([math.prod(spec.shape) for spec in specs])
        nbytes += sum([spec.nbytes for spec in specs])
        names += [tensor.name for tensor in file.tensors]
        ends += [f': "{file.name}"'] * len(specs)
    order = sorted(range(len(names)), key=names.__getitem__)
    # By hand and some names at a time: the json module takes several times as long with an indent,
    # and the memory of the whole text as often. So does a buffer that has to grow.
    text = io.BytesIO()
    text.seek(200 + sum(map(len, names)) + sum(map(len, ends)) + 8 * len(names))
    text.write(b"\0")
    text.seek(0)
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
    for start in range(0, len(order), _LINES_AT_ONCE):
        lines = [
            f"    {encode_basestring_ascii(names[at])}{ends[at]}"
            for at in order[start : start + _LINES_AT_ONCE]
        ]
        text.write((separator + ",\n".join(lines)).encode())
        separator = ",\n"
    text.write(b"\n  }\n}\n")
    text.truncate()
    return text.getvalue()


def _place(
    name: str, arrangement: Arrangement, shards: Mapping[str, Shard], block_nbytes: int
) -> PlannedFile:
    """Fix every offset of one output file."""
    parts = arrangement.parts
    source = shards[arrangement.mirrors] if arrangement.mirrors else None
    identical_to = None
    if source is not None and arrangement.residue is None:
        header = source.header_bytes
        identical_to = arrangement.mirrors
    else:
        metadata = dict(source.header.metadata or {}) if source is not None else {}
        # transformers reads no shard whose header does not name the format.
        metadata.setdefault("format", "pt")
        header = render_header(
            ((part.name, part.spec) for part in parts),
            metadata,
            data_start_modulo=(arrangement.residue or 0, block_nbytes),
        )
    sizes = (part.spec.nbytes for part in parts)
    *offsets, nbytes = accumulate(sizes, initial=len(header))
    if identical_to is not None:
        # The same numbers as in the source: 100,000 of them need not be in memory twice.
        offsets = [extent.offset for part in parts for extent in sources_of(part.origin)]
    # As the class itself makes one, but for 100,000 of them without a call in Python.
    make = partial(tuple.__new__, PlannedTensor)
    names, specs, origins = zip(*parts, strict=True) if parts else ((), (), ())
    tensors = map(make, zip(names, specs, offsets, origins, strict=True))
    return PlannedFile(
        name=name, header=header, tensors=tuple(tensors), nbytes=nbytes, identical_to=identical_to
    )


def _repeats(parts: Sequence[Part], shard: Shard, key: str) -> bool:
    """Tell whether an output file would be its source shard `key`, byte for byte."""
    entries = shard.header.entries
    if "format" not in (shard.header.metadata or {}) or len(parts) != len(entries):
        return False
    # Column by column, since there may be 100,000 tensors.
    names, specs, origins = zip(*parts, strict=True)
    expected_names, expected_specs, _ = zip(*entries, strict=True)
    return (
        names == expected_names
        and specs == expected_specs
        and {*map(type, origins)} == {Copy}
        and {origin.file for origin in origins} == {key}
    )


def _shard_names(count: int) -> Iterable[str]:
    if count == 1:
        return [WEIGHTS_FILE]
    return [f"model-{index:05d}-of-{count:05d}.safetensors" for index in range(1, count + 1)]
