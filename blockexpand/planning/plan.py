"""`make_plan(checkpoint, recipe) -> Plan`: which bytes of the output come from where. Pure.

It touches no disk, clock or environment. Everything after it (dry run, writing, verification, the
card) consumes the same `Plan` and decides nothing again.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from typing_extensions import assert_never

from ..checkpoints.checkpoint import Checkpoint
from ..checkpoints.files import CONFIG_FILE, INDEX_FILE
from ..errors import CheckpointError, RecipeError, UnsupportedModelError
from ..formats.elements import encode_element
from ..formats.json_object import edit_json_object
from ..formats.tensor_spec import TensorSpec
from ..fs.reading import FileStat, Place
from ..messages import show
from ..models.decoder import Decoder, descend, find_decoder
from ..models.families.form import FamilyForm
from ..models.layer_map import (
    LayerEntry,
    LayerMap,
    check_layers,
    has_equal_groups,
    keeps_originals,
    map_position,
    suggest_counts,
)
from ..models.readers import ReaderView, keep_phase
from ..models.surgery import Surgery, plan_rearrangement, plan_surgery
from .dtypes import DtypePolicy, make_dtype_policy
from .fingerprint import take_fingerprint
from .layer_tables import follow_layers
from .origins import Fill, Part, Zeros, is_computed
from .quantizing import find_constant, make_quantized_tensors, plan_settings
from .recipe import PlanOptions, Recipe, spell_choice
from .shards import Document, PlannedFile, PlannedTensor, plan_files, render_index
from .tensor_map import SourceModel, TensorUse, map_tensors


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Everything that the output will be. Only `root` and `paths` have absolute paths.

    `neutral` maps the suffix of every tensor that makes a new block the identity to the constant
    that it is set to; `dtype` is the floating-point dtype that most of the output's bytes have.
    Files of sources are named relative to `root`; `paths` has the paths of those that are not
    there, because a mergekit recipe (`recipe_text`) takes from several `models`, named as in that
    recipe. Such a plan need not keep the function of its source: `keeps_function` tells. Where the
    new layers were trained before, `adapters` names what they come from. `readers`
    are those that tell what a layer is from its number, with what they make of the output.
    `quantization` names the method by which the source is quantised.
    """

    root: Path
    options: PlanOptions
    model_type: str
    layer_prefix: str
    original_layers: int
    layer_map: LayerMap
    neutral: Mapping[str, float]
    dtype: str
    files: tuple[PlannedFile, ...]
    documents: tuple[Document, ...]
    side_files: tuple[FileStat, ...]
    source_files: tuple[FileStat, ...]
    source_card: bytes | None
    left_behind: tuple[str, ...]
    notes: tuple[str, ...]
    fingerprint: str
    paths: Mapping[str, Path] = field(default_factory=dict)
    recipe_text: str | None = None
    models: tuple[str, ...] = ()
    adapters: tuple[str, ...] = ()
    keeps_function: bool = True
    readers: tuple[ReaderView, ...] = ()
    quantization: str | None = None

    @property
    def is_unproven(self) -> bool:
        """Whether its family's row was given and nothing has shown that it holds."""
        return self.options.row is not None and not self.options.row_proof

    @property
    def nbytes(self) -> int:
        """The size of the whole output."""
        return (
            sum(file.nbytes for file in self.files)
            + sum(len(document.data) for document in self.documents)
            + sum(file.nbytes for file in self.side_files)
        )

    @property
    def changed_tensors(self) -> Iterator[PlannedTensor]:
        """All tensors but those of files that a source has byte for byte, which are copied."""
        for file in self.files:
            if file.identical_to is None:
                yield from file.tensors

    @property
    def computes(self) -> bool:
        """Whether any tensor has to be computed with, for which torch is loaded."""
        return any(is_computed(tensor.origin) for tensor in self.changed_tensors)

    @property
    def sources(self) -> Place:
        """The files that tensors are taken from."""
        return Place(self.root, {file.name: file for file in self.source_files}, self.paths)

    def path(self, file: str) -> Path:
        """Return where a source file is."""
        return self.paths.get(file) or self.root / file

    def name_model(self, model: int) -> str | None:
        """Return what the recipe calls one of its models; None without a recipe."""
        return self.models[model] if self.models else None

    @property
    def new_layers(self) -> tuple[int, ...]:
        """The output layers that are new blocks."""
        return tuple(index for index, entry in enumerate(self.layer_map) if entry.is_new)


def make_plan(checkpoint: Checkpoint, recipe: Recipe) -> Plan:
    """Compute the whole output from the headers and the config.

    Raises: RecipeError for a recipe that does not fit the model; UnsupportedModelError where
    the expansion would not compute the same function, or how the source is quantised is unknown.
    """
    with naming(checkpoint):
        decoder = find_decoder(checkpoint.config, checkpoint.specs, recipe.row)
    if recipe.ranks is not None and len(recipe.ranks.scores) != decoder.layers:
        raise RecipeError(
            f"the ranking is of a model of {len(recipe.ranks.scores)} layers, this one has "
            f"{decoder.layers}; rank this one"
        )
    layer_map = _map_layers(checkpoint, decoder, recipe)
    options = _resolve_options(recipe, decoder)
    keeps_function = keeps_originals(decoder.layers, layer_map)
    if keeps_function:
        surgery = plan_surgery(decoder, checkpoint.config, layer_map)
    else:
        surgery = _plan_rearranged(decoder, checkpoint.config, layer_map)
    dtypes = make_dtype_policy(checkpoint, options.dtype, decoder)
    source = SourceModel(model=0, checkpoint=checkpoint, decoder=decoder)
    settings_edits, repeating = plan_settings(source, recipe.quantized, layer_map)
    files = _plan_files(source, layer_map, surgery, dtypes, options)
    config = edit_json_object(
        checkpoint.config_bytes,
        surgery.config_edits + dtypes.config_edits(checkpoint.config) + settings_edits,
    )
    documents = make_documents(config, files, repeating)
    return Plan(
        root=checkpoint.root,
        options=options,
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
        documents=documents,
        side_files=tuple(file for file in checkpoint.side_files if file.name not in repeating),
        source_files=tuple(shard.file for shard in checkpoint.shards),
        source_card=checkpoint.card,
        left_behind=checkpoint.left_behind,
        notes=_row_notes(recipe)
        + _code_notes(checkpoint.config, decoder.model_type, recipe)
        + checkpoint.notes
        + surgery.notes
        + _position_notes(recipe, layer_map)
        + _quantized_notes(decoder, recipe),
        readers=surgery.readers,
        keeps_function=keeps_function,
        quantization=decoder.quantization.method.name if decoder.quantization else None,
        fingerprint=take_fingerprint(options, files, documents),
    )


def _resolve_options(recipe: Recipe, decoder: Decoder) -> PlanOptions:
    return PlanOptions(
        position=spell_choice(recipe),
        dtype=recipe.dtype or ("source" if decoder.quantization else "bfloat16"),
        max_shard_nbytes=recipe.max_shard_nbytes,
        block_nbytes=recipe.block_nbytes,
        keeps_phase=recipe.keeps_phase,
        row=recipe.row,
        row_proof=recipe.row_proof,
        quantized=recipe.quantized,
        ranks=recipe.ranks,
    )


def _plan_files(
    source: SourceModel,
    layer_map: LayerMap,
    surgery: Surgery,
    dtypes: DtypePolicy,
    options: PlanOptions,
) -> tuple[PlannedFile, ...]:
    """Give every tensor its origin, and its place in a file."""
    quantized = make_quantized_tensors(source, options.quantized, layer_map, dtypes.weight_dtype)

    def make(use: TensorUse) -> Part | None:
        constant = None
        if use.layer in new:
            constant = find_constant(source.decoder, surgery.neutral, use.name)
        if quantized is not None and quantized.has(use.name):
            return quantized.make(use, constant)
        spec, origin = dtypes.plan(use.name, use.spec, use.copy)
        if constant is not None:
            return Part(use.output, spec, make_constant(spec, constant))
        if use.name in source.decoder.tables:
            return Part(use.output, *follow_layers(source.decoder, use.name, spec, origin, sources))
        return Part(use.output, spec, origin)

    sources = [entry.source for entry in layer_map]
    new = {index for index, entry in enumerate(layer_map) if entry.is_new}
    plain = dtypes.unchanged if quantized is None else frozenset[str]()
    kept, blocks = map_tensors((source,), layer_map, make, lambda source, name: True, plain)
    return plan_files(
        kept,
        blocks,
        {shard.file.name: shard for shard in source.checkpoint.shards},
        options.max_shard_nbytes,
        options.block_nbytes,
    )


def make_documents(
    config: bytes, files: Sequence[PlannedFile], repeating: Mapping[str, bytes | None] | None = None
) -> tuple[Document, ...]:
    """Return the output's config.json, and the index of its shards if there are several.

    `repeating` has the files that repeat what the config says of quantisation; None is dropped.
    """
    documents = [Document(name=CONFIG_FILE, data=config)]
    if len(files) > 1:
        documents.append(Document(name=INDEX_FILE, data=render_index(files)))
    known = (repeating or {}).items()
    documents += [Document(name=name, data=data) for name, data in known if data is not None]
    return tuple(documents)


def _plan_rearranged(decoder: Decoder, config: Mapping[str, Any], layer_map: LayerMap) -> Surgery:
    """Repeat, drop or move layers as they are: what a mergekit recipe of one model does."""
    layers = [(decoder, config, entry.source) for entry in layer_map]
    new = sorted({entry.source for entry in layer_map if entry.is_new})
    return plan_rearrangement(decoder, config, layers, new)


def _map_layers(checkpoint: Checkpoint, decoder: Decoder, recipe: Recipe) -> LayerMap:
    if recipe.quantized == "dequantize" and recipe.new_layers == 0:
        return tuple(LayerEntry(source=index) for index in range(decoder.layers))
    if recipe.layers is not None:
        check_layers(decoder.layers, recipe.layers)
        return recipe.layers
    if not recipe.keeps_phase:
        return map_position(decoder.layers, recipe.position, recipe.new_layers)
    text = descend(checkpoint.config, decoder.config_path)
    return keep_phase(decoder.text_type, text, decoder.layers, recipe.position, recipe.new_layers)


@contextlib.contextmanager
def naming(checkpoint: Checkpoint) -> Iterator[None]:
    """Say of a model that is refused where it lies, and what was chosen among its files."""
    try:
        yield
    except (UnsupportedModelError, CheckpointError) as error:
        raise type(error)("; ".join([f"{checkpoint.root}: {error}", *checkpoint.notes])) from None


def make_constant(spec: TensorSpec, value: float) -> Zeros | Fill:
    """Return the origin of a tensor whose every element is `value`."""
    if value == 0:
        return Zeros(nbytes=spec.nbytes)
    return Fill(element=encode_element(spec.dtype, value), nbytes=spec.nbytes)


def _quantized_notes(decoder: Decoder, recipe: Recipe) -> tuple[str, ...]:
    if decoder.quantization is None:
        return ()
    warning = decoder.quantization.method.warnings.get(recipe.quantized)
    return (warning,) if warning else ()


def _row_notes(recipe: Recipe) -> tuple[str, ...]:
    match recipe.row:
        case None if not recipe.row_proof:
            return ()
        case None:
            row = "the row of the table of families"
        case FamilyForm(model_type=model_type):
            row = f"the row for model type {model_type!r} is not in the table of families"
        case str(name):
            row = f"the model is taken to be named and built like {name!r}"
        case _ as unreachable:
            assert_never(unreachable)
    return (f"{row}: {recipe.row_proof or 'NOT PROVEN to keep the function'}",)


def _code_notes(config: Mapping[str, Any], model_type: str, recipe: Recipe) -> tuple[str, ...]:
    """Say what was not looked at: code that the checkpoint brings, and that proved nothing."""
    if not config.get("auto_map") or recipe.row_proof:
        return ()
    return (
        "config.json names custom code (auto_map): the output is exact for the model class of "
        f"transformers for {model_type!r}; --trust-remote-code proves it with that code",
    )


def _position_notes(recipe: Recipe, layer_map: LayerMap) -> tuple[str, ...]:
    if recipe.ranks is not None:
        text = recipe.ranks.text
        return (
            f"the places are those of least influence on {show(text)} "
            f"({recipe.ranks.tokens:,} tokens), as the ranking says; the manifest has its scores",
        )
    if recipe.position == "interleaved" and not has_equal_groups(layer_map):
        return (
            "the groups between new blocks are not equal: trainers that take every k-th layer for "
            "new (LLaMA-Factory's and ms-swift's llama_pro) do not match this model; "
            + suggest_counts(layer_map),
        )
    return ()
