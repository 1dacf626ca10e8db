"""`make_merge_plan(recipe, checkpoints) -> Plan`: a mergekit recipe as a plan. Pure.

Layers are taken in the recipe's order from one model or several, dropped, repeated and scaled. A
recipe that only adds blocks which add nothing is recognised as an expansion, with new layers; any
other changes what the model computes, and its plan says so.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from ...checkpoints.checkpoint import Checkpoint
from ...errors import RecipeError
from ...formats.json_object import edit_json_object
from ...fs.reading import FileStat
from ...models.layer_map import LayerMap
from ..dtypes import name_main_dtype
from ..fingerprint import take_fingerprint
from ..layer_tables import follow_layers
from ..origins import Extent, Part, source_of
from ..plan import Plan, make_documents
from ..recipe import PlanOptions
from ..shards import PlannedFile, plan_files
from ..tensor_map import SourceModel, TensorUse, map_tensors
from .outside_layers import (
    check_result,
    choose_side_files,
    compare_models,
    cuts_rows,
    note_float32,
    note_rows,
    vocabulary_edits,
)
from .recipe import MergeRecipe, find_factor
from .recognition import rearrange, recognise_expansion
from .resolving import ResolvedMerge, outside_factor, outside_slice, resolve_merge
from .vocabulary import Vocabulary, cut_rows


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
    `vocabularies` are those of the models that `name_tokenizers` names.
    Raises: RecipeError for a recipe that these models cannot be given; UnsupportedModelError.
    """
    job = resolve_merge(merge, checkpoints, vocabularies)
    base, used, rows = job.base, job.used, job.rows
    options = PlanOptions(
        position="recipe",
        dtype=merge.out_dtype or merge.dtype or "source",
        max_shard_nbytes=max_shard_nbytes,
        block_nbytes=block_nbytes,
    )
    expansion = recognise_expansion(job) if not cuts_rows(base, rows) else None
    layer_map, surgery = expansion or rearrange(job)
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


def _plan_files(
    job: ResolvedMerge, layer_map: LayerMap, options: PlanOptions
) -> tuple[PlannedFile, ...]:
    def make(use: TensorUse) -> Part:
        spec = use.spec
        extent: Extent = use.copy
        if use.layer is None:
            spec, extent = cut_rows(use.name, spec, extent, job.rows)
            factor = outside_factor(job.recipe, use.source, use.name)
        else:
            layer = job.taken[use.layer]
            factor = find_factor(layer.part.scales, use.name, layer.t)
        made = job.dtypes.plan(use.source.decoder, use.name, spec, extent, factor)
        if use.name in use.source.decoder.tables:
            made = follow_layers(use.source.decoder, use.name, *made, _table_sources(job))
        return Part(use.output, *made)

    def is_kept(source: SourceModel, name: str) -> bool:
        return source is job.models[outside_slice(job.recipe, source, name).model]

    kept, blocks = map_tensors(job.used, layer_map, make, is_kept)
    shards = {
        source.key(shard.file.name): shard
        for source in job.used
        for shard in source.checkpoint.shards
    }
    return plan_files(kept, blocks, shards, options.max_shard_nbytes, options.block_nbytes)


def _table_sources(job: ResolvedMerge) -> list[int]:
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
