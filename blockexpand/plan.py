"""`make_plan(checkpoint, recipe) -> Plan`: which bytes of the output come from where. Pure.

It touches no disk, clock or environment. Everything after it (dry run, writing, verification, the
card) consumes the same `Plan` and decides nothing again.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ._version import __version__
from .checkpoint import Checkpoint, Extent, Shard, SourceFile
from .decoder import Decoder, find_decoder, output_name, plan_surgery
from .dtypes import DtypePolicy, encode_element, make_dtype_policy
from .file_selection import CONFIG_FILE, INDEX_FILE, WEIGHTS_FILE
from .json_document import edit_json_object
from .layer_map import LayerMap, has_equal_groups, map_position
from .layout import (
    Arrangement,
    Copy,
    Fill,
    Origin,
    Part,
    Zeros,
    mirror_shards,
    pack_shards,
)
from .safetensors_header import HeaderEntry, TensorSpec, render_header


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """The wish. `position` is a name, or the original layers that a clone follows.

    `dtype` is `bfloat16`, `float16`, `float32` or `source`; `max_shard_nbytes` None mirrors the
    source's shards; `block_nbytes` is the file system's block, to which data is aligned.
    """

    new_layers: int | None = None
    position: str | tuple[int, ...] = "end"
    dtype: str = "bfloat16"
    max_shard_nbytes: int | None = None
    block_nbytes: int = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedTensor:
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Everything that the output will be. Only `root` is an absolute path.

    `neutral` maps the suffix of every tensor that makes a new block the identity to the constant
    that it is set to; `dtype` is the floating-point dtype that most of the output's bytes have.
    """

    root: Path
    recipe: Recipe
    model_type: str
    layer_prefix: str
    original_layers: int
    layer_map: LayerMap
    neutral: Mapping[str, float]
    dtype: str
    files: tuple[PlannedFile, ...]
    documents: tuple[Document, ...]
    side_files: tuple[SourceFile, ...]
    source_files: tuple[SourceFile, ...]
    source_card: bytes | None
    left_behind: tuple[str, ...]
    notes: tuple[str, ...]
    fingerprint: str

    @property
    def nbytes(self) -> int:
        """The size of the whole output."""
        return (
            sum(file.nbytes for file in self.files)
            + sum(len(document.data) for document in self.documents)
            + sum(file.nbytes for file in self.side_files)
        )

    @property
    def new_layers(self) -> tuple[int, ...]:
        """The output layers that are new blocks."""
        return tuple(index for index, entry in enumerate(self.layer_map) if entry.is_new)


def make_plan(checkpoint: Checkpoint, recipe: Recipe) -> Plan:
    """Compute the whole output from the headers and the config.

    Raises: RecipeError for a wish that makes no sense; UnsupportedModelError where the expansion
    would not compute the same function, or the source is quantised.
    """
    decoder = find_decoder(checkpoint.config, checkpoint.specs)
    layer_map = map_position(decoder.layers, recipe.position, recipe.new_layers)
    # A list may come with its count or without: the same wish.
    recipe = replace(recipe, new_layers=sum(entry.is_new for entry in layer_map))
    surgery = plan_surgery(decoder, checkpoint.config, layer_map)
    dtypes = make_dtype_policy(checkpoint, recipe.dtype, decoder)
    residents, blocks = _assign(checkpoint, decoder, layer_map, surgery.neutral, dtypes)
    if recipe.max_shard_nbytes is None:
        arrangements = mirror_shards(residents, blocks, recipe.block_nbytes)
    else:
        in_order = [part for _, parts in residents for part in parts]
        in_order += [part for block in blocks for part in block]
        arrangements = pack_shards(in_order, recipe.max_shard_nbytes, recipe.block_nbytes)
    shards = {shard.file.name: shard for shard in checkpoint.shards}
    files = tuple(
        _place(name, arrangement, shards, recipe.block_nbytes)
        for name, arrangement in zip(_shard_names(len(arrangements)), arrangements, strict=True)
    )
    config = edit_json_object(
        checkpoint.config_bytes, surgery.config_edits + dtypes.config_edits(checkpoint.config)
    )
    documents = [Document(name=CONFIG_FILE, data=config)]
    if len(files) > 1:
        documents.append(Document(name=INDEX_FILE, data=_render_index(files)))
    return Plan(
        root=checkpoint.root,
        recipe=recipe,
        model_type=decoder.model_type,
        layer_prefix=decoder.prefix,
        original_layers=decoder.layers,
        layer_map=layer_map,
        neutral={
            suffix: constant
            for entry in layer_map
            if entry.is_new
            for suffix, constant in surgery.neutral[entry.source].items()
        },
        dtype=dtypes.output_dtype,
        files=files,
        documents=tuple(documents),
        side_files=checkpoint.side_files,
        source_files=tuple(shard.file for shard in checkpoint.shards),
        source_card=checkpoint.card,
        left_behind=checkpoint.left_behind,
        notes=surgery.notes + _position_notes(recipe, layer_map),
        fingerprint=_fingerprint(checkpoint, recipe),
    )


def _assign(
    checkpoint: Checkpoint,
    decoder: Decoder,
    layer_map: LayerMap,
    neutral: Mapping[int, Mapping[str, float]],
    dtypes: DtypePolicy,
) -> tuple[list[tuple[str, list[Part]]], list[list[Part]]]:
    """Give every source tensor its output name and origin.

    Returns the parts that stay in each source shard, and those of each further copy of a layer in
    the output's order.
    """
    home: dict[int, int] = {}
    further: dict[int, list[int]] = {}
    for index, mapped in enumerate(layer_map):
        if mapped.is_new or mapped.source in home:
            further.setdefault(mapped.source, []).append(index)
        else:
            home[mapped.source] = index
    for tail in range(decoder.layers, decoder.layers + decoder.tail_layers):
        home[tail] = tail - decoder.layers + len(layer_map)
    blocks: dict[int, list[Part]] = {index: [] for copies in further.values() for index in copies}
    residents: list[tuple[str, list[Part]]] = []
    for shard in checkpoint.shards:
        staying: list[Part] = []
        for entry in shard.header.entries:
            name = entry.name
            spec, origin = dtypes.plan(name, entry.spec, _extent(shard, entry))
            placed = decoder.placed.get(name)
            if placed is None:
                staying.append(Part(name=name, spec=spec, origin=origin))
                continue
            layer = placed.layer
            if layer in home:
                kept = name if home[layer] == layer else output_name(decoder, placed, home[layer])
                staying.append(Part(name=kept, spec=spec, origin=origin))
            for index in further.get(layer, ()):
                constant = neutral[layer].get(placed.suffix) if layer_map[index].is_new else None
                blocks[index].append(
                    Part(
                        name=output_name(decoder, placed, index),
                        spec=spec,
                        origin=origin if constant is None else _constant(spec, constant),
                    )
                )
        residents.append((shard.file.name, staying))
    return residents, [blocks[index] for index in sorted(blocks)]


def _extent(shard: Shard, entry: HeaderEntry) -> Extent:
    return Extent(
        file=shard.file.name,
        offset=shard.header.data_start + entry.data_offset,
        nbytes=entry.spec.nbytes,
    )


def _constant(spec: TensorSpec, value: float) -> Zeros | Fill:
    if value == 0:
        return Zeros(nbytes=spec.nbytes)
    return Fill(element=encode_element(spec.dtype, value), nbytes=spec.nbytes)


def _place(
    name: str, arrangement: Arrangement, shards: Mapping[str, Shard], block_nbytes: int
) -> PlannedFile:
    """Fix every offset of one output file."""
    parts = arrangement.parts
    source = shards[arrangement.mirrors] if arrangement.mirrors else None
    if source is not None and _repeats(parts, source):
        header = source.header_bytes
        identical_to = source.file.name
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
        tensors.append(
            PlannedTensor(name=part.name, spec=part.spec, offset=offset, origin=part.origin)
        )
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
            part.name == entry.name and isinstance(part.origin, Copy)
            for part, entry in zip(parts, entries, strict=True)
        )
    )


def _shard_names(count: int) -> Iterable[str]:
    if count == 1:
        return [WEIGHTS_FILE]
    return [f"model-{index:05d}-of-{count:05d}.safetensors" for index in range(1, count + 1)]


def _render_index(files: Sequence[PlannedFile]) -> bytes:
    """Return the index as `transformers` writes it: names sorted, sizes of the data alone."""
    places = sorted((tensor.name, file.name) for file in files for tensor in file.tensors)
    specs = [tensor.spec for file in files for tensor in file.tensors]
    # With an indent the json module encodes in Python, which takes a second per million names; with
    # these separators it does the same in C.
    entries = json.dumps(dict(places), separators=(",\n    ", ": "))[1:-1]
    text = f"""{{
  "metadata": {{
    "total_parameters": {sum(math.prod(spec.shape) for spec in specs)},
    "total_size": {sum(spec.nbytes for spec in specs)}
  }},
  "weight_map": {{
    {entries}
  }}
}}
"""
    return text.encode()


def _position_notes(recipe: Recipe, layer_map: LayerMap) -> tuple[str, ...]:
    if recipe.position == "interleaved" and not has_equal_groups(layer_map):
        return (
            "the groups between new blocks are not equal: trainers that take every k-th layer for "
            "new (LLaMA-Factory's and ms-swift's llama_pro) do not match this model",
        )
    return ()


def _fingerprint(checkpoint: Checkpoint, recipe: Recipe) -> str:
    """Digest all that a plan depends on: a plan is a pure function of it."""
    digest = hashlib.sha256()
    for item in (
        __version__.encode(),
        repr(recipe).encode(),
        checkpoint.config_bytes,
        *(shard.file.name.encode() + shard.header_bytes for shard in checkpoint.shards),
        *(
            f"{file.name} {file.nbytes}".encode("utf-8", "surrogatepass")
            for file in checkpoint.side_files
        ),
    ):
        digest.update(len(item).to_bytes(8, "little"))
        digest.update(item)
    return digest.hexdigest()
