"""What an output's tensors must be, by name, wherever they lie: from a plan, or a layer map.

For outputs whose files are not those that blockexpand writes. A layer map is worked out here
without the planner, so that what other tools made is judged by the family's row alone. Pure.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

from ..checkpoints.checkpoint import Checkpoint
from ..checkpoints.files import CONFIG_FILE
from ..errors import UnsupportedModelError
from ..formats.elements import encode_element, is_widening
from ..formats.json_object import JsonObject, edit_json_object
from ..formats.tensor_spec import FLOAT_DTYPES, TensorSpec
from ..fs.reading import Place
from ..models.decoder import Decoder, find_decoder, layer_suffix, output_name, split_name
from ..models.layer_map import LayerMap
from ..models.surgery import plan_surgery
from ..planning.layer_tables import follow_layers
from ..planning.origins import (
    Convert,
    Copy,
    Dequantize,
    Extent,
    Fill,
    Gather,
    Origin,
    Scale,
    Zeros,
)
from ..planning.plan import Plan


class ExpectedTensor(NamedTuple):
    """A tensor as the expansion makes it: `clone` is where a new block's values come from,
    `constant` what they are set to instead, None where they are copied. Of a quantised source
    `clone` is the constant itself, by its bytes."""

    spec: TensorSpec
    clone: Origin
    layer: int | None = None
    suffix: str = ""
    constant: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Expectation:
    """An expansion by the names of its tensors; `sources` are the files that they come from.

    `fault` says why the family cannot have new layers in these places and keep its function.
    """

    decoder: Decoder
    sources: Place
    tensors: Mapping[str, ExpectedTensor]
    config: JsonObject
    layer_map: LayerMap
    prefix: str
    fault: str | None = None


def expect_plan(plan: Plan, checkpoint: Checkpoint) -> Expectation:
    """Return what a plan makes."""
    decoder = find_decoder(checkpoint.config, checkpoint.specs, plan.options.row)
    extents = find_extents(checkpoint)
    by_place = {
        (layer, layer_suffix(decoder, name)): name for name, layer in decoder.placed.items()
    }
    tensors = {}
    for file in plan.files:
        for tensor in file.tensors:
            parts = split_name(tensor.name, plan.layer_prefix)
            layer, suffix = parts or (None, "")
            clone, constant = tensor.origin, None
            if layer is not None and layer < len(plan.layer_map) and plan.layer_map[layer].is_new:
                constant = plan.neutral.get(suffix)
                source = by_place.get((plan.layer_map[layer].source, suffix))
                if isinstance(clone, Zeros | Fill):
                    if decoder.quantization and (
                        source is None or source in decoder.quantization.members
                    ):
                        constant = 0.0  # a weight's, of which this may be a part
                    elif source is not None:
                        clone = Copy(*extents[source])
            else:
                layer = None
            tensors[tensor.name] = ExpectedTensor(tensor.spec, clone, layer, suffix, constant)
    config = next(d.data for d in plan.documents if d.name == CONFIG_FILE)
    return Expectation(
        decoder=decoder,
        sources=plan.sources,
        tensors=tensors,
        config=json.loads(config),
        layer_map=plan.layer_map,
        prefix=plan.layer_prefix,
    )


def expect_layers(checkpoint: Checkpoint, decoder: Decoder, layer_map: LayerMap) -> Expectation:
    """Return what an expansion of a checkpoint by a layer map is; dtypes are the source's."""
    extents = find_extents(checkpoint)
    fault, config = None, checkpoint.config
    neutral: Mapping[int, Mapping[str, float]] = {}
    try:
        surgery = plan_surgery(decoder, checkpoint.config, layer_map)
        neutral = surgery.neutral
        config = json.loads(edit_json_object(checkpoint.config_bytes, surgery.config_edits))
    except UnsupportedModelError as error:
        fault = str(error)
    places: dict[int, list[int]] = {}
    for index, entry in enumerate(layer_map):
        places.setdefault(entry.source, []).append(index)
    tensors = {}
    for name, spec in checkpoint.specs.items():
        origin = Copy(*extents[name])
        layer = decoder.placed.get(name)
        if layer is None:
            sources = [entry.source for entry in layer_map]
            tensors[name] = ExpectedTensor(*follow_layers(decoder, name, spec, origin, sources))
        elif layer >= decoder.layers:
            index = layer - decoder.layers + len(layer_map)
            tensors[output_name(decoder, name, index)] = ExpectedTensor(spec, origin)
        else:
            suffix = layer_suffix(decoder, name)
            for index in places[layer]:
                is_new = layer_map[index].is_new
                tensors[output_name(decoder, name, index)] = ExpectedTensor(
                    spec,
                    origin,
                    index if is_new else None,
                    suffix,
                    neutral.get(layer, {}).get(suffix) if is_new else None,
                )
    return Expectation(
        decoder=decoder,
        sources=place_files(checkpoint),
        tensors=tensors,
        config=config,
        layer_map=layer_map,
        prefix=decoder.prefix,
        fault=fault,
    )


def place_files(checkpoint: Checkpoint) -> Place:
    """Return where a checkpoint's tensors are read."""
    return Place(checkpoint.root, {shard.file.name: shard.file for shard in checkpoint.shards})


def find_extents(checkpoint: Checkpoint) -> dict[str, Extent]:
    """Return where each tensor's bytes are."""
    return {
        entry.name: Extent(
            shard.file.name, shard.header.data_start + entry.data_offset, entry.spec.nbytes
        )
        for shard in checkpoint.shards
        for entry in shard.header.entries
    }


def in_dtype(origin: Origin, spec: TensorSpec, dtype: str) -> Origin | None:
    """Return an origin of dtype `spec.dtype` with its values converted to `dtype`, None if it
    cannot be: trainers save wider copies, other tools narrower ones."""
    if dtype == spec.dtype:
        return origin
    if not {dtype, spec.dtype} <= FLOAT_DTYPES:
        return None
    match origin:
        case Copy(extent=extent):
            return Convert(extent=extent, from_dtype=spec.dtype, to_dtype=dtype)
        case Convert(extent=extent, from_dtype=from_dtype, to_dtype=to_dtype):
            # To the dtype that the expansion had, and from there to that of the file.
            return Scale(
                extent=extent,
                from_dtype=from_dtype,
                math_dtype=to_dtype,
                to_dtype=dtype,
                factor=1.0,
            )
        case Gather(values=values):
            inner = in_dtype(values, spec, dtype)
            assert isinstance(inner, Convert | Scale | None)
            return None if inner is None else replace(origin, values=inner)
        case Dequantize() if is_widening(spec.dtype, dtype):
            return replace(origin, via_dtype=spec.dtype, to_dtype=dtype)
        case _:
            return None


def constant_origin(value: float, dtype: str, nbytes: int) -> Origin:
    """Return the origin of a tensor whose elements are all `value`."""
    return Fill(element=encode_element(dtype, value), nbytes=nbytes)
