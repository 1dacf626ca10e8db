"""`make_merge_plan(recipe, checkpoints) -> Plan`: a mergekit recipe as a plan. Pure.

Layers are taken in the recipe's order from one model or several, dropped, repeated and scaled. A
recipe that only adds blocks which add nothing is recognised as an expansion, with new layers; any
other changes what the model computes, and its plan says so.
Source: mergekit 0.1.5: what stands before the layers comes from the first slice's model, what
stands after them from the last slice's, each with that slice's parameters.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from ...checkpoints.checkpoint import Checkpoint
from ...errors import BlockExpandError, RecipeError, UnknownFamilyError, UnsupportedModelError
from ...formats.json_object import edit_json_object
from ...fs.reading import FileStat
from ...models.decoder import find_decoder
from ...models.families.tensor_roles import is_silenced
from ...models.layer_map import LayerEntry, LayerMap
from ...models.surgery import Surgery, plan_rearrangement, plan_surgery
from ..dtypes import MergeDtypes, name_main_dtype
from ..fingerprint import take_fingerprint
from ..layer_tables import follow_layers
from ..origins import Part, source_of
from ..plan import Plan, make_documents
from ..recipe import PlanOptions
from ..shards import PlannedFile, plan_files
from ..tensor_map import SourceModel, TensorUse, map_tensors
from .outside_layers import (
    check_result,
    choose_side_files,
    compare_models,
    cuts_rows,
    is_after_layers,
    is_scaled_outside,
    note_float32,
    note_rows,
    vocabulary_edits,
)
from .recipe import MergeRecipe, MergeSlice, find_factor, layer_position
from .vocabulary import Vocabulary, count_rows, cut_rows


@dataclass(frozen=True, slots=True, kw_only=True)
class _Taken:
    """A layer of the output: layer `number` of `source`, at `t` of its slice."""

    source: SourceModel
    number: int
    part: MergeSlice
    t: float


@dataclass(frozen=True, slots=True, kw_only=True)
class _Merge:
    """A recipe with its opened `models` by name; `base` has the config, `taken` are the layers.

    `rows` is how many rows of the embeddings stay, None for all.
    """

    recipe: MergeRecipe
    models: Mapping[str, SourceModel]
    base: SourceModel
    taken: tuple[_Taken, ...]
    dtypes: MergeDtypes
    rows: int | None

    @property
    def used(self) -> tuple[SourceModel, ...]:
        """The models that the output is made from, each once, the base first.

        A slice without layers at either end gives what stands before or after the layers.
        """
        ends = [self.models[self.recipe.slices[index].model] for index in (0, -1)]
        return tuple(dict.fromkeys([self.base, *(layer.source for layer in self.taken), *ends]))


def make_merge_plan(
    merge: MergeRecipe,
    checkpoints: Mapping[str, Checkpoint],
    *,
    vocabularies: Mapping[str, Vocabulary],
    max_shard_nbytes: int | None = None,
    block_nbytes: int = 4096,
) -> Plan:
    """Compute the whole output from the headers and configs of the recipe's models.

    `checkpoints` holds one for each of `merge.models`; a model under two names is one object.
    `vocabularies` are those of `read_vocabularies`.
    Raises: RecipeError for a recipe that these models cannot be given; UnsupportedModelError.
    """
    job = _resolve(merge, checkpoints, vocabularies)
    base, used, rows = job.base, job.used, job.rows
    options = PlanOptions(
        position="recipe",
        dtype=merge.out_dtype or merge.dtype or "source",
        max_shard_nbytes=max_shard_nbytes,
        block_nbytes=block_nbytes,
    )
    expansion = _recognise(job) if not cuts_rows(base, rows) else None
    layer_map, surgery = expansion or _rearrange(job)
    files = _plan_files(job, layer_map, options)
    config = edit_json_object(
        base.checkpoint.config_bytes,
        surgery.config_edits
        + job.dtypes.config_edits(base.checkpoint.config)
        + vocabulary_edits(base, rows),
    )
    check_result(merge, base, files, config, rows)
    documents = make_documents(config, files)
    sources = _find_source_files(used, files)
    side_files, side_paths = choose_side_files(merge, checkpoints)
    return Plan(
        root=base.checkpoint.root,
        options=options,
        model_type=base.decoder.model_type,
        layer_prefix=base.decoder.prefix,
        original_layers=max(source.decoder.layers for source in used),
        layer_map=layer_map,
        neutral={
            suffix: constant
            for layer in surgery.neutral.values()
            for suffix, constant in layer.items()
        },
        dtype=name_main_dtype(tensor.spec for file in files for tensor in file.tensors),
        files=files,
        documents=documents,
        side_files=side_files,
        source_files=tuple(replace(file, name=source.key(file.name)) for source, file in sources),
        source_card=base.checkpoint.card,
        left_behind=base.checkpoint.left_behind,
        notes=surgery.notes
        + compare_models(merge, job.models)
        + note_float32(used, job.dtypes)
        + note_rows(base, rows),
        fingerprint=take_fingerprint(options, files, documents),
        paths=side_paths
        | {
            source.key(file.name): source.checkpoint.root / file.name
            for source, file in sources
            if source.model
        },
        recipe_text=merge.text,
        models=merge.models,
        keeps_function=expansion is not None,
        readers=surgery.readers,
    )


def _resolve(
    merge: MergeRecipe,
    checkpoints: Mapping[str, Checkpoint],
    vocabularies: Mapping[str, Vocabulary],
) -> _Merge:
    models = _find_models(merge, checkpoints)
    return _Merge(
        recipe=merge,
        models=models,
        base=models[merge.base],
        taken=_take_layers(merge, models),
        dtypes=MergeDtypes(dtype=merge.dtype, out_dtype=merge.out_dtype),
        rows=count_rows(merge, checkpoints, vocabularies),
    )


def _plan_files(job: _Merge, layer_map: LayerMap, options: PlanOptions) -> tuple[PlannedFile, ...]:
    def make(use: TensorUse) -> Part:
        spec, extent = use.spec, use.extent
        if use.layer is None:
            spec, extent = cut_rows(use.name, spec, extent, job.rows)
            factor = _outside_factor(job.recipe, use.source, use.name)
        else:
            layer = job.taken[use.layer]
            factor = find_factor(layer.part.scales, use.name, layer.t)
        made = job.dtypes.plan(use.source.decoder, use.name, spec, extent, factor)
        if use.name in use.source.decoder.tables:
            made = follow_layers(use.source.decoder, use.name, *made, _table_sources(job))
        return Part(use.output, *made)

    def is_kept(source: SourceModel, name: str) -> bool:
        return source is job.models[_outside_slice(job.recipe, source, name).model]

    kept, blocks = map_tensors(job.used, layer_map, make, is_kept)
    shards = {
        source.key(shard.file.name): shard
        for source in job.used
        for shard in source.checkpoint.shards
    }
    return plan_files(kept, blocks, shards, options.max_shard_nbytes, options.block_nbytes)


def _table_sources(job: _Merge) -> list[int]:
    """Return the layers whose parts a table outside of them has. Raises: RecipeError."""
    if len({layer.source.model for layer in job.taken}) > 1:
        raise RecipeError(
            f"{job.recipe.file}: {', '.join(map(repr, job.base.decoder.tables))} have a part for "
            "each layer, and those of several models cannot be put into one; take all layers from "
            "one model"
        )
    return [layer.number for layer in job.taken]


def _find_source_files(
    used: Sequence[SourceModel], files: Sequence[PlannedFile]
) -> list[tuple[SourceModel, FileStat]]:
    """Return the shards that any byte of the output comes from, each with its model."""
    extents = (source_of(tensor.origin) for file in files for tensor in file.tensors)
    names = {extent.file for extent in extents if extent is not None}
    return [
        (source, shard.file)
        for source in used
        for shard in source.checkpoint.shards
        if source.key(shard.file.name) in names
    ]


def _find_models(
    merge: MergeRecipe, checkpoints: Mapping[str, Checkpoint]
) -> dict[str, SourceModel]:
    """Find the decoder of every model that tensors or the config come from."""
    models: dict[str, SourceModel] = {}
    by_identity: dict[int, SourceModel] = {}
    for name in (merge.base, *(part.model for part in merge.slices)):
        checkpoint = checkpoints[name]
        known = by_identity.get(id(checkpoint))
        if known is None:
            try:
                decoder = find_decoder(checkpoint.config, checkpoint.specs)
            except UnknownFamilyError as error:
                raise UnsupportedModelError(
                    f"{name}: {error}; a recipe takes models of the table alone: --src with "
                    "--layers says the layers of one model, and infers its row"
                ) from None
            except BlockExpandError as error:
                raise type(error)(f"{name}: {error}") from None
            if decoder.quantization is not None:
                raise UnsupportedModelError(
                    f"{name}: is quantized, which a recipe cannot take layers from; make it "
                    "unquantized first (--quantized dequantize --new-layers 0), or expand it with "
                    "--new-layers and --position"
                )
            known = SourceModel(
                model=merge.models.index(name), checkpoint=checkpoint, decoder=decoder
            )
            by_identity[id(checkpoint)] = known
        models[name] = known
    base = models[merge.base].decoder
    for name, source in models.items():
        other = source.decoder
        if (other.model_type, other.prefix) != (base.model_type, base.prefix):
            raise RecipeError(
                f"{merge.file}: models of different families cannot be joined: {merge.base} is "
                f"{base.model_type!r} ({base.prefix}<i>), {name} is {other.model_type!r} "
                f"({other.prefix}<i>)"
            )
    return models


def _take_layers(merge: MergeRecipe, models: Mapping[str, SourceModel]) -> tuple[_Taken, ...]:
    """Raises: RecipeError naming every range that its model does not have."""
    taken: list[_Taken] = []
    faults = []
    for part in merge.slices:
        source = models[part.model]
        layers = source.decoder.layers
        first, last = part.first or 0, layers if part.last is None else part.last
        if last > layers:
            faults.append(
                f"{merge.file}:{part.line}: layer_range: {part.model} has the layers 0 to "
                f"{layers - 1}; expected at most [0, {layers}], found [{first}, {last}]"
            )
        taken += [
            _Taken(source=source, number=number, part=part, t=layer_position(index, last - first))
            for index, number in enumerate(range(first, last))
        ]
    if faults:
        raise RecipeError("; ".join(faults))
    if not taken:
        raise RecipeError(f"{merge.file}: no slice has a layer; expected at least one layer")
    return tuple(taken)


def _outside_slice(merge: MergeRecipe, source: SourceModel, name: str) -> MergeSlice:
    """Return the slice whose model and parameters hold for a tensor outside of the layers."""
    return merge.slices[-1 if is_after_layers(source.decoder, name) else 0]


def _outside_factor(merge: MergeRecipe, source: SourceModel, name: str) -> float:
    if not is_scaled_outside(source.decoder, name):
        return 1.0
    return find_factor(_outside_slice(merge, source, name).scales, name, 0.0)


def _recognise(job: _Merge) -> tuple[LayerMap, Surgery] | None:
    """Return the layer map of a recipe that at most adds blocks which add nothing, else None."""
    if not _is_plain(job):
        return None
    base = job.base
    suffixes: dict[int, dict[str, str]] = {}
    for name, placed in base.decoder.placed.items():
        suffixes.setdefault(placed.layer, {})[placed.suffix] = name
    entries = []
    neutral: dict[int, dict[str, float]] = {}
    for layer in job.taken:
        factors = {
            suffix: find_factor(layer.part.scales, name, layer.t)
            for suffix, name in suffixes[layer.number].items()
        }
        zeroed = {suffix: 0.0 for suffix, factor in factors.items() if factor == 0}
        if any(factor not in (0, 1) for factor in factors.values()) or (
            zeroed and not is_silenced(base.decoder.family, tuple(factors), tuple(zeroed))
        ):
            return None
        if zeroed and neutral.setdefault(layer.number, zeroed) != zeroed:
            return None
        entries.append(LayerEntry(source=layer.number, is_new=bool(zeroed)))
    originals = [entry.source for entry in entries if not entry.is_new]
    if originals != list(range(base.decoder.layers)):
        return None
    layer_map = tuple(entries)
    try:
        surgery = plan_surgery(base.decoder, base.checkpoint.config, layer_map)
    except UnsupportedModelError:
        return None
    return layer_map, replace(surgery, neutral=neutral)


def _is_plain(job: _Merge) -> bool:
    """Tell whether all is taken from one model, and what is outside of the layers as it is."""
    base = job.base
    if any(source is not base for source in job.used):
        return False
    if any(job.dtypes.rounds_twice(spec.dtype) for spec in base.checkpoint.specs.values()):
        return False
    layers = {name: placed.layer for name, placed in base.decoder.placed.items()}
    return all(
        _outside_factor(job.recipe, base, name) == 1
        for name in base.checkpoint.specs
        if layers.get(name, base.decoder.layers) >= base.decoder.layers
    )


def _rearrange(job: _Merge) -> tuple[LayerMap, Surgery]:
    layer_map = tuple(
        LayerEntry(source=layer.number, model=layer.source.model) for layer in job.taken
    )
    surgery = plan_rearrangement(
        job.base.decoder,
        job.base.checkpoint.config,
        [
            (layer.source.decoder, layer.source.checkpoint.config, layer.number)
            for layer in job.taken
        ],
    )
    return layer_map, surgery
