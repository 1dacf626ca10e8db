"""Which tensors two checkpoints share, bit for bit: same, changed, new or missing.

It only reads, and keeps a few buffers, whatever the size of the models. Where one checkpoint is an
expansion of the other, each original layer is compared with the layer that it was taken from.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from ..checkpoints.checkpoint import Checkpoint
from ..formats.safetensors import TensorSpec
from ..fs.reading import Reader, make_buffer
from ..fs.threads import work_through
from ..planning.origins import Extent
from ..progress import Report
from .matching import TensorKey, match_tensors

_SLICE_NBYTES = 4 << 20

# (names of a pair, offset in the tensor, nbytes)
_Slice = tuple[tuple[str, str], int, int]

Status = Literal["same", "changed", "new", "missing"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorDifference:
    """How one tensor fared; `base_name` or `other_name` is None where that side lacks it.

    `offset` is the first differing byte, from the start of the tensor, where both have one dtype
    and shape; else `message` says what differs. `in_new_block` tells a tensor that the expansion
    added.
    """

    status: Status
    base_name: str | None
    other_name: str | None
    nbytes: int
    in_new_block: bool
    offset: int | None = None
    message: str | None = None

    @property
    def name(self) -> str:
        """The tensor's name in OTHER, or in BASE where OTHER lacks it."""
        return self.other_name or self.base_name or ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """Every tensor of two checkpoints, in the order of BASE, then what only OTHER has.

    `matched_by` says how the names of the two were matched.
    """

    base: str
    other: str
    matched_by: str
    tensors: tuple[TensorDifference, ...]

    @property
    def lost(self) -> tuple[TensorDifference, ...]:
        """The tensors of BASE, but for new blocks, that OTHER does not have bit for bit."""
        return tuple(
            tensor
            for tensor in self.tensors
            if tensor.status in ("changed", "missing") and not tensor.in_new_block
        )


def compare_checkpoints(
    base: Checkpoint, other: Checkpoint, report: Report, *, base_name: str, other_name: str
) -> Difference:
    """Compare two opened checkpoints; `report` is told of BASE's bytes, from any thread."""
    matching = match_tensors(base, other)
    mine = {key: name for name, key in matching.base.items()}
    theirs = {key: name for name, key in matching.other.items()}
    pairs = [
        (mine[key], theirs[key])
        for key in mine.keys() & theirs.keys()
        if base.specs[mine[key]] == other.specs[theirs[key]]
    ]
    offsets = _compare(base, other, pairs, report)
    tensors = []
    for key, name in mine.items():
        tensors.append(_judge(base, other, key, name, theirs.get(key), offsets.get(name)))
    for key, name in theirs.items():
        if key not in mine:
            tensors.append(_judge(base, other, key, None, name, None))
    return Difference(
        base=base_name, other=other_name, matched_by=matching.matched_by, tensors=tuple(tensors)
    )


def _judge(
    base: Checkpoint,
    other: Checkpoint,
    key: TensorKey,
    mine: str | None,
    theirs: str | None,
    offset: int | None,
) -> TensorDifference:
    spec = base.specs[mine] if mine is not None else other.specs[theirs or ""]
    status: Status = "same"
    message = None
    if mine is None:
        status = "new"
    elif theirs is None:
        status = "missing"
    elif spec != other.specs[theirs]:
        status, message = "changed", f"{_show(spec)} → {_show(other.specs[theirs])}"
    elif offset is not None:
        status, message = "changed", f"from byte {offset} of {spec.nbytes} on"
    return TensorDifference(
        status=status,
        base_name=mine,
        other_name=theirs,
        nbytes=spec.nbytes,
        in_new_block=key.is_new,
        offset=offset,
        message=message,
    )


def _show(spec: TensorSpec) -> str:
    return f"{spec.dtype} {list(spec.shape)}"


def _compare(
    base: Checkpoint, other: Checkpoint, pairs: Iterable[tuple[str, str]], report: Report
) -> dict[str, int]:
    """Return the first differing byte of each pair that differs, by its name in `base`."""
    mine, theirs = _extents(base), _extents(other)
    # In the order of the files, so that both are read from front to back.
    ordered = sorted(pairs, key=lambda pair: (mine[pair[0]].file, mine[pair[0]].offset))
    offsets: dict[str, int] = {}
    slices = _cut(ordered, mine, offsets, report)
    lock = threading.Lock()

    def begin() -> Callable[[_Slice], None]:
        one, two = make_buffer(_SLICE_NBYTES), make_buffer(_SLICE_NBYTES)

        def compare(slice_: _Slice) -> None:
            (name, other_name), start, nbytes = slice_
            here, there = mine[name], theirs[other_name]
            found = bytes(base_files.read(here.file, here.offset + start, nbytes, one))
            expected = bytes(other_files.read(there.file, there.offset + start, nbytes, two))
            if found != expected:
                at = start + _first_difference(found, expected)
                with lock:
                    offsets[name] = min(at, offsets.get(name, at))
            report(nbytes)

        return compare

    with (
        Reader(base.root, {shard.file.name: shard.file for shard in base.shards}) as base_files,
        Reader(other.root, {shard.file.name: shard.file for shard in other.shards}) as other_files,
    ):
        work_through(slices, begin)
        base_files.check_unchanged()
        other_files.check_unchanged()
    return offsets


def _cut(
    pairs: Iterable[tuple[str, str]],
    extents: Mapping[str, Extent],
    offsets: Mapping[str, int],
    report: Report,
) -> Iterator[_Slice]:
    """Yield each pair's slices; of a tensor known to differ, no more."""
    for pair in pairs:
        nbytes = extents[pair[0]].nbytes
        for start in range(0, nbytes, _SLICE_NBYTES):
            if pair[0] in offsets:
                report(nbytes - start)
                break
            yield pair, start, min(_SLICE_NBYTES, nbytes - start)


def _extents(checkpoint: Checkpoint) -> dict[str, Extent]:
    return {
        entry.name: Extent(
            file=shard.file.name,
            offset=shard.header.data_start + entry.data_offset,
            nbytes=entry.spec.nbytes,
        )
        for shard in checkpoint.shards
        for entry in shard.header.entries
    }


def _first_difference(one: bytes, other: bytes) -> int:
    """Return where two byte strings of one length begin to differ, by halving."""
    low, high = 0, len(one)
    while high - low > 1:
        middle = (low + high) // 2
        if one[low:middle] != other[low:middle]:
            high = middle
        else:
            low = middle
    return low
