"""Which tensors two checkpoints share, bit for bit: same, changed, new or missing.

It only reads, and keeps a few buffers, whatever the size of the models. Where one checkpoint is an
expansion of the other, each original layer is compared with the layer that it was taken from.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from ..checkpoints.checkpoint import Checkpoint
from ..formats.safetensors import TensorSpec
from ..models.layer_map import LayerMap
from ..planning.origins import Copy, Extent
from ..planning.shards import PlannedTensor
from ..progress import Progress
from .comparison import Place, compare_tensors
from .matching import TensorKey, match_tensors

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
    those of the side that is an expansion, empty where none is.
    """

    base: str
    other: str
    matched_by: str
    tensors: tuple[TensorDifference, ...]
    layer_map: LayerMap = ()
    layer_prefix: str = ""

    @property
    def lost(self) -> tuple[TensorDifference, ...]:
        """The tensors of BASE, but for new blocks, that OTHER does not have bit for bit."""
        return tuple(
            tensor
            for tensor in self.tensors
            if tensor.status in ("changed", "missing") and not tensor.in_new_block
        )


def compare_checkpoints(
    base: Checkpoint, other: Checkpoint, progress: Progress, *, base_name: str, other_name: str
) -> Difference:
    """Compare two opened checkpoints; `progress` is told of BASE's bytes."""
    matching = match_tensors(base, other)
    mine = {key: name for name, key in matching.base.items()}
    theirs = {key: name for name, key in matching.other.items()}
    # Of one spec only: what has another dtype or shape is changed, whatever its bytes.
    pairs = {
        theirs[key]: mine[key]
        for key in mine.keys() & theirs.keys()
        if base.specs[mine[key]] == other.specs[theirs[key]]
    }
    mismatches = compare_tensors(
        place_files(base), place_files(other), _place(base, other, pairs), progress
    )
    offsets = {pairs[name]: mismatch.offset for name, mismatch in mismatches.items()}
    tensors = []
    for key, name in mine.items():
        tensors.append(_judge(base, other, key, name, theirs.get(key), offsets.get(name)))
    for key, name in theirs.items():
        if key not in mine:
            tensors.append(_judge(base, other, key, None, name, None))
    return Difference(
        base=base_name,
        other=other_name,
        matched_by=matching.matched_by,
        tensors=tuple(tensors),
        layer_map=matching.layer_map,
        layer_prefix=matching.layer_prefix,
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


def _place(
    base: Checkpoint, other: Checkpoint, pairs: Mapping[str, str]
) -> dict[str, list[PlannedTensor]]:
    """Return OTHER's tensors by file, each to be a copy of its partner in BASE."""
    sources = find_extents(base)
    return {
        shard.file.name: [
            PlannedTensor(
                entry.name,
                entry.spec,
                shard.header.data_start + entry.data_offset,
                Copy(sources[pairs[entry.name]]),
            )
            for entry in shard.header.entries
            if entry.name in pairs
        ]
        for shard in other.shards
    }


def place_files(checkpoint: Checkpoint) -> Place:
    """Return where a checkpoint's tensors are read."""
    return Place(checkpoint.root, {shard.file.name: shard.file for shard in checkpoint.shards})


def find_extents(checkpoint: Checkpoint) -> dict[str, Extent]:
    """Return where each tensor lies in the files of its checkpoint."""
    return {
        entry.name: Extent(
            shard.file.name, shard.header.data_start + entry.data_offset, entry.spec.nbytes
        )
        for shard in checkpoint.shards
        for entry in shard.header.entries
    }
