"""Give every tensor of the sources its name in the output, and what it is made of. Pure.

The first use of a layer stays where it is in its shard; every further copy of it, and every new
layer, is a block of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from .checkpoint import Checkpoint, Extent, Shard
from .decoder import Decoder, output_name
from .layer_map import LayerMap
from .layout import Origin, Part
from .safetensors_header import HeaderEntry, TensorSpec


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Stock:
    """A source model. `model` is the number by which layer maps name it."""

    model: int
    checkpoint: Checkpoint
    decoder: Decoder

    def key(self, file: str) -> str:
        """Return what a plan calls a file of this model: several models may have one of a name."""
        return f"{self.model}/{file}" if self.model else file


@dataclass(frozen=True, slots=True, kw_only=True)
class Use:
    """A tensor of a source for one place of the output: in layer `layer`, None outside of them."""

    stock: Stock
    name: str
    spec: TensorSpec
    extent: Extent
    layer: int | None = None


Make = Callable[[Use], tuple[TensorSpec, Origin]]


def assign(
    stocks: Sequence[Stock], layer_map: LayerMap, make: Make, keeps: Callable[[Stock, str], bool]
) -> tuple[list[tuple[str, list[Part]]], list[list[Part]]]:
    """Return the parts that stay in each source shard, and those of each further copy of a layer.

    `make` tells what an output tensor is; `keeps` whether a tensor outside of the decoder's layers
    (or of a layer stored past their end) is taken from this model.
    """
    home: dict[tuple[int, int], int] = {}
    further: dict[tuple[int, int], list[int]] = {}
    for index, mapped in enumerate(layer_map):
        place = mapped.model, mapped.source
        if mapped.is_new or place in home:
            further.setdefault(place, []).append(index)
        else:
            home[place] = index
    blocks: dict[int, list[Part]] = {index: [] for copies in further.values() for index in copies}
    residents: list[tuple[str, list[Part]]] = []
    for stock in stocks:
        decoder = stock.decoder
        for shard in stock.checkpoint.shards:
            staying: list[Part] = []
            for entry in shard.header.entries:
                name, placed = entry.name, decoder.placed.get(entry.name)
                if placed is None:
                    if keeps(stock, name):
                        staying.append(_make_part(make, name, _use(stock, shard, entry, None)))
                    continue
                place = stock.model, placed.layer
                if placed.layer >= decoder.layers:
                    if keeps(stock, name):
                        tail = placed.layer - decoder.layers + len(layer_map)
                        named = output_name(decoder, placed, tail)
                        staying.append(_make_part(make, named, _use(stock, shard, entry, None)))
                elif place in home:
                    index = home[place]
                    kept = name if index == placed.layer else output_name(decoder, placed, index)
                    staying.append(_make_part(make, kept, _use(stock, shard, entry, index)))
                for index in further.get(place, ()):
                    named = output_name(decoder, placed, index)
                    use = _use(stock, shard, entry, index)
                    blocks[index].append(_make_part(make, named, use))
            residents.append((stock.key(shard.file.name), staying))
    return residents, [blocks[index] for index in sorted(blocks)]


def _use(stock: Stock, shard: Shard, entry: HeaderEntry, layer: int | None) -> Use:
    extent = Extent(
        file=stock.key(shard.file.name),
        offset=shard.header.data_start + entry.data_offset,
        nbytes=entry.spec.nbytes,
    )
    return Use(stock=stock, name=entry.name, spec=entry.spec, extent=extent, layer=layer)


def _make_part(make: Make, name: str, use: Use) -> Part:
    spec, origin = make(use)
    return Part(name=name, spec=spec, origin=origin)
