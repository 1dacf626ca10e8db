"""A digest of what decides an output's bytes, by which a later run knows it again. Pure."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator

from .origins import Convert, Copy, Dequantize, Fill, Gather, Origin, Scale, Zeros
from .recipe import PlanOptions
from .shards import Document, PlannedFile


def take_fingerprint(
    options: PlanOptions, files: Iterable[PlannedFile], documents: Iterable[Document]
) -> str:
    """Digest what decides the bytes of the weights, the index and the config, and nothing else.

    Neither the version of this tool nor the place of a source is in it, so that a later release
    knows an output again unless it would write other bytes.
    """
    digest = hashlib.sha256()
    for item in _fingerprint_items(options, files, documents):
        digest.update(len(item).to_bytes(8, "little"))
        digest.update(item)
    return digest.hexdigest()


def _fingerprint_items(
    options: PlanOptions, files: Iterable[PlannedFile], documents: Iterable[Document]
) -> Iterator[bytes]:
    asked = (options.position, options.dtype, options.max_shard_nbytes, options.block_nbytes)
    yield repr(asked).encode()
    if options.quantized != "keep":
        yield options.quantized.encode()
    for file in files:
        yield file.name.encode()
        yield file.header
        if file.identical_to is not None:
            yield f"all of {file.identical_to}".encode()
        else:
            yield "\n".join([_spell_origin(tensor.origin) for tensor in file.tensors]).encode()
    for document in documents:
        yield document.name.encode()
        yield document.data


def _spell_origin(origin: Origin) -> str:
    """Spell an origin out: a class that is renamed may not change a fingerprint."""
    match origin:
        case Copy(extent=extent):
            return f"copy {extent.file} {extent.offset}"
        case Zeros():
            return "zeros"
        case Fill(element=element):
            return f"fill {element.hex()}"
        case Convert(extent=extent, from_dtype=before, to_dtype=after):
            return f"convert {extent.file} {extent.offset} {before} {after}"
        case Scale(extent=extent, from_dtype=before, math_dtype=middle, to_dtype=after):
            chain = f"{before} {middle} {after}"
            shift = f" {origin.shift!r}" if origin.shift else ""
            return f"scale {extent.file} {extent.offset} {chain} {origin.factor!r}{shift}"
        case Dequantize(codec=codec, parts=parts, to_dtype=after):
            places = [f"{role} {extent.file} {extent.offset}" for role, _, extent in parts]
            return f"dequantize {codec!r} {' '.join(places)} {after}"
        case Gather(values=values, rows=rows, of=of, parts=numbers):
            return f"gather {rows} {of} {' '.join(map(str, numbers))} of {_spell_origin(values)}"
