"""Tell what the layers of a merge are: those of an expansion, or of another model. Pure."""

from __future__ import annotations

from dataclasses import replace

from ...errors import UnsupportedModelError
from ...models.decoder import layer_suffix
from ...models.families.tensor_roles import is_silenced
from ...models.layer_map import LayerEntry, LayerMap
from ...models.surgery import Surgery, plan_rearrangement, plan_surgery
from .recipe import find_factor
from .resolving import ResolvedMerge, outside_factor


def recognise_expansion(job: ResolvedMerge) -> tuple[LayerMap, Surgery] | None:
    """Return the layer map of a recipe that at most adds blocks which add nothing, else None."""
    if not _is_plain(job):
        return None
    base = job.base
    suffixes: dict[int, dict[str, str]] = {}
    for name, number in base.decoder.placed.items():
        suffixes.setdefault(number, {})[layer_suffix(base.decoder, name)] = name
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


def _is_plain(job: ResolvedMerge) -> bool:
    """Tell whether all is taken from one model, and what is outside of the layers as it is."""
    base = job.base
    if any(source is not base for source in job.used):
        return False
    if any(job.dtypes.rounds_twice(spec.dtype) for spec in base.checkpoint.specs.values()):
        return False
    layers = base.decoder.placed
    return all(
        outside_factor(job.recipe, base, name) == 1
        for name in base.checkpoint.specs
        if layers.get(name, base.decoder.layers) >= base.decoder.layers
    )


def rearrange(job: ResolvedMerge) -> tuple[LayerMap, Surgery]:
    """Return the layer map and config changes of any other recipe.

    Raises: UnsupportedModelError where the family cannot have its layers in this order.
    """
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
