"""Tables outside of the layers that have a part for every layer: how they follow a layer map. Pure.

Gemma 4's per-layer embeddings are columns of one table, and rows of the projection beside it.
"""

from __future__ import annotations

from collections.abc import Sequence

from ..formats.tensor_spec import TensorSpec
from ..models.decoder import Decoder
from .origins import Convert, Copy, Gather, Origin, Scale, Zeros


def follow_layers(
    decoder: Decoder, name: str, spec: TensorSpec, origin: Origin, sources: Sequence[int]
) -> tuple[TensorSpec, Origin]:
    """Return what a table of `decoder` is where the layers are those of `sources`, in that order.

    `spec` and `origin` are what the whole table would be by itself; any other tensor stays that.
    """
    axis = decoder.tables.get(name)
    if axis is None or tuple(sources) == tuple(range(decoder.layers)):
        return spec, origin
    shape = list(spec.shape)
    shape[axis] = shape[axis] // decoder.layers * len(sources)
    grown = TensorSpec(
        dtype=spec.dtype,
        shape=tuple(shape),
        nbytes=spec.nbytes // decoder.layers * len(sources),
    )
    match origin:
        case Copy() | Convert() | Scale():
            rows = spec.shape[0] if axis else 1
            parts = tuple(sources)
            return grown, Gather(values=origin, rows=rows, of=decoder.layers, parts=parts)
        case Zeros():
            return grown, Zeros(nbytes=grown.nbytes)
        case _:
            raise AssertionError(f"{name}: a table is never made by {type(origin).__name__}")
