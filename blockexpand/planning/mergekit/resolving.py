"""A mergekit recipe with its models opened: every layer of the output found in its model. Pure.

Source: mergekit 0.1.5: what stands before the layers comes from the first slice's model, what
stands after them from the last slice's, each with that slice's parameters.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ...checkpoints.checkpoint import Checkpoint
from ...errors import BlockExpandError, RecipeError, UnknownFamilyError, UnsupportedModelError
from ...models.decoder import find_decoder
from ..dtypes import MergeDtypes
from ..tensor_map import SourceModel
from .outside_layers import is_after_layers, is_scaled_outside
from .recipe import MergeRecipe, MergeSlice, find_factor, layer_position
from .vocabulary import Vocabulary, count_rows


@dataclass(frozen=True, slots=True, kw_only=True)
class Taken:
    """A layer of the output: layer `number` of `source`, at `t` of its slice."""

    source: SourceModel
    number: int
    part: MergeSlice
    t: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ResolvedMerge:
    """A recipe with its opened `models` by name; `base` has the config, `taken` are the layers.

    `rows` is how many rows of the embeddings stay, None for all.
    """

    recipe: MergeRecipe
    models: Mapping[str, SourceModel]
    base: SourceModel
    taken: tuple[Taken, ...]
    dtypes: MergeDtypes
    rows: int | None

    @property
    def used(self) -> tuple[SourceModel, ...]:
        """The models that the output is made from, each once, the base first.

        A slice without layers at either end gives what stands before or after the layers.
        """
        ends = [self.models[self.recipe.slices[index].model] for index in (0, -1)]
        return tuple(dict.fromkeys([self.base, *(layer.source for layer in self.taken), *ends]))


def resolve_merge(
    merge: MergeRecipe,
    checkpoints: Mapping[str, Checkpoint],
    vocabularies: Mapping[str, Vocabulary],
) -> ResolvedMerge:
    """Find every layer that a recipe takes; for the errors see `make_merge_plan`."""
    models = _find_models(merge, checkpoints)
    return ResolvedMerge(
        recipe=merge,
        models=models,
        base=models[merge.base],
        taken=_take_layers(merge, models),
        dtypes=MergeDtypes(dtype=merge.dtype, out_dtype=merge.out_dtype),
        rows=count_rows(merge, checkpoints, vocabularies),
    )


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


def _take_layers(merge: MergeRecipe, models: Mapping[str, SourceModel]) -> tuple[Taken, ...]:
    """Raises: RecipeError naming every range that its model does not have."""
    taken: list[Taken] = []
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
            Taken(source=source, number=number, part=part, t=layer_position(index, last - first))
            for index, number in enumerate(range(first, last))
        ]
    if faults:
        raise RecipeError("; ".join(faults))
    if not taken:
        raise RecipeError(f"{merge.file}: no slice has a layer; expected at least one layer")
    return tuple(taken)


def outside_slice(merge: MergeRecipe, source: SourceModel, name: str) -> MergeSlice:
    """Return the slice whose model and parameters hold for a tensor outside of the layers."""
    return merge.slices[-1 if is_after_layers(source.decoder, name) else 0]


def outside_factor(merge: MergeRecipe, source: SourceModel, name: str) -> float:
    if not is_scaled_outside(source.decoder, name):
        return 1.0
    return find_factor(outside_slice(merge, source, name).scales, name, 0.0)
