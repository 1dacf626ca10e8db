"""Which tensors two checkpoints share, bit for bit: same, changed, new or missing.

It only reads, and keeps a few buffers, whatever the size of the models. Where one checkpoint is an
expansion of the other, each original layer is compared with the layer that it was taken from.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from ..checkpoints.checkpoint import Checkpoint
from ..errors import BlockExpandError
from ..formats.tensor_spec import TensorSpec
from ..models.decoder import find_decoder
from ..models.layer_map import LayerMap
from ..planning.origins import Copy, Gather
from ..planning.shards import PlannedTensor
from ..progress import SILENT, Progress
from .comparison import compare_tensors
from .expectation import find_extents, in_dtype, place_files
from .matching import Matching, TensorKey, match_tensors

Status = Literal["same", "changed", "new", "missing"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorStatistics:
    """How far a tensor has come from where it began, which is `compared_with`.

    That is a tensor of BASE or, where a new block's tensor began as a constant, `began_at`.
    `distance` is the Frobenius norm of the difference over that of the tensor of BASE which it
    comes from, None where that is 0; `changed_share` the part of the elements that differ.
    """

    compared_with: str
    began_at: float | None
    distance: float | None
    changed_share: float


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
    statistics: TensorStatistics | None = None

    @property
    def name(self) -> str:
        """The tensor's name in OTHER, or in BASE where OTHER lacks it."""
        return self.other_name or self.base_name or ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """Every tensor of two checkpoints, in the order of BASE, then what only OTHER has.

    `matched_by` says how the names of the two were matched; `layer_map` and `layer_prefix` are
    those of the side that is an expansion, empty where none is. `shared` bytes lie on the same
    blocks of the disk and were not read.
    """

    base: str
    other: str
    matched_by: str
    tensors: tuple[TensorDifference, ...]
    layer_map: LayerMap = ()
    layer_prefix: str = ""
    shared: int = 0

    @property
    def lost(self) -> tuple[TensorDifference, ...]:
        """The tensors of BASE, but for new blocks, that OTHER does not have bit for bit."""
        return tuple(
            tensor
            for tensor in self.tensors
            if tensor.status in ("changed", "missing") and not tensor.in_new_block
        )

    @property
    def of_other_dtypes(self) -> bool:
        """Whether all that was lost has another dtype or shape, so that no value was compared."""
        return all(tensor.status == "changed" and tensor.offset is None for tensor in self.lost)


def compare_checkpoints(
    base: Checkpoint,
    other: Checkpoint,
    progress: Progress,
    *,
    base_name: str,
    other_name: str,
    paranoid: bool = False,
) -> Difference:
    """Compare two opened checkpoints; `progress` is told of BASE's bytes.

    Only if `paranoid`, what both have on the same blocks of a disk is read as well.
    """
    matching = match_tensors(base, other)
    mine = {key: name for name, key in matching.base.items()}
    theirs = {key: name for name, key in matching.other.items()}
    # Trainers save wider copies; what has a narrower dtype, or another shape, is changed anyway.
    pairs = {
        theirs[key]: mine[key]
        for key in mine.keys() & theirs.keys()
        if holds(base.specs[mine[key]], other.specs[theirs[key]])
    }
    mismatches, shared = compare_tensors(
        place_files(base),
        place_files(other),
        _place(base, other, pairs),
        progress,
        paranoid=paranoid,
    )
    offsets = {pairs[name]: mismatch.offset for name, mismatch in mismatches.items()}
    tables = _find_equal_tables(base, other, matching, {n: theirs.get(k) for k, n in mine.items()})
    tensors = []
    for key, name in mine.items():
        if name in tables:
            tensors.append(_judge_table(base, other, name, theirs[key]))
            continue
        partner, offset = theirs.get(key), offsets.get(name)
        tensors.append(_judge(base, other, key, name, partner, offset, matching.layer_map))
    for key, name in theirs.items():
        if key not in mine:
            tensors.append(_judge(base, other, key, None, name, None, matching.layer_map))
    return Difference(
        base=base_name,
        other=other_name,
        matched_by=matching.matched_by,
        tensors=tuple(tensors),
        layer_map=matching.layer_map,
        layer_prefix=matching.layer_prefix,
        shared=shared,
    )


def _judge(
    base: Checkpoint,
    other: Checkpoint,
    key: TensorKey,
    mine: str | None,
    theirs: str | None,
    offset: int | None,
    layer_map: LayerMap,
) -> TensorDifference:
    spec = base.specs[mine] if mine is not None else other.specs[theirs or ""]
    status: Status = "same"
    message = None
    if mine is None:
        status = "new"
    elif theirs is None:
        status = "missing"
        kept = {entry.source for entry in layer_map if not entry.is_new}
        if kept and key.layer is not None and key.layer.source not in kept:
            message = "its layer was dropped"
    elif not holds(spec, other.specs[theirs]):
        status, message = "changed", f"{_show(spec)} → {_show(other.specs[theirs])}"
    elif offset is not None:
        nbytes = other.specs[theirs].nbytes
        status, message = "changed", f"from byte {offset} of {nbytes} on"
    elif spec != other.specs[theirs]:
        message = f"{_show(spec)} → {_show(other.specs[theirs])}, the same values"
    return TensorDifference(
        status=status,
        base_name=mine,
        other_name=theirs,
        nbytes=spec.nbytes,
        in_new_block=key.is_new,
        offset=offset,
        message=message,
    )


def _judge_table(base: Checkpoint, other: Checkpoint, mine: str, theirs: str) -> TensorDifference:
    before, after = base.specs[mine], other.specs[theirs]
    return TensorDifference(
        status="same",
        base_name=mine,
        other_name=theirs,
        nbytes=before.nbytes,
        in_new_block=False,
        message=f"{_show(before)} → {_show(after)}, the parts of original layers the same",
    )


def _find_equal_tables(
    base: Checkpoint, other: Checkpoint, matching: Matching, partners: Mapping[str, str | None]
) -> set[str]:
    """Return the tables with a part for each layer whose original layers' parts are the same."""
    originals = [i for i, entry in enumerate(matching.layer_map) if not entry.is_new]
    equal: set[str] = set()
    if not originals:
        return equal
    try:
        tables = find_decoder(base.config, base.specs).tables
    except BlockExpandError:  # a checkpoint that is compared need not be one that can be expanded
        return equal
    for name, axis in tables.items():
        partner = partners.get(name)
        if partner is None:
            continue
        sides = [(base, name), (other, partner)]
        sides.sort(key=lambda side: side[0].specs[side[1]].shape[axis])
        (less, short), (more, long) = sides
        small, large = less.specs[short], more.specs[long]
        wanted = small.shape[axis] // len(originals) * len(matching.layer_map)
        if small.dtype != large.dtype or small == large or large.shape[axis] != wanted:
            continue
        origin = Gather(
            values=Copy(*find_extents(more)[long]),
            rows=large.shape[0] if axis else 1,
            of=len(matching.layer_map),
            parts=tuple(originals),
        )
        extent = find_extents(less)[short]
        placed = PlannedTensor(short, small, extent.offset, origin)
        places = place_files(more), place_files(less)
        if not compare_tensors(*places, {extent.file: [placed]}, SILENT)[0]:
            equal.add(name)
    return equal


def holds(one: TensorSpec, other: TensorSpec) -> bool:
    """Tell whether a tensor of the second kind can hold every value of one of the first."""
    wider = {"BF16": ("F32", "F64"), "F16": ("F32", "F64"), "F32": ("F64",)}
    same = one.dtype == other.dtype or other.dtype in wider.get(one.dtype, ())
    return same and one.shape == other.shape


def _show(spec: TensorSpec) -> str:
    return f"{spec.dtype} {list(spec.shape)}"


def _place(
    base: Checkpoint, other: Checkpoint, pairs: Mapping[str, str]
) -> dict[str, list[PlannedTensor]]:
    """Return OTHER's tensors by file, each to have the values of its partner in BASE."""
    extents = find_extents(base)
    files: dict[str, list[PlannedTensor]] = {}
    for shard in other.shards:
        placed = files.setdefault(shard.file.name, [])
        for entry in shard.header.entries:
            if entry.name not in pairs:
                continue
            mine = pairs[entry.name]
            origin = in_dtype(Copy(*extents[mine]), base.specs[mine], entry.spec.dtype)
            assert origin is not None
            offset = shard.header.data_start + entry.data_offset
            placed.append(PlannedTensor(entry.name, entry.spec, offset, origin))
    return files
