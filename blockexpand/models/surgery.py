"""Apply a row of the table of families to one checkpoint: its layers, and the surgery on them.

Sees names, shapes and the config, never tensor data. It refuses whatever the row does not cover:
what is copied or neutralised without being understood would silently change the model.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import BlockExpandError, CheckpointError, UnsupportedModelError
from ..formats.json_object import JsonEdit
from ..messages import show
from .decoder import (
    COUNT_FIELDS,
    Decoder,
    descend,
    family_suffix,
    field_rules,
)
from .families import MULTIMODAL
from .families.layer_fields import (
    FieldEdits,
    apply_edits,
    combine_fields,
    get_field,
    rewrite_fields,
)
from .families.tensor_roles import neutral_values
from .layer_map import LayerMap, map_position
from .readers import ReaderView, describe_views, view_layers

# Where a config does not say which layers of the vision tower feed the decoder's first ones, all
# classes of transformers that do so take three.
_TAPPED_BY_DEFAULT = (8, 16, 24)

# After how many layers Qwen3-Omni's talker listens where the config does not say it.
_HEARD_BY_DEFAULT = 18


@dataclass(frozen=True, slots=True, kw_only=True)
class Surgery:
    """What a layer map does to a decoder.

    `neutral[source]` maps the suffixes of a new clone of layer `source` that are set to a constant
    to that constant; every other suffix is copied. `notes` are one-line things to know, `readers`
    what readers that go by a layer's number make of the layers.
    """

    neutral: Mapping[int, Mapping[str, float]]
    config_edits: tuple[JsonEdit, ...]
    notes: tuple[str, ...]
    readers: tuple[ReaderView, ...] = ()


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


def plan_rearrangement(
    decoder: Decoder,
    config: Mapping[str, Any],
    layers: Sequence[tuple[Decoder, Mapping[str, Any], int]],
    new: Sequence[int] = (),
) -> Surgery:
    """Work out the edits of `config` for layers that come from anywhere, in any order.

    `layers` holds for each layer of the output its decoder, that model's config and its number
    there. The model need not compute what it did; `new` are the layers of `decoder` that some new
    blocks are clones of, and nothing else is neutral.
    Raises: UnsupportedModelError where the config cannot express these layers.
    """
    text = descend(config, decoder.config_path)
    edits = _count_edits(decoder, text, len(layers))
    edited = apply_edits(text, edits)
    texts = {id(other): descend(other, part.config_path) for part, other, _ in layers}
    sources = [
        (edited if other is config else texts[id(other)], part.layers, number)
        for part, other, number in layers
    ]
    edits |= combine_fields(field_rules(decoder.family), edited, decoder.layers, sources)
    notes = []
    if decoder.family.index_scaled and (reason := decoder.family.index_scaled(text)):
        notes.append(f"{reason}: a layer with another number computes something else")
    if decoder.family.first_layer_differs and 0 in new:
        raise UnsupportedModelError(
            f"model_type {decoder.model_type!r}: layer 0 has other tensors than the rest and "
            "cannot be cloned; choose layers from 1 on"
        )
    return Surgery(
        neutral=_neutral(decoder, new),
        config_edits=_json_edits(decoder, config, edits),
        notes=tuple(notes),
    )


def _plan_surgery(decoder: Decoder, config: Mapping[str, Any], layer_map: LayerMap) -> Surgery:
    text = descend(config, decoder.config_path)
    origins = [entry.source for entry in layer_map]
    sources = sorted({entry.source for entry in layer_map if entry.is_new})
    notes = list(_check_places(decoder, config, text, layer_map))
    edits = _count_edits(decoder, text, len(layer_map))
    rules = field_rules(decoder.family)
    edits |= rewrite_fields(rules, apply_edits(text, edits), decoder.layers, origins)
    if decoder.tail_layers:
        notes.append(
            f"the {decoder.tail_layers} multi-token-prediction layer(s) stored past the end are "
            "renumbered; transformers finds such layers by fixed numbers and will not use them"
        )
    readers = view_layers(decoder.text_type, text, layer_map)
    return Surgery(
        neutral=_neutral(decoder, sources),
        config_edits=_json_edits(decoder, config, edits) + _renumber(decoder, config, layer_map),
        notes=(*notes, *describe_views(readers, layer_map)),
        readers=readers,
    )


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
    fed = _count_fed(config, wrapper.deepstack) if wrapper and wrapper.deepstack else 0
    if kept < fed:
        raise UnsupportedModelError(
            refused + f"the vision tower adds features after each of the first {fed} layers, by "
            f"number; no new layer can stand before layer {fed}"
        )
    heard = _count_heard(config, wrapper.talker) if wrapper and wrapper.talker else 0
    if kept < min(heard, decoder.layers):
        raise UnsupportedModelError(
            refused + f"the talker listens to what layer {heard - 1} puts out, by number; no new "
            f"layer can stand before layer {heard}"
        )
    reason = family.index_scaled(text) if family.index_scaled else None
    if reason and kept < decoder.layers:
        raise UnsupportedModelError(
            refused + f"{reason}, so an original layer would change with its number"
        )
    if reason:
        yield f"{reason}: the new layers are no true clones of their source layers"


def _count_fed(config: Mapping[str, Any], field: str) -> int:
    """Return how many first layers get features of the vision tower, one for each listed layer."""
    value = get_field(config, field, _TAPPED_BY_DEFAULT)
    if not isinstance(value, list | tuple):
        raise CheckpointError(f"config.json: {field!r} must be a list, found {show(value)}")
    return len(value)


def _renumber(
    decoder: Decoder, config: Mapping[str, Any], layer_map: LayerMap
) -> tuple[JsonEdit, ...]:
    """Let fields of the whole model that name decoder layers by number name the same layers."""
    wrapper = MULTIMODAL.get(decoder.model_type)
    places = {entry.source: i for i, entry in enumerate(layer_map) if not entry.is_new}
    edits = []
    for field, default in wrapper.fed_layers if wrapper else ():
        stated = get_field(config, field, list(default))
        if not isinstance(stated, list):
            raise CheckpointError(f"config.json: {field!r} must be a list, found {show(stated)}")
        moved = []
        for item in stated:
            *first, layer = item if isinstance(item, list) and item else [item]
            if type(layer) is not int:
                raise CheckpointError(
                    f"config.json: {field!r} must hold numbers of layers, found {show(item)}"
                )
            # A layer that the model lacks is fed by nothing, and must go on to be lacking.
            here = places.get(layer, layer + len(layer_map))
            moved.append([*first, here] if first else here)
        if moved != stated:
            edits.append(JsonEdit(path=tuple(field.split(".")), value=moved))
    return tuple(edits)


def _count_heard(config: Mapping[str, Any], field: str) -> int:
    """Return after how many first layers the talker listens; 0 where there is none."""
    if not isinstance(get_field(config, field.rpartition(".")[0]), Mapping):
        return 0
    value = get_field(config, field, _HEARD_BY_DEFAULT)
    if type(value) is not int:
        raise CheckpointError(
            f"config.json: {field!r} must be the number of a layer, found {show(value)}"
        )
    return value


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
    for name, layer in decoder.placed.items():
        if layer in suffixes:
            suffix = family_suffix(decoder, name)
            if suffix is not None:
                suffixes[layer].append(suffix)
    return {source: neutral_values(decoder.family, names) for source, names in suffixes.items()}


def _json_edits(
    decoder: Decoder, config: Mapping[str, Any], edits: FieldEdits
) -> tuple[JsonEdit, ...]:
    """Address the edits in config.json; some multimodal configs repeat text fields at the root."""
    result = []
    text = descend(config, decoder.config_path)
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
