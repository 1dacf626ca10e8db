"""`make_merge_plan(recipe, checkpoints) -> Plan`: a mergekit recipe as a plan. Pure.

Layers are taken in the recipe's order from one model or several, dropped, repeated and scaled. A
recipe that only adds blocks which add nothing is recognised as an expansion, with new layers; any
other changes what the model computes, and its plan says so.
Source: mergekit 0.1.5: what stands before the layers comes from the first slice's model, what
stands after them from the last slice's, each with that slice's parameters.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ..._version import __version__
from ...checkpoints.checkpoint import Checkpoint
from ...checkpoints.files import CONFIG_FILE, INDEX_FILE
from ...errors import BlockExpandError, RecipeError, UnsupportedModelError
from ...formats.json_object import edit_json_object
from ...formats.safetensors import TensorSpec
from ...fs.reading import SourceFile
from ...models.decoder import find_decoder
from ...models.families.tensor_roles import is_silenced
from ...models.layer_map import LayerEntry, LayerMap
from ...models.surgery import Surgery, plan_rearrangement, plan_surgery
from ..dtypes import MergeDtypes, name_main_dtype
from ..origins import Fill, Origin, Zeros
from ..plan import Plan
from ..recipe import Recipe
from ..shards import Document, PlannedFile, plan_files, render_index
from ..tensor_map import Stock, Use, assign
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
    """A layer of the output: layer `number` of `stock`, at `t` of its slice."""

    stock: Stock
    number: int
    part: MergeSlice
    t: float


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
    stocks = _make_stocks(merge, checkpoints)
    home = stocks[merge.home]
    taken = _take_layers(merge, stocks)
    policy = MergeDtypes(dtype=merge.dtype, out_dtype=merge.out_dtype)

    rows = count_rows(merge, checkpoints, vocabularies)

    def make(use: Use) -> tuple[TensorSpec, Origin]:
        spec, extent = use.spec, use.extent
        if use.layer is None:
            spec, extent = cut_rows(use.name, spec, extent, rows)
            factor = _outside_factor(merge, use.stock, use.name)
        else:
            layer = taken[use.layer]
            factor = find_factor(layer.part.scales, use.name, layer.t)
        return policy.plan(use.stock.decoder, use.name, spec, extent, factor)

    def keeps(stock: Stock, name: str) -> bool:
        return stock is stocks[_outside_slice(merge, stock, name).model]

    expansion = _recognise(home, taken, merge, policy) if not cuts_rows(home, rows) else None
    layer_map, surgery = expansion or _rearrange(home, taken)
    used = tuple(dict.fromkeys([home, *(layer.stock for layer in taken)]))
    residents, blocks = assign(used, layer_map, make, keeps)
    shards = {
        stock.key(shard.file.name): shard for stock in used for shard in stock.checkpoint.shards
    }
    files = plan_files(residents, blocks, shards, max_shard_nbytes, block_nbytes)
    dtype = name_main_dtype(tensor.spec for file in files for tensor in file.tensors)
    config = edit_json_object(
        home.checkpoint.config_bytes,
        surgery.config_edits
        + policy.config_edits(home.checkpoint.config)
        + vocabulary_edits(home, rows),
    )
    notes = surgery.notes + compare_models(merge, stocks) + note_float32(used, policy)
    notes += note_rows(home, rows)
    check_result(merge, home, files, config, rows)
    documents = [Document(name=CONFIG_FILE, data=config)]
    if len(files) > 1:
        documents.append(Document(name=INDEX_FILE, data=render_index(files)))
    names = _used_files(files)
    sources = [
        (stock, shard.file)
        for stock in used
        for shard in stock.checkpoint.shards
        if stock.key(shard.file.name) in names
    ]
    side_files, side_paths = choose_side_files(merge, checkpoints)
    return Plan(
        root=home.checkpoint.root,
        recipe=Recipe(
            new_layers=None,
            position="recipe",
            dtype=merge.out_dtype or merge.dtype or "source",
            max_shard_nbytes=max_shard_nbytes,
            block_nbytes=block_nbytes,
        ),
        model_type=home.decoder.model_type,
        layer_prefix=home.decoder.prefix,
        original_layers=max(stock.decoder.layers for stock in used),
        layer_map=layer_map,
        neutral={
            suffix: constant
            for layer in surgery.neutral.values()
            for suffix, constant in layer.items()
        },
        dtype=dtype,
        files=files,
        documents=tuple(documents),
        side_files=side_files,
        source_files=tuple(
            SourceFile(name=stock.key(file.name), nbytes=file.nbytes, mtime_ns=file.mtime_ns)
            for stock, file in sources
        ),
        source_card=home.checkpoint.card,
        left_behind=home.checkpoint.left_behind,
        notes=notes,
        fingerprint=_fingerprint(merge, checkpoints, max_shard_nbytes, block_nbytes, rows),
        elsewhere=side_paths
        | {
            stock.key(file.name): stock.checkpoint.root / file.name
            for stock, file in sources
            if stock.model
        },
        recipe_text=merge.text,
        models=merge.models,
        keeps_function=expansion is not None,
    )


def _make_stocks(merge: MergeRecipe, checkpoints: Mapping[str, Checkpoint]) -> dict[str, Stock]:
    """Find the decoder of every model that tensors or the config come from."""
    stocks: dict[str, Stock] = {}
    by_identity: dict[int, Stock] = {}
    for name in (merge.home, *(part.model for part in merge.slices)):
        checkpoint = checkpoints[name]
        known = by_identity.get(id(checkpoint))
        if known is None:
            try:
                decoder = find_decoder(checkpoint.config, checkpoint.specs)
            except BlockExpandError as error:
                raise type(error)(f"{name}: {error}") from None
            known = Stock(model=merge.models.index(name), checkpoint=checkpoint, decoder=decoder)
            by_identity[id(checkpoint)] = known
        stocks[name] = known
    home = stocks[merge.home].decoder
    for name, stock in stocks.items():
        other = stock.decoder
        if (other.model_type, other.prefix) != (home.model_type, home.prefix):
            raise RecipeError(
                f"{merge.file}: models of different families cannot be joined: {merge.home} is "
                f"{home.model_type!r} ({home.prefix}<i>), {name} is {other.model_type!r} "
                f"({other.prefix}<i>)"
            )
    return stocks


def _take_layers(merge: MergeRecipe, stocks: Mapping[str, Stock]) -> tuple[_Taken, ...]:
    """Raises: RecipeError naming every range that its model does not have."""
    taken: list[_Taken] = []
    faults = []
    for part in merge.slices:
        stock = stocks[part.model]
        layers = stock.decoder.layers
        first, last = part.first or 0, layers if part.last is None else part.last
        if last > layers:
            faults.append(
                f"{merge.file}:{part.line}: layer_range: {part.model} has the layers 0 to "
                f"{layers - 1}; expected at most [0, {layers}], found [{first}, {last}]"
            )
        taken += [
            _Taken(stock=stock, number=number, part=part, t=layer_position(index, last - first))
            for index, number in enumerate(range(first, last))
        ]
    if faults:
        raise RecipeError("; ".join(faults))
    return tuple(taken)


def _outside_slice(merge: MergeRecipe, stock: Stock, name: str) -> MergeSlice:
    """Return the slice whose model and parameters hold for a tensor outside of the layers."""
    return merge.slices[-1 if is_after_layers(stock.decoder, name) else 0]


def _outside_factor(merge: MergeRecipe, stock: Stock, name: str) -> float:
    if not is_scaled_outside(stock.decoder, name):
        return 1.0
    return find_factor(_outside_slice(merge, stock, name).scales, name, 0.0)


def _recognise(
    home: Stock, taken: Sequence[_Taken], merge: MergeRecipe, policy: MergeDtypes
) -> tuple[LayerMap, Surgery] | None:
    """Return the layer map of a recipe that at most adds blocks which add nothing, else None."""
    if not _is_plain(home, taken, merge, policy):
        return None
    suffixes: dict[int, dict[str, str]] = {}
    for name, placed in home.decoder.placed.items():
        suffixes.setdefault(placed.layer, {})[placed.suffix] = name
    entries = []
    neutral: dict[int, dict[str, float]] = {}
    for layer in taken:
        factors = {
            suffix: find_factor(layer.part.scales, name, layer.t)
            for suffix, name in suffixes[layer.number].items()
        }
        zeroed = {suffix: 0.0 for suffix, factor in factors.items() if factor == 0}
        if any(factor not in (0, 1) for factor in factors.values()) or (
            zeroed and not is_silenced(home.decoder.family, tuple(factors), tuple(zeroed))
        ):
            return None
        if zeroed and neutral.setdefault(layer.number, zeroed) != zeroed:
            return None
        entries.append(LayerEntry(source=layer.number, is_new=bool(zeroed)))
    originals = [entry.source for entry in entries if not entry.is_new]
    if originals != list(range(home.decoder.layers)):
        return None
    layer_map = tuple(entries)
    try:
        surgery = plan_surgery(home.decoder, home.checkpoint.config, layer_map)
    except UnsupportedModelError:
        return None
    return layer_map, Surgery(
        neutral=neutral, config_edits=surgery.config_edits, notes=surgery.notes
    )


def _is_plain(
    home: Stock, taken: Sequence[_Taken], merge: MergeRecipe, policy: MergeDtypes
) -> bool:
    """Tell whether all is taken from one model, and what is outside of the layers as it is."""
    if any(layer.stock is not home for layer in taken):
        return False
    if any(policy.rounds_twice(spec.dtype) for spec in home.checkpoint.specs.values()):
        return False
    layers = {name: placed.layer for name, placed in home.decoder.placed.items()}
    return all(
        _outside_factor(merge, home, name) == 1
        for name in home.checkpoint.specs
        if layers.get(name, home.decoder.layers) >= home.decoder.layers
    )


def _rearrange(home: Stock, taken: Sequence[_Taken]) -> tuple[LayerMap, Surgery]:
    layer_map = tuple(LayerEntry(source=layer.number, model=layer.stock.model) for layer in taken)
    surgery = plan_rearrangement(
        home.decoder,
        home.checkpoint.config,
        [(layer.stock.decoder, layer.stock.checkpoint.config, layer.number) for layer in taken],
    )
    return layer_map, surgery


def _used_files(files: Sequence[PlannedFile]) -> set[str]:
    names = set()
    for file in files:
        for tensor in file.tensors:
            if not isinstance(tensor.origin, Zeros | Fill):
                names.add(tensor.origin.extent.file)
    return names


def _fingerprint(
    merge: MergeRecipe,
    checkpoints: Mapping[str, Checkpoint],
    max_shard_nbytes: int | None,
    block_nbytes: int,
    rows: int | None,
) -> str:
    """Digest all that a plan depends on, but for where its models are."""
    numbers = {name: str(number) for number, name in enumerate(merge.models)}
    wish = (
        [(numbers[part.model], part.first, part.last, part.scales) for part in merge.slices],
        (merge.dtype, merge.out_dtype, numbers[merge.home], max_shard_nbytes, block_nbytes, rows),
        numbers.get(merge.tokenizer_source or ""),
    )
    digest = hashlib.sha256()
    items = [__version__.encode(), repr(wish).encode()]
    for name in merge.models:
        checkpoint = checkpoints[name]
        items.append(checkpoint.config_bytes)
        items += [shard.file.name.encode() + shard.header_bytes for shard in checkpoint.shards]
        items += [
            f"{file.name} {file.nbytes}".encode("utf-8", "surrogatepass")
            for file in checkpoint.side_files
        ]
    for item in items:
        digest.update(len(item).to_bytes(8, "little"))
        digest.update(item)
    return digest.hexdigest()
