"""Base + block adapters → the plan of a whole model. Pure: headers and digests, no disk.

The base's files stay as an expansion leaves them, so that their blocks can be shared; the new
layers' bytes come from the adapters' files. Several adapters are put in side by side.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from pathlib import Path

from ..checkpoints.checkpoint import Checkpoint
from ..errors import CheckpointError, RecipeError
from ..formats.json_object import JsonEdit, edit_json_object
from ..formats.tensor_spec import FLOAT_DTYPES, TensorSpec
from ..fs.reading import FileStat
from ..messages import and_more, show
from ..models.decoder import Decoder, find_decoder, output_name
from ..models.layer_map import LayerEntry, LayerMap
from ..models.surgery import plan_surgery
from ..planning.dtypes import name_main_dtype
from ..planning.fingerprint import take_fingerprint
from ..planning.origins import Copy, Extent, Origin, Part, Scale
from ..planning.plan import Plan, make_constant, make_documents, naming
from ..planning.quantizing import plan_settings
from ..planning.recipe import PlanOptions, Recipe, spell_choice
from ..planning.shards import plan_files
from ..planning.tensor_map import SourceModel, TensorUse, map_tensors
from .extraction import refuse_unfit_base
from .format import ADAPTER_FILE
from .opening import OpenedAdapter
from .proof import check_neutral
from .quantized_base import refuse_mixing, stands_beside, stored_suffix, weight_shape


@dataclass(frozen=True, slots=True, kw_only=True)
class Composition:
    """Layers of a base and of adapters: new layer `index` of the whole is `places[index]`.

    A place is the number of an adapter, and of the layer in the model that it was taken from.
    """

    layer_map: LayerMap
    places: Mapping[int, tuple[int, int]]


def compose(adapters: Sequence[OpenedAdapter]) -> Composition:
    """Put the blocks of adapters between the layers of their base, in the order given.

    Blocks of several adapters at one place follow each other.
    """
    originals = adapters[0].adapter.original_layers
    gaps: list[list[tuple[int, int]]] = [[] for _ in range(originals + 1)]
    for number, opened in enumerate(adapters):
        before = 0
        for index, entry in enumerate(opened.adapter.layer_map):
            if entry.is_new:
                gaps[before].append((number, index))
            else:
                before += 1
    layer_map: list[LayerEntry] = []
    places: dict[int, tuple[int, int]] = {}
    for layer, gap in enumerate(gaps):
        for number, index in gap:
            places[len(layer_map)] = number, index
            layer_map.append(adapters[number].adapter.layer_map[index])
        if layer < originals:
            layer_map.append(LayerEntry(source=layer))
    return Composition(layer_map=tuple(layer_map), places=places)


def plan_application(
    checkpoint: Checkpoint,
    adapters: Sequence[OpenedAdapter],
    *,
    scale: float = 1.0,
    block_nbytes: int = 4096,
    max_shard_nbytes: int | None = None,
) -> Plan:
    """Plan a base with the blocks of adapters in it, every tensor as it is stored.

    `scale` multiplies what closes each residual branch of a new layer: 1 copies it, 0 gives layers
    that pass their input through.
    Raises: CheckpointError where an adapter does not fit the base; UnsupportedModelError.
    """
    with naming(checkpoint):
        decoder = find_decoder(checkpoint.config, checkpoint.specs)
    refuse_unfit_base(decoder, str(checkpoint.root))
    refuse_mixing(decoder, str(checkpoint.root))
    if not math.isfinite(scale):
        raise RecipeError(f"--scale: expected a number, found {scale}")
    for opened in adapters:
        _check_fit(decoder, checkpoint, opened)
        check_neutral(decoder, checkpoint.config, opened)
    composition = compose(adapters)
    layer_map = composition.layer_map
    surgery = plan_surgery(decoder, checkpoint.config, layer_map)
    _check_changes(adapters, {edit.path for edit in surgery.config_edits})
    source = SourceModel(model=0, checkpoint=checkpoint, decoder=decoder)
    # Blocks of an adapter are stored unquantised, whatever the base is.
    mode = "new-blocks-full" if decoder.quantization else "keep"
    settings_edits, repeating = plan_settings(source, mode, layer_map)
    changed = _changed_tensors(decoder, adapters)

    make = _make_parts(decoder, adapters, composition, changed, scale)
    kept, blocks = map_tensors((source,), layer_map, make, lambda source, name: True)
    shards = {shard.file.name: shard for shard in checkpoint.shards}
    files = plan_files(kept, blocks, shards, max_shard_nbytes, block_nbytes)
    edits = (
        surgery.config_edits
        + settings_edits
        + tuple(
            JsonEdit(path=path, value=value)
            for opened in adapters
            for path, value in opened.adapter.config_changes
        )
    )
    config = edit_json_object(checkpoint.config_bytes, edits)
    documents = make_documents(config, files, repeating)
    options = PlanOptions(
        position=spell_choice(Recipe(layers=layer_map)),
        dtype="source",
        max_shard_nbytes=max_shard_nbytes,
        block_nbytes=block_nbytes,
        quantized=mode,
    )
    stored = _stored_files(adapters)
    return Plan(
        root=checkpoint.root,
        options=options,
        model_type=decoder.model_type,
        layer_prefix=decoder.prefix,
        original_layers=decoder.layers,
        layer_map=layer_map,
        neutral={
            suffix: constant
            for opened in adapters
            for suffix, constant in opened.adapter.neutral.items()
        },
        dtype=name_main_dtype(checkpoint.specs.values()),
        files=files,
        documents=documents,
        side_files=tuple(file for file in checkpoint.side_files if file.name not in repeating),
        source_files=(*(shard.file for shard in checkpoint.shards), *stored),
        source_card=checkpoint.card,
        left_behind=checkpoint.left_behind,
        notes=surgery.notes + _change_notes(adapters),
        fingerprint=_fingerprint(take_fingerprint(options, files, documents), adapters),
        paths={file.name: path for file, path in stored.items()},
        adapters=tuple(opened.name for opened in adapters),
        quantization=decoder.quantization.method.name if decoder.quantization else None,
        keeps_function=scale == 0 and not changed,
    )


def _make_parts(
    decoder: Decoder,
    adapters: Sequence[OpenedAdapter],
    composition: Composition,
    changed: Mapping[str, tuple[int, TensorSpec, Extent]],
    scale: float,
) -> Callable[[TensorUse], Part | None]:
    """Return what says of each tensor of the output where its bytes come from.

    What stands beside quantised modules, and is in no adapter, is the base's.
    """

    def make(use: TensorUse) -> Part | None:
        if use.layer is not None and use.layer in composition.places:
            number, index = composition.places[use.layer]
            adapter, suffix = adapters[number].adapter, stored_suffix(decoder, use.name)
            if suffix is None:
                return None
            name = f"{adapter.layer_prefix}{index}.{suffix}"
            if name not in adapters[number].placed:
                return Part(use.output, use.spec, use.copy)
            tensor, extent = adapters[number].placed[name]
            here = extent._replace(file=_key(number, extent.file))
            origin = _scaled(tensor.spec, here, adapter.neutral.get(suffix), scale)
            return Part(f"{decoder.prefix}{use.layer}.{suffix}", tensor.spec, origin)
        if use.name in changed:
            number, spec, extent = changed[use.name]
            return Part(use.output, spec, Copy(*extent._replace(file=_key(number, extent.file))))
        return Part(use.output, use.spec, use.copy)

    return make


def _stored_files(adapters: Sequence[OpenedAdapter]) -> dict[FileStat, Path]:
    """Return the adapters' files as the plan calls them, each with where it is."""
    return {
        replace(shard.file, name=_key(number, shard.file.name)): opened.root / shard.file.name
        for number, opened in enumerate(adapters)
        for shard in opened.shards
    }


def _key(number: int, file: str) -> str:
    """Return what the plan calls a file of an adapter."""
    return f"adapter-{number}/{file}"


def _scaled(spec: TensorSpec, extent: Extent, neutral: float | None, scale: float) -> Origin:
    """Return the origin of a new layer's tensor, moved from its neutral value by `scale`."""
    if neutral is None or scale == 1:
        return Copy(*extent)
    if scale == 0:
        return make_constant(spec, neutral)
    math_dtype = "F64" if spec.dtype == "F64" else "F32"
    return Scale(
        extent=extent,
        from_dtype=spec.dtype,
        math_dtype=math_dtype,
        to_dtype=spec.dtype,
        factor=scale,
        shift=neutral * (1 - scale),
    )


def _check_fit(decoder: Decoder, checkpoint: Checkpoint, opened: OpenedAdapter) -> None:
    """Refuse an adapter of another model: by family, layers, names and shapes."""
    adapter = opened.adapter
    told = find_decoder(
        adapter.base.config, {name: tensor.spec for name, tensor in adapter.base.tensors.items()}
    )
    where = f"{opened.root}: the adapter does not fit this base"
    if told.model_type != decoder.model_type:
        raise CheckpointError(
            f"{where}: it belongs to a {told.model_type!r} model, the base is "
            f"{decoder.model_type!r}"
        )
    if adapter.original_layers != decoder.layers or told.layers != decoder.layers:
        raise CheckpointError(
            f"{where}: it belongs to a model of {adapter.original_layers} layers, the base has "
            f"{decoder.layers}"
        )
    if adapter.layer_prefix != decoder.prefix:
        raise CheckpointError(
            f"{where}: its layers are called {adapter.layer_prefix}<i>, the base's "
            f"{decoder.prefix}<i>"
        )
    suffixes: dict[int, dict[str, str]] = {}
    for name, layer in decoder.placed.items():
        if (suffix := stored_suffix(decoder, name)) is not None:
            suffixes.setdefault(layer, {})[suffix] = name
    for index in adapter.new_layers:
        source = adapter.layer_map[index].source
        prefix = f"{adapter.layer_prefix}{index}."
        stored = {name.removeprefix(prefix) for name in adapter.tensors if name.startswith(prefix)}
        wanted = {
            suffix: name
            for suffix, name in suffixes[source].items()
            if suffix in stored or not stands_beside(decoder, name)
        }
        if lacking := sorted(wanted.keys() ^ stored):
            raise CheckpointError(
                f"{where}: its layer {index} and layer {source} of the base do not have the same "
                f"tensors: {and_more(lacking)}"
            )
        for suffix, name in wanted.items():
            spec = adapter.tensors[prefix + suffix].spec
            shape = weight_shape(decoder, checkpoint, name)
            if spec.shape != shape or spec.dtype not in FLOAT_DTYPES:
                raise CheckpointError(
                    f"{where}: tensor {prefix + suffix!r} is {spec.dtype} {list(spec.shape)}, "
                    f"{name!r} of the base is {checkpoint.specs[name].dtype} {list(shape)}"
                )


def _change_notes(adapters: Sequence[OpenedAdapter]) -> tuple[str, ...]:
    """Say what an adapter changes besides adding its layers."""
    notes = []
    for opened in adapters:
        if opened.adapter.changed:
            names = and_more([repr(name) for name in opened.adapter.changed])
            notes.append(f"{opened.name} replaces tensors of the base too: {names}")
        if opened.adapter.config_changes:
            fields = and_more([".".join(path) for path, _ in opened.adapter.config_changes])
            notes.append(f"{opened.name} changes fields of config.json too: {fields}")
    return tuple(notes)


def _check_changes(adapters: Sequence[OpenedAdapter], edited: Set[tuple[str | int, ...]]) -> None:
    """Refuse changes of what the layer map alone decides: the number of layers, and their lists.

    Raises: CheckpointError.
    """
    for opened in adapters:
        for path, _ in opened.adapter.config_changes:
            if any(path == other[: len(path)] or other == path[: len(other)] for other in edited):
                raise CheckpointError(
                    f"{opened.root}: {ADAPTER_FILE}: config_changes: {show('.'.join(path))} "
                    "follows from the layers; expected other fields: extract it again"
                )


def _changed_tensors(
    decoder: Decoder, adapters: Sequence[OpenedAdapter]
) -> dict[str, tuple[int, TensorSpec, Extent]]:
    """Return by the base's names the tensors that an adapter replaces.

    Raises: CheckpointError where two adapters replace the same.
    """
    changed: dict[str, tuple[int, TensorSpec, Extent]] = {}
    for number, opened in enumerate(adapters):
        adapter = opened.adapter
        layers = [index for index, entry in enumerate(adapter.layer_map) if not entry.is_new]
        names = {name: name for name in adapter.base.tensors if name not in decoder.placed}
        for name, layer in decoder.placed.items():
            if layer < decoder.layers:
                names[output_name(decoder, name, layers[layer])] = name
        for name in adapter.changed:
            if name not in names:
                raise CheckpointError(
                    f"{opened.root}: {name!r} is no tensor of the base; extract the adapter again"
                )
            if names[name] in changed:
                raise CheckpointError(
                    f"{opened.root}: {names[name]!r} is replaced by another adapter too; apply "
                    "one of them"
                )
            tensor, extent = opened.placed[name]
            changed[names[name]] = number, tensor.spec, extent
    return changed


def _fingerprint(plan: str, adapters: Sequence[OpenedAdapter]) -> str:
    """Digest what decides the output's bytes: besides the plan, those of the adapters' tensors."""
    digest = hashlib.sha256(plan.encode())
    for opened in adapters:
        adapter = opened.adapter
        for name, tensor in {**adapter.tensors, **adapter.changed}.items():
            digest.update(f"{name}\0{tensor.sha256}".encode())
    return digest.hexdigest()
