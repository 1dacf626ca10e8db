"""Where each tensor of the output comes from, and how tensors are arranged in files. Pure.

The arrangement is made so that bytes can be moved without being read: neighbours in the source
stay neighbours, and what is copied lands at the source's offset modulo the block size wherever
that is possible, so that file systems can share whole blocks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from .checkpoint import Extent
from .tensor_spec import DTYPE_BITS, TensorSpec

# New blocks go into further shards of at most this size (the default of the Hub's own tools).
NEW_SHARD_NBYTES = 5_000_000_000

# Below this a block's bytes are copied rather than given a shard of their own to be shared from.
_WORTH_SHARING_NBYTES = 1 << 20

# Older files are not looked at again, so that thousands of blocks do not take the square of time.
_MOST_OPEN_FILES = 64


class Copy(NamedTuple):
    """The bytes of the source, unchanged."""

    extent: Extent


class Zeros(NamedTuple):
    """Bytes that are all zero: +0 in every dtype that can be planned."""

    nbytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Fill:
    """One element repeated: a norm's weight of -1, a residual's factor of 1."""

    element: bytes
    nbytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Convert:
    """The source's values, each rounded to the nearest value of another dtype."""

    extent: Extent
    from_dtype: str
    to_dtype: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Scale:
    """The source's values, each converted to `math_dtype`, multiplied there, and converted again.

    Each of the three steps rounds to the nearest value, as `torch` does it.
    """

    extent: Extent
    from_dtype: str
    math_dtype: str
    to_dtype: str
    factor: float


Origin = Copy | Zeros | Fill | Convert | Scale


class Part(NamedTuple):
    """An output tensor that has no place yet."""

    name: str
    spec: TensorSpec
    origin: Origin


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrangement:
    """One output file's tensors in order; the data section starts at `residue` modulo the block.

    `mirrors` names the source shard that it holds as it is, but for names and dtypes.
    """

    parts: tuple[Part, ...]
    residue: int
    mirrors: str | None = None


def mirror_shards(
    residents: Sequence[tuple[str, Sequence[Part]]],
    blocks: Sequence[Sequence[Part]],
    block_nbytes: int,
) -> list[Arrangement]:
    """Keep each source shard as an output file, and put the new blocks into further files.

    `residents` are the source shards' names with the parts that stay in them, `blocks` the new
    blocks' parts in the source's order.
    """
    mirrored = [_arrange(parts, block_nbytes, mirrors=name) for name, parts in residents if parts]
    files: list[_OpenFile] = []
    for block in blocks:
        for piece in _split_block(block):
            residue, shared_nbytes = _best_residue(piece, block_nbytes)
            nbytes = sum(part.spec.nbytes for part in piece)
            # A tensor is shared only where its offset keeps the source's residue, so a piece that
            # would land elsewhere starts a file of its own, if it is worth one.
            wanted = residue if shared_nbytes >= _WORTH_SHARING_NBYTES else None
            for file in files[-_MOST_OPEN_FILES:]:
                if file.accepts(nbytes, wanted, block_nbytes):
                    break
            else:
                file = _OpenFile(residue)
                files.append(file)
            file.append(piece, nbytes)
    return mirrored + [_arrange(file.parts, block_nbytes) for file in files]


def pack_shards(
    parts: Sequence[Part], max_shard_nbytes: int, block_nbytes: int
) -> list[Arrangement]:
    """Fill files of at most `max_shard_nbytes` of data in the given order.

    A tensor that is larger than that gets a file of its own, as in `transformers`.
    """
    files: list[list[Part]] = [[]]
    room = max_shard_nbytes
    for part in parts:
        if files[-1] and part.spec.nbytes > room:
            files.append([])
            room = max_shard_nbytes
        files[-1].append(part)
        room -= part.spec.nbytes
    return [_arrange(file, block_nbytes) for file in files]


class _OpenFile:
    """A file of new blocks while it is being filled."""

    def __init__(self, residue: int) -> None:
        self.parts: list[Part] = []
        self._residue = residue
        self._nbytes = 0

    def accepts(self, nbytes: int, residue: int | None, block_nbytes: int) -> bool:
        if self._nbytes + nbytes > NEW_SHARD_NBYTES:
            return False
        return residue is None or (self._residue + self._nbytes) % block_nbytes == residue

    def append(self, piece: Sequence[Part], nbytes: int) -> None:
        self.parts += piece
        self._nbytes += nbytes


def _split_block(block: Sequence[Part]) -> list[list[Part]]:
    """Cut a block where its source goes on in another file, or where a shard would be too large.

    Constants have no place in the source: they stay with the tensor before them.
    """
    pieces: list[list[Part]] = []
    file: str | None = None
    nbytes = 0
    for part in block:
        source = None if isinstance(part.origin, Zeros | Fill) else part.origin.extent.file
        elsewhere = source is not None and file is not None and source != file
        if not pieces or elsewhere or nbytes + part.spec.nbytes > NEW_SHARD_NBYTES:
            pieces.append([])
            nbytes = 0
        file = source or file
        pieces[-1].append(part)
        nbytes += part.spec.nbytes
    return pieces


def _arrange(parts: Sequence[Part], block_nbytes: int, mirrors: str | None = None) -> Arrangement:
    if mirrors is None or any(isinstance(part.origin, Convert | Scale) for part in parts):
        parts = _align(parts)
    residue, _ = _best_residue(parts, block_nbytes)
    return Arrangement(parts=tuple(parts), residue=residue, mirrors=mirrors)


def _best_residue(parts: Sequence[Part], block_nbytes: int) -> tuple[int, int]:
    """Return the data section's start, modulo the block, that lets the most bytes be shared.

    Also how many bytes that is. Without anything to share it is 0.
    """
    nbytes_by_residue = {0: 0}
    data_offset = 0
    for part in parts:
        nbytes = part.spec.nbytes
        if isinstance(part.origin, Copy):
            residue = (part.origin.extent.offset - data_offset) % block_nbytes
            nbytes_by_residue[residue] = nbytes_by_residue.get(residue, 0) + nbytes
        data_offset += nbytes
    return max(nbytes_by_residue.items(), key=lambda item: item[1])


def _align(parts: Sequence[Part]) -> Sequence[Part]:
    """Put wider elements first where the given order would leave one off its natural alignment.

    Readers view the mapped file as elements, which fails off alignment. Conversion and repacking
    can cause that, when an odd number of narrow elements comes before wider ones.
    """
    data_offset = 0
    for part in parts:
        width = DTYPE_BITS[part.spec.dtype] // 8 or 1
        if data_offset % width:
            return sorted(parts, key=lambda part: -DTYPE_BITS[part.spec.dtype])
        data_offset += part.spec.nbytes
    return parts
