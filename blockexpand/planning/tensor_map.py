"""Give every tensor of the sources its name in the output, and what it is made of. Pure.

The first use of a layer stays where it is in its shard; every further copy of it, and every new
layer, is a block of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

from ..checkpoints.checkpoint import Checkpoint
from ..formats.tensor_spec import TensorSpec
from ..models.decoder import Decoder, output_name
from ..models.layer_map import LayerMap
from .origins import Copy, Part


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SourceModel:
    """A source model. `model` is the number by which layer maps name it."""

    model: int
    checkpoint: Checkpoint
    decoder: Decoder

    def key(self, file: str) -> str:
        """Return what a plan calls a file of this model: several models may have one of a name."""
        return f"{self.model}/{file}" if self.model else file


class TensorUse(NamedTuple):
    """A tensor of a source for one place of the output: in layer `layer`, None outside of them.

    `output` is what it is called there, if it stays one tensor; `copy` its bytes, as they are.
    """

    source: SourceModel
    name: str
    output: str
    spec: TensorSpec
    copy: Copy
    layer: int | None = None


Make = Callable[[TensorUse], Part | None]


def map_tensors(
    models: Sequence[SourceModel],
    layer_map: LayerMap,
    make: Make,
    is_kept: Callable[[SourceModel, str], bool],
    plain: Container[str] = (),
) -> tuple[list[tuple[str, list[Part]]], list[list[Part]]]:
    """Return the parts that stay in each source shard, and those of each further copy of a layer.

    `make` returns the output's tensor, None for what becomes part of another; `is_kept` whether a
    tensor outside of the decoder's layers (or of a layer stored past their end) is taken from this
    model. A tensor that stays in its layer, and is of one of the dtypes `plain`, is copied as it is
    without asking.
    """
    first: dict[tuple[int, int], int] = {}
    further: dict[tuple[int, int], list[int]] = {}
    for index, mapped in enumerate(layer_map):
        place = mapped.model, mapped.source
        if mapped.is_new or place in first:
            further.setdefault(place, []).append(index)
        else:
            first[place] = index
    blocks: dict[int, list[Part | None]] = {
        index: [] for copies in further.values() for index in copies
    }
    kept: list[tuple[str, list[Part]]] = []
    # As the classes themselves make one, but for 100,000 of them without a call in Python.
    make_copy = partial(tuple.__new__, Copy)
    make_use = partial(tuple.__new__, TensorUse)
    make_part = partial(tuple.__new__, Part)
    for source in models:
        decoder = source.decoder
        # There may be 100,000 tensors: what is looked up for each is at hand.
        layer_of = decoder.placed.get
        first_of = {
            layer: index for (model, layer), index in first.items() if model == source.model
        }
        further_of = {
            layer: copies for (model, layer), copies in further.items() if model == source.model
        }
        for shard in source.checkpoint.shards:
            file, data_start = source.key(shard.file.name), shard.header.data_start
            parts: list[Part | None] = []
            entries = shard.header.entries
            # These stay, parts do not: apart from each other, the memory of parts can be reused.
            copies = [make_copy((file, data_start + at, spec.nbytes)) for _, spec, at in entries]
            for (name, spec, _), copy in zip(entries, copies, strict=True):
                layer = layer_of(name)
                if layer is None:
                    if is_kept(source, name):
                        parts.append(make(make_use((source, name, name, spec, copy, None))))
                    continue
                stays = first_of.get(layer)
                if layer >= decoder.layers:
                    if is_kept(source, name):
                        tail = layer - decoder.layers + len(layer_map)
                        named = output_name(decoder, name, tail)
                        parts.append(make(make_use((source, name, named, spec, copy, None))))
                elif stays is not None:
                    named = name if stays == layer else output_name(decoder, name, stays)
                    if spec.dtype in plain:
                        parts.append(make_part((named, spec, copy)))
                    else:
                        parts.append(make(make_use((source, name, named, spec, copy, stays))))
                for index in further_of.get(layer, ()):
                    named = output_name(decoder, name, index)
                    blocks[index].append(make(make_use((source, name, named, spec, copy, index))))
            kept.append((file, _present(parts)))
    return kept, [_present(blocks[index]) for index in sorted(blocks)]


def _present(parts: Iterable[Part | None]) -> list[Part]:
    return [part for part in parts if part is not None]
