"""What a model is, from its headers and its manifest: layers, parameters, lineage, trained or not.

Of tensor data only those are read that make new blocks pass their input through.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from ..checkpoints.checkpoint import Checkpoint
from ..checkpoints.files import read_manifest
from ..checkpoints.sources import ModelRef, open_headers
from ..errors import BlockExpandError, CheckpointError
from ..formats.elements import encode_element
from ..formats.tensor_spec import TensorSpec
from ..fs.paths import expand_home
from ..fs.reading import Place, Reader, make_buffer
from ..models.decoder import find_decoder, find_model_type
from ..models.families.form import Row
from ..models.layer_map import LayerEntry, LayerMap
from ..models.quantization.find import Quantization, find_quantization
from ..planning.claims import parse_claims
from ..planning.dtypes import name_main_dtype
from ..planning.manifest import Manifest, parse_manifest
from ..planning.parameters import Parameters, count_tensors
from .options import check_revision, make_hub_options
from .rows import guess_row, is_known

_CHUNK_NBYTES = 1 << 24

_MOST_GENERATIONS = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Overview:
    """`layer_map` is None where the decoder is not known; `refusal` then says why.

    `trained` counts the tensors that are no longer as an expansion left them, of `closing` tensors
    that make its new blocks pass their input through; both are None where they were not read.
    `lineage` is what the model was made from, the latest first; `quantized` the method by which its
    weights are quantised, None where they are not or it is not known; `is_inferred`
    says that the table of families does not know the model's type, so that a run would infer its
    row and prove it.
    """

    name: str
    model_type: str
    dtype: str
    layer_map: LayerMap | None
    parameters: Parameters
    nbytes: int
    files: int
    side_files: int
    lineage: tuple[str, ...]
    closing: int | None = None
    trained: int | None = None
    refusal: str | None = None
    quantized: str | None = None
    is_inferred: bool = False

    @property
    def new_layers(self) -> tuple[int, ...]:
        """The layers that the latest expansion added."""
        entries = self.layer_map or ()
        return tuple(index for index, entry in enumerate(entries) if entry.is_new)


def show(
    model: str | Path,
    *,
    revision: str | None = None,
    token: str | None = None,
    cache_dir: str | Path | None = None,
) -> Overview:
    """Return what a folder or a repository of the Hub holds; of the Hub only headers are fetched.

    Raises: CheckpointError, HubError.
    """
    check_revision(model, revision)
    source = open_headers(str(model), make_hub_options(revision, token, cache_dir))
    checkpoint = source.checkpoint
    manifest = _find_manifest(checkpoint)
    layer_map, prefix, refusal, tables = _find_layers(checkpoint, manifest)
    new = [index for index, entry in enumerate(layer_map or ()) if entry.is_new]
    quantization = None
    with suppress(BlockExpandError):
        quantization = find_quantization(checkpoint.config, checkpoint.specs)
    closing = trained = None
    specs, layers = checkpoint.specs.items(), len(layer_map or ()) or 1
    if manifest is not None and new and source.snapshot is None:
        names = list(_closing_tensors(manifest, checkpoint, quantization))
        closing, trained = len(names), _count_trained(checkpoint, names)
    return Overview(
        name=source.name.model,
        model_type=find_model_type(checkpoint.config),
        dtype=name_main_dtype(checkpoint.specs.values()),
        layer_map=layer_map,
        parameters=count_tensors(specs, prefix, new, tables=tables, layers=layers),
        nbytes=sum(shard.file.nbytes for shard in checkpoint.shards),
        files=len(checkpoint.shards),
        side_files=len(checkpoint.side_files),
        lineage=tuple(_trace(manifest)),
        closing=closing,
        trained=trained,
        refusal=refusal,
        quantized=quantization.method.title if quantization else None,
        is_inferred=refusal is None and not is_known(checkpoint),
    )


def _find_manifest(checkpoint: Checkpoint) -> Manifest | None:
    if checkpoint.manifest is None:
        return None
    return parse_manifest(checkpoint.manifest, str(checkpoint.root))


def _find_layers(
    checkpoint: Checkpoint, manifest: Manifest | None
) -> tuple[LayerMap | None, str, str | None, Collection[str]]:
    """Return the layer map, what layers are called, and why the model could not be expanded.

    Also the tables that have a part for every layer.
    """
    try:
        row = _find_row(checkpoint, manifest)
        decoder = find_decoder(checkpoint.config, checkpoint.specs, row)
    except BlockExpandError as error:
        if manifest is not None:
            return manifest.layer_map, manifest.layer_prefix, str(error), ()
        return None, "", str(error), ()
    if manifest is None:
        layer_map = tuple(LayerEntry(source=i) for i in range(decoder.layers))
        return layer_map, decoder.prefix, None, decoder.tables
    if len(manifest.layer_map) != decoder.layers:
        raise CheckpointError(
            f"{manifest.file}: its block_expansion.json tells of {len(manifest.layer_map)} layers, "
            f"the model has {decoder.layers}: it is another model's; remove it"
        )
    return manifest.layer_map, manifest.layer_prefix, None, decoder.tables


def _find_row(checkpoint: Checkpoint, manifest: Manifest | None) -> Row | None:
    """Return the row that an expansion was made with, else the one that would be tried first."""
    stated = None if manifest is None else parse_claims(manifest).recipe
    if stated is not None and stated.row is not None:
        return stated.row
    return guess_row(checkpoint)


def _closing_tensors(
    manifest: Manifest, checkpoint: Checkpoint, quantization: Quantization | None
) -> Iterator[tuple[str, TensorSpec, bytes]]:
    """Yield each with the element that an expansion fills it with, of quantised ones their part."""
    quantized = quantization.modules.values() if quantization else ()
    modules = {module.weight: module for module in quantized}
    for layer in manifest.new_layers:
        for suffix, constant in manifest.neutral.items():
            name = f"{manifest.layer_prefix}{layer}.{suffix}"
            if name in modules:
                for role, element in modules[name].scheme.zero.items():
                    part = modules[name].parts[role]
                    yield part, checkpoint.specs[part], element
            elif name in checkpoint.specs:
                spec = checkpoint.specs[name]
                width = spec.nbytes // max(1, math.prod(spec.shape))
                zero = bytes(max(1, width))
                yield name, spec, encode_element(spec.dtype, constant) if constant else zero


def _count_trained(checkpoint: Checkpoint, tensors: list[tuple[str, TensorSpec, bytes]]) -> int:
    """Count the tensors that are not the constant any more; −0 is zero."""
    places = {
        entry.name: (shard.file.name, shard.header.data_start + entry.data_offset)
        for shard in checkpoint.shards
        for entry in shard.header.entries
    }
    files = {shard.file.name: shard.file for shard in checkpoint.shards}
    buffer = make_buffer(_CHUNK_NBYTES)
    changed = 0
    with Reader(Place(checkpoint.root, files)) as reader:
        for name, spec, element in tensors:
            file, offset = places[name]
            for begin in range(0, spec.nbytes, _CHUNK_NBYTES):
                nbytes = min(_CHUNK_NBYTES, spec.nbytes - begin)
                data = bytes(reader.read(file, offset + begin, nbytes, buffer))
                if _differs(data, element):
                    changed += 1
                    break
    return changed


def _differs(data: bytes, element: bytes) -> bool:
    if any(element):
        return data != element * (len(data) // len(element))
    if data.translate(None, b"\0\x80"):
        return True
    # What is left may be the signs of negative zeros, each in the last byte of its element.
    width = len(element)
    return any(data[place::width].strip(b"\0") for place in range(width - 1))


def _trace(manifest: Manifest | None) -> Iterator[str]:
    """Yield what each expansion was made from, as far as the folders are still there."""
    seen: set[Path] = set()
    for _ in range(_MOST_GENERATIONS):
        if manifest is None:
            return
        source = parse_claims(manifest).source
        at = f"@{source.commit[:12]}" if source.commit else ""
        yield f"{source.model}{at} ({_count_change(manifest)})"
        folder = _local_folder(source)
        if folder is None or folder in seen:
            return
        seen.add(folder)
        try:
            manifest = parse_manifest(*read_manifest(folder))
        except BlockExpandError:
            return


def _count_change(manifest: Manifest) -> str:
    new = len(manifest.new_layers)
    if manifest.content.get("keeps_function", True):
        return f"{manifest.original_layers} layers + {new}"
    return f"{manifest.original_layers} layers, rearranged to {len(manifest.layer_map)}"


def _local_folder(source: ModelRef) -> Path | None:
    if source.repo is not None:
        return None
    folder = expand_home(source.model)
    return folder.resolve() if folder.is_dir() else None
