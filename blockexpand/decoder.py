"""Apply a row of the table of families to one checkpoint: its layers, and the surgery on them.

Sees names, shapes and the config, never tensor data. It refuses whatever the row does not cover:
what is copied or neutralised without being understood would silently change the model.
"""

from __future__ import annotations

import re
import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .decoder_checks import check_tensors, refuse_quantized, refuse_unknown_fields
from .errors import BlockExpandError, CheckpointError, UnsupportedModelError
from .families import FAMILIES, MULTIMODAL
from .families_refused import REFUSED
from .family import Family
from .json_document import JsonEdit
from .layer_fields import FieldEdits, FieldRule, apply_edits, get_field, listed, rewrite_fields
from .layer_map import MAX_LAYERS, LayerMap, map_position
from .safetensors_header import TensorSpec
from .tensor_roles import is_float32, neutral_values

COUNT_FIELDS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
# transformers refuses a `layer_types` of another length in every family.
LAYER_TYPES = listed("layer_types")


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerTensor:
    """A tensor of a decoder layer: `suffix` is what follows the number and its dot."""

    layer: int
    suffix: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Decoder:
    """The decoder of one checkpoint: a tensor is named `prefix`, its layer, a dot and its suffix.

    `placed` has the tensors of the `layers` layers and of the `tail_layers` that are stored past
    the end (numbers from `layers` on); no other tensor is renumbered. `config_path` leads to the
    object of config.json that holds the decoder's fields.
    """

    family: Family
    model_type: str
    layers: int
    tail_layers: int
    prefix: str
    placed: Mapping[str, LayerTensor]
    config_path: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Surgery:
    """What a layer map does to a decoder.

    `neutral[source]` maps the suffixes of a new clone of layer `source` that are set to a constant
    to that constant; every other suffix is copied. `notes` are one-line things to know.
    """

    neutral: Mapping[int, Mapping[str, float]]
    config_edits: tuple[JsonEdit, ...]
    notes: tuple[str, ...]


def find_decoder(config: Mapping[str, Any], tensors: Mapping[str, TensorSpec]) -> Decoder:
    """Find the decoder layers that `config` and the names of `tensors` agree on.

    Raises: UnsupportedModelError for a model that the table does not cover, is quantized, or has
    tensors that the table does not know; CheckpointError when config and tensors disagree.
    """
    model_type = _model_type(config)
    refuse_quantized(config)
    path, text_type, prefixes = _text_model(config, model_type)
    family = _find_family(config, text_type)
    text = _descend(config, path)
    prefix, placed = _place(tensors, prefixes or family.prefixes)
    layers, tail_layers = _count_layers(family, text, placed, prefix)
    for refusal in family.refuse:
        if refusal.when(text, layers):
            raise UnsupportedModelError(f"model_type {text_type!r}: {refusal.reason}")
    decoder = Decoder(
        family=family,
        model_type=model_type,
        layers=layers,
        tail_layers=tail_layers,
        prefix=prefix,
        placed=placed,
        config_path=path,
    )
    rules = _rules(family)
    refuse_unknown_fields(rules, text, layers)
    kinds = [rule.read(text, layers) for rule in rules if not rule.advisory]
    by_layer: dict[int, dict[str, TensorSpec]] = defaultdict(dict)
    for name, tensor in placed.items():
        by_layer[tensor.layer][tensor.suffix] = tensors[name]
    known = [repr([kind[i] for kind in kinds if kind is not None]) for i in range(layers)]
    check_tensors(family, prefix, by_layer, known)
    return decoder


def plan_surgery(decoder: Decoder, config: Mapping[str, Any], layer_map: LayerMap) -> Surgery:
    """Work out what the new layers of `layer_map` set to a constant, and the config's edits.

    `layer_map` keeps the originals in their order; its new layers may stand anywhere.
    Raises: UnsupportedModelError when the model with these layers cannot be exact, with the reason.
    """
    try:
        return _plan_surgery(decoder, config, layer_map)
    except UnsupportedModelError as error:
        raise UnsupportedModelError(
            f"{error}{_way_out(decoder, config, layer_map)}"
        ) from error.__cause__


def output_name(decoder: Decoder, placed: LayerTensor, layer: int) -> str:
    """Return the name of a layer's tensor when the layer is number `layer` of the output."""
    return f"{decoder.prefix}{layer}.{placed.suffix}"


def keeps_float32(decoder: Decoder, name: str) -> bool:
    """Tell whether the model computes with this tensor in float32 whatever its own dtype.

    Rounding such a tensor to a 16-bit dtype would change what the model computes.
    """
    placed = decoder.placed.get(name)
    return placed is not None and is_float32(decoder.family, placed.suffix)


def _plan_surgery(decoder: Decoder, config: Mapping[str, Any], layer_map: LayerMap) -> Surgery:
    text = _descend(config, decoder.config_path)
    origins = [entry.source for entry in layer_map]
    sources = sorted({entry.source for entry in layer_map if entry.is_new})
    notes = list(_check_places(decoder, config, text, layer_map))
    edits = _count_edits(decoder, text, len(layer_map))
    rules = _rules(decoder.family)
    edits |= rewrite_fields(rules, apply_edits(text, edits), decoder.layers, origins)
    if decoder.tail_layers:
        notes.append(
            f"the {decoder.tail_layers} multi-token-prediction layer(s) stored past the end are "
            "renumbered; transformers finds such layers by fixed numbers and will not use them"
        )
    if config.get("auto_map"):
        notes.append(
            "config.json names custom code (auto_map): the output is exact for the model class of "
            f"transformers for {decoder.model_type!r}"
        )
    return Surgery(
        neutral=_neutral(decoder, sources),
        config_edits=_json_edits(decoder, config, edits),
        notes=tuple(notes),
    )


def _model_type(config: Mapping[str, Any]) -> str:
    model_type = config.get("model_type")
    if not isinstance(model_type, str) or not model_type:
        raise UnsupportedModelError(
            "config.json: 'model_type' is missing; expected the name of a supported family "
            f"({_supported()})"
        )
    return model_type


def _text_model(
    config: Mapping[str, Any], model_type: str
) -> tuple[tuple[str, ...], str, tuple[str, ...]]:
    """Return where the decoder's fields are, its model type, and prefixes if not the family's."""
    wrapper = MULTIMODAL.get(model_type)
    if wrapper is None:
        return (), model_type, ()
    text = config.get("text_config")
    if not isinstance(text, Mapping):
        return (), wrapper.text_type, wrapper.prefixes
    text_type = text.get("model_type") or wrapper.text_type
    return ("text_config",), str(text_type), wrapper.prefixes


def _find_family(config: Mapping[str, Any], model_type: str) -> Family:
    if model_type in REFUSED:
        raise UnsupportedModelError(f"model_type {model_type!r}: {REFUSED[model_type]}")
    if model_type in FAMILIES:
        return FAMILIES[model_type]
    custom = " and runs custom code ('auto_map')" if config.get("auto_map") else ""
    raise UnsupportedModelError(
        f"model_type {model_type!r} is not in the table of families{custom}: which of its tensors "
        f"must be zero is unknown; supported are {_supported()}"
    )


def _supported() -> str:
    return ", ".join(sorted({*FAMILIES, *MULTIMODAL}))


def _descend(config: Mapping[str, Any], path: Sequence[str]) -> Mapping[str, Any]:
    for key in path:
        config = config[key]
    return config


def _place(
    tensors: Mapping[str, TensorSpec], prefixes: Sequence[str]
) -> tuple[str, dict[str, LayerTensor]]:
    """Find which prefix the layers have; a checkpoint of the bare decoder lacks its first part."""
    spellings = dict.fromkeys(prefixes)
    spellings |= dict.fromkeys(prefix.partition(".")[2] for prefix in prefixes)
    found: dict[str, dict[str, LayerTensor]] = {}
    numbers: dict[str, int] = {}
    for prefix in spellings:
        placed = {}
        for name in tensors:
            if not name.startswith(prefix):
                continue
            number, _, suffix = name[len(prefix) :].partition(".")
            layer = numbers.get(number)
            if layer is None and re.fullmatch(r"0|[1-9][0-9]{0,8}", number):
                layer = numbers[number] = int(number)
            if layer is None or not suffix:
                raise CheckpointError(
                    f"tensor {name!r}: no layer number after {prefix!r}; "
                    f"expected e.g. '{prefix}0.<tensor>'"
                )
            # Layers share their suffixes: one string for all of them.
            placed[name] = LayerTensor(layer=layer, suffix=sys.intern(suffix))
        if placed:
            found[prefix] = placed
    if not found:
        raise CheckpointError(
            f"no tensor of a decoder layer was found; expected names such as "
            f"'{prefixes[0]}0.<tensor>', found e.g. {next(iter(sorted(tensors)), 'none')!r}"
        )
    if len(found) > 1:
        raise CheckpointError(
            f"decoder layers under several prefixes: {', '.join(map(repr, found))}; expected one"
        )
    return found.popitem()


def _count_layers(
    family: Family, text: Mapping[str, Any], placed: Mapping[str, LayerTensor], prefix: str
) -> tuple[int, int]:
    """Return the number of layers and of layers stored past the end, from config and tensors."""
    numbers = {tensor.layer for tensor in placed.values()}
    stored = max(numbers) + 1
    layers = stored
    for field in dict.fromkeys(("num_hidden_layers", *family.count)):
        value = text.get(field)
        if value is None:
            continue
        if not isinstance(value, int) or isinstance(value, bool) or not 0 < value <= MAX_LAYERS:
            raise CheckpointError(
                f"config.json: {field!r} must be the number of layers; "
                f"expected a whole number from 1 to {MAX_LAYERS}, found {value!r}"
            )
        if value > stored or (value < stored and not family.tail) or layers not in (stored, value):
            raise CheckpointError(
                f"config.json: {field!r} is {value}, but the tensors {prefix}<i>.* "
                f"are numbered to {stored - 1}; expected {stored}"
            )
        layers = value
    if len(numbers) < stored:
        missing = next(index for index in range(stored) if index not in numbers)
        raise CheckpointError(
            f"layer {missing} has no tensor ({prefix}{missing}.*); "
            f"expected layers 0 to {stored - 1} without a gap"
        )
    return layers, stored - layers


def _check_places(
    decoder: Decoder, config: Mapping[str, Any], text: Mapping[str, Any], layer_map: LayerMap
) -> Iterator[str]:
    """Refuse places where a new layer cannot stand; yield what to know of those where it can."""
    family = decoder.family
    refused = f"model_type {decoder.model_type!r}: "
    if family.first_layer_differs and any(e.is_new and e.source == 0 for e in layer_map):
        raise UnsupportedModelError(
            refused + "layer 0 has other tensors than the rest and cannot be cloned; "
            "choose layers from 1 on"
        )
    for place in family.places:
        if reason := place(text, layer_map):
            raise UnsupportedModelError(refused + reason)
    kept = _unmoved(layer_map)
    wrapper = MULTIMODAL.get(decoder.model_type)
    fed = len(get_field(config, wrapper.deepstack, [])) if wrapper and wrapper.deepstack else 0
    if kept < fed:
        raise UnsupportedModelError(
            refused + f"the vision tower adds features after each of the first {fed} layers, by "
            f"number; no new layer can stand before layer {fed}"
        )
    reason = family.index_scaled(text) if family.index_scaled else None
    if reason and kept < decoder.layers:
        raise UnsupportedModelError(
            refused + f"{reason}, so an original layer would change with its number"
        )
    if reason:
        yield f"{reason}: the new layers are no true clones of their source layers"


def _unmoved(layer_map: LayerMap) -> int:
    """Return how many leading layers are originals that keep their number."""
    for index, entry in enumerate(layer_map):
        if entry.is_new or entry.source != index:
            return index
    return len(layer_map)


def _count_edits(decoder: Decoder, text: Mapping[str, Any], layers: int) -> FieldEdits:
    """Write the count under every spelling that is there, or under the first if none is."""
    edits: FieldEdits = {}
    own = decoder.family.count
    for field in dict.fromkeys((*own, *COUNT_FIELDS)):
        if text.get(field) == decoder.layers:
            edits[(field,)] = layers
    if own and not any(text.get(field) is not None for field in own):
        edits[(own[0],)] = layers
    return edits


def _neutral(decoder: Decoder, sources: Sequence[int]) -> dict[int, dict[str, float]]:
    suffixes: dict[int, list[str]] = {source: [] for source in sources}
    for placed in decoder.placed.values():
        if placed.layer in suffixes:
            suffixes[placed.layer].append(placed.suffix)
    return {source: neutral_values(decoder.family, names) for source, names in suffixes.items()}


def _json_edits(
    decoder: Decoder, config: Mapping[str, Any], edits: FieldEdits
) -> tuple[JsonEdit, ...]:
    """Address the edits in config.json; some multimodal configs repeat text fields at the root."""
    result = []
    text = _descend(config, decoder.config_path)
    for path, value in edits.items():
        result.append(JsonEdit(path=decoder.config_path + path, value=value))
        if decoder.config_path and path[0] in config and config[path[0]] == text.get(path[0]):
            result.append(JsonEdit(path=path, value=value))
    return tuple(result)


def _way_out(decoder: Decoder, config: Mapping[str, Any], layer_map: LayerMap) -> str:
    """Say that the end is possible, where it is and was not what was asked for."""
    new_layers = sum(entry.is_new for entry in layer_map)
    if not new_layers:
        return ""
    at_end = map_position(decoder.layers, "end", new_layers)
    if at_end == layer_map:
        return ""
    try:
        _plan_surgery(decoder, config, at_end)
    except BlockExpandError:
        return "; --position end is not possible either"
    return "; --position end is possible"


def _rules(family: Family) -> tuple[FieldRule, ...]:
    owned = {field for rule in family.fields for field in rule.fields}
    return family.fields if "layer_types" in owned else (*family.fields, LAYER_TYPES)
