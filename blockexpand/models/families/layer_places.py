"""Where a new layer cannot stand, in families whose layers know of each other. Pure."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

from ...errors import CheckpointError
from ...messages import show
from ..layer_map import LayerMap
from .layer_fields import Config, Derive, get_field

Place = Callable[[Config, LayerMap], "str | None"]


def picks_are_shared(derive: Derive) -> Place:
    """Refuse a clone of a layer whose choice of tokens the layers after it reuse."""

    def place(config: Config, layer_map: LayerMap) -> str | None:
        layers = 1 + max(entry.source for entry in layer_map)
        kinds = get_field(config, "indexer_types") or derive(config, layers)
        for entry, following in pairwise(layer_map):
            shared = kinds[following.source] == "shared"
            if entry.is_new and kinds[entry.source] == "full" and shared:
                return (
                    f"layer {entry.source} picks the tokens that the layers after it attend to, "
                    "and a clone of it would pick others"
                )
        return None

    return place


def keys_are_shared(derive: Derive) -> Place:
    """Refuse a new layer in the place of the one whose keys and values the last layers use.

    That is the last layer of its kind before them, so a new one of that kind must not come after
    it. `derive` tells the kinds where the config does not list them; the last layer attends to all.
    """

    def place(config: Config, layer_map: LayerMap) -> str | None:
        layers = 1 + max(entry.source for entry in layer_map)
        first = layers - get_field(config, "num_kv_shared_layers", 0)
        if first == layers:
            return None
        kinds = get_field(config, "layer_types") or derive(config, layers)
        givers = {kinds[index]: index for index in range(first)}
        last = {kinds[entry.source]: entry for entry in layer_map if entry.source < first}
        taken = sorted(givers[kind] for kind, entry in last.items() if entry.is_new)
        if not taken:
            return None
        free = [index for index in range(layers) if index not in givers.values()]
        nearest = sorted(
            {max((i for i in free if i < giver), default=-1) for giver in taken}
            | {min((i for i in free if i > giver), default=-1) for giver in taken}
        )
        said = " and ".join(f"layer {index}" for index in taken)
        return (
            f"layers from {first} on use the keys and values of {said} ('num_kv_shared_layers'), "
            "whose place a clone behind would take; the nearest layers that can be cloned are "
            + ", ".join(str(index) for index in nearest if index >= 0)
        )

    return place


def keys_are_lent(field: str) -> Place:
    """Refuse a clone before the layer that it clones, where others use that layer's keys."""

    def place(config: Config, layer_map: LayerMap) -> str | None:
        lenders = get_field(config, field, [])
        lent = {number for index, number in enumerate(lenders) if number != index}
        seen: set[int] = set()
        for entry in layer_map:
            if not entry.is_new:
                seen.add(entry.source)
            elif entry.source in lent and entry.source not in seen:
                return (
                    f"layers use the keys and values of layer {entry.source} ({field!r}); no clone "
                    "of it can stand before it"
                )
        return None

    return place


def no_clone_of_hybrids(field: str, derive: Derive) -> Place:
    """Refuse clones of Zamba's layers that share a block: adapters of it are found by rank."""

    def place(config: Config, layer_map: LayerMap) -> str | None:
        layers = 1 + max(entry.source for entry in layer_map)
        kinds = get_field(config, field) or get_field(config, "layer_types")
        kinds = kinds or derive(config, layers)
        hybrid = [index for index in range(layers) if kinds[index] == "hybrid"]
        for entry in layer_map:
            if entry.is_new and entry.source in hybrid:
                free = [index for index in range(layers) if index not in hybrid]
                nearest = sorted(free, key=lambda index: abs(index - entry.source))[:2]
                return (
                    f"layer {entry.source} shares a block of attention with other layers, by its "
                    "rank among them, and cannot be cloned; the nearest layers that can be are "
                    + ", ".join(map(str, sorted(nearest)))
                )
        return None

    return place


def last_layer_stays(config: Config, layer_map: LayerMap) -> str | None:
    """Refuse to clone the last layer, or to add one behind it: it alone has another tensor."""
    last = max(entry.source for entry in layer_map)
    for index, entry in enumerate(layer_map):
        if entry.source == last and (entry.is_new or index + 1 < len(layer_map)):
            return (
                f"the last layer alone has a bias after its attention, so layer {last} must stay "
                f"the last and cannot be cloned; the layers before it can be, to {last - 1}"
            )
    return None


def rescaling(config: Config, layer_map: LayerMap) -> str | None:
    """Refuse to move an RWKV layer, or to add one, across a point where the stream is halved."""
    step = get_field(config, "rescale_every", 6)
    if not isinstance(step, int):
        raise CheckpointError(
            f"config.json: 'rescale_every' must be a number of layers, found {show(step)}"
        )
    if step <= 0:
        return None
    layers = 1 + max(entry.source for entry in layer_map)
    moved = any(entry.source != i for i, entry in enumerate(layer_map[:layers]))
    if moved or len(layer_map) // step > layers // step:
        return f"the stream is halved after every {step} layers by number ('rescale_every')"
    return None
