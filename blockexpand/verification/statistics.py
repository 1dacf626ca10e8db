"""How far the tensors of one checkpoint have come from those of another: distances and shares.

A second pass over the tensors that differ or are new; the others have not moved. It only reads, a
slice at a time, and computes in float64 with torch, which it imports inside.
"""

from __future__ import annotations

import math
import threading
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ..checkpoints.checkpoint import Checkpoint
from ..formats.tensor_spec import DTYPE_BITS, TensorSpec
from ..fs.reading import Reader, make_buffer
from ..fs.threads import work_through
from ..models.layer_map import LayerEntry
from ..planning.origins import Extent
from ..progress import Report
from .difference import Difference, TensorStatistics
from .expectation import find_extents, place_files
from .matching import Matching, TensorKey, match_tensors

if TYPE_CHECKING:
    import torch

# Of these an element is a number; what is packed in integers has no distance.
_TORCH_NAMES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
}

_SLICE_ELEMENTS = 1 << 18


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """A tensor of OTHER, where it began, and the tensor of BASE whose norm is the measure.

    `start` is a tensor of BASE, or a constant.
    """

    other: str
    start: str | float
    measure: str


@dataclass(slots=True)
class _Sums:
    """What the slices of one tensor add up to; squares of the distance and of the measure."""

    distance: float = 0.0
    measure: float = 0.0
    changed: int = 0
    elements: int = 0


def find_pairs(base: Checkpoint, other: Checkpoint, difference: Difference) -> tuple[Pair, ...]:
    """Return what has to be read: what is the same has not moved, what has no beginning cannot."""
    matching = match_tensors(base, other)
    names = {key: name for name, key in matching.base.items()}
    pairs = []
    for tensor in difference.tensors:
        if tensor.other_name is None or tensor.status == "same":
            continue
        pair = _find_pair(tensor.other_name, tensor.base_name, matching, names)
        if pair is None:
            continue
        specs = other.specs[pair.other], base.specs[pair.measure]
        started = base.specs[pair.start] if isinstance(pair.start, str) else specs[1]
        if specs[0].shape == specs[1].shape == started.shape and all(
            spec.dtype in _TORCH_NAMES for spec in (*specs, started)
        ):
            pairs.append(pair)
    return tuple(pairs)


def measure_difference(
    base: Checkpoint,
    other: Checkpoint,
    difference: Difference,
    pairs: Iterable[Pair],
    report: Report,
) -> Difference:
    """Return the difference with the statistics of its tensors.

    `report` is told of the bytes of OTHER, from any thread.
    Raises: SourceChangedError where a file of either side changes meanwhile.
    """
    pairs = tuple(pairs)
    sums = _sum(base, other, pairs, report)
    began = {pair.other: pair for pair in pairs}
    tensors = []
    for tensor in difference.tensors:
        statistics = None
        name = tensor.other_name
        if name is not None and tensor.status == "same":
            statistics = TensorStatistics(
                compared_with=tensor.base_name or name, began_at=None, distance=0, changed_share=0
            )
        elif name is not None and name in sums:
            pair, found = began[name], sums[name]
            statistics = TensorStatistics(
                compared_with=pair.start if isinstance(pair.start, str) else pair.measure,
                began_at=None if isinstance(pair.start, str) else pair.start,
                distance=math.sqrt(found.distance / found.measure) if found.measure else None,
                changed_share=found.changed / found.elements if found.elements else 0.0,
            )
        tensors.append(replace(tensor, statistics=statistics))
    return replace(difference, tensors=tuple(tensors))


def _find_pair(
    name: str, base_name: str | None, matching: Matching, names: Mapping[TensorKey, str]
) -> Pair | None:
    """Say where a tensor began: a new block's as a clone, or as a constant."""
    key = matching.other[name]
    if not key.is_new or key.layer is None:
        return None if base_name is None else Pair(other=name, start=base_name, measure=base_name)
    original = names.get(TensorKey(key.suffix, LayerEntry(source=key.layer.source)))
    if original is None:
        return None
    if base_name is not None:
        return Pair(other=name, start=base_name, measure=original)
    return Pair(other=name, start=matching.neutral.get(key.suffix, original), measure=original)


def _sum(
    base: Checkpoint, other: Checkpoint, pairs: Iterable[Pair], report: Report
) -> Mapping[str, _Sums]:
    mine, theirs = find_extents(base), find_extents(other)
    sums: defaultdict[str, _Sums] = defaultdict(_Sums)
    lock = threading.Lock()

    with Reader(place_files(base)) as bases, Reader(place_files(other)) as others:

        def begin() -> Callable[[tuple[Pair, int, int]], None]:
            buffers = [make_buffer(_SLICE_ELEMENTS * 8) for _ in range(3)]

            def add(slice_: tuple[Pair, int, int]) -> None:
                pair, first, count = slice_
                spec = other.specs[pair.other]
                found = _read(others, theirs[pair.other], spec, first, count, buffers[0])
                spec = base.specs[pair.measure]
                measure = _read(bases, mine[pair.measure], spec, first, count, buffers[1])
                start: torch.Tensor | float = measure
                if isinstance(pair.start, float):
                    start = pair.start
                elif pair.start != pair.measure:
                    spec = base.specs[pair.start]
                    start = _read(bases, mine[pair.start], spec, first, count, buffers[2])
                moved = found - start
                distance = float(moved.square().sum())
                squares = float(measure.square().sum())
                changed = int((found != start).sum())
                with lock:
                    entry = sums[pair.other]
                    entry.distance += distance
                    entry.measure += squares
                    entry.changed += changed
                    entry.elements += count
                report(count * DTYPE_BITS[other.specs[pair.other].dtype] // 8)

            return add

        work_through(_cut(pairs, other), begin)
        bases.check_unchanged()
        others.check_unchanged()
    return sums


def _cut(pairs: Iterable[Pair], other: Checkpoint) -> Iterator[tuple[Pair, int, int]]:
    for pair in pairs:
        elements = math.prod(other.specs[pair.other].shape)
        for first in range(0, elements, _SLICE_ELEMENTS):
            yield pair, first, min(_SLICE_ELEMENTS, elements - first)


def _read(
    reader: Reader, extent: Extent, spec: TensorSpec, first: int, count: int, buffer: memoryview
) -> torch.Tensor:
    """Return elements of a tensor as float64."""
    import torch

    width = DTYPE_BITS[spec.dtype] // 8
    data = reader.read(extent.file, extent.offset + first * width, count * width, buffer)
    # A tensor may begin anywhere; a view of its elements has to begin at one of theirs.
    values = torch.frombuffer(bytearray(data), dtype=getattr(torch, _TORCH_NAMES[spec.dtype]))
    return values.to(torch.float64)
