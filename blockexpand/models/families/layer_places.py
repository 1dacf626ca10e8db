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
