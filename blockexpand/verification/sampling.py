"""Compare a block of every tensor of an output with its origin: quick, and no proof.

It tells other weights from the right ones, which differ everywhere; a few wrong bytes it mostly
does not see. Every byte is compared by output.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..checkpoints.checkpoint import Checkpoint
from ..formats.tensor_spec import DTYPE_BITS
from ..fs.ranges import RangeReader
from ..fs.reading import Place, Reader, describe_file, make_buffer
from ..planning.origins import Dequantize, source_of
from ..planning.plan import Plan
from ..planning.segments import Segment
from ..planning.shards import PlannedFile, PlannedTensor
from .comparison import expect_bytes

_BLOCK_NBYTES = 4096

# Of a mixture of 100,000 tensors these are enough to tell, and take seconds on any disk.
_MOST_BLOCKS = 8192


def place_tensors(plan: Plan, saved: Checkpoint) -> tuple[PlannedFile, ...] | None:
    """Return a plan's tensors in the files where a checkpoint has them; None if it has others.

    Another release may have laid the same tensors out in other shards.
    """
    planned = {tensor.name: tensor for file in plan.files for tensor in file.tensors}
    if saved.specs != {name: tensor.spec for name, tensor in planned.items()}:
        return None
    return tuple(
        PlannedFile(
            name=shard.file.name,
            header=shard.header_bytes,
            tensors=tuple(
                planned[entry.name]._replace(offset=shard.header.data_start + entry.data_offset)
                for entry in shard.header.entries
            ),
            nbytes=shard.file.nbytes,
            identical_to=None,
        )
        for shard in saved.shards
    )


def find_sampled_difference(
    plan: Plan, files: Sequence[PlannedFile], out: Path, *, is_here: bool
) -> tuple[str | None, int]:
    """Return the first tensor that differs in its sample, or None, and how many were compared.

    `files` are the plan's, or those of `place_tensors`. A shard that is the source's own, by a hard
    link, is not read. Where the source is not on the disk (`is_here` is false) only tensors are
    compared that nothing is taken from it for.
    Raises: TransferError, SourceChangedError.
    """
    count = sum(len(file.tensors) for file in files)
    step = -(-count // _MOST_BLOCKS)
    buffer, other = make_buffer(_BLOCK_NBYTES * 4), make_buffer(_BLOCK_NBYTES)
    compared = 0
    with Reader(plan.sources) as source:
        ranges = RangeReader(source)
        for file in files:
            if is_here and _is_link(plan, file, out):
                compared += len(file.tensors[::step])
                continue
            status = (out / file.name).stat()
            with Reader(Place(out, {file.name: describe_file(file.name, status)})) as output:
                for index, tensor in enumerate(file.tensors[::step]):
                    if not tensor.spec.nbytes or not (is_here or _is_constant(tensor)):
                        continue
                    if isinstance(tensor.origin, Dequantize):
                        continue  # takes a whole group of values to make one
                    start, nbytes = _choose_block(tensor, at_end=index % 2 == 1)
                    segment = Segment(
                        offset=tensor.offset,
                        nbytes=tensor.spec.nbytes,
                        origin=tensor.origin,
                        tensor=tensor.name,
                    )
                    converted = bytearray(_BLOCK_NBYTES)
                    expected = expect_bytes(
                        segment, start, nbytes, source, ranges, buffer, converted
                    )
                    if bytes(output.read(file.name, start, nbytes, other)) != bytes(expected):
                        return tensor.name, compared
                    compared += 1
    return None, compared


def _choose_block(tensor: PlannedTensor, *, at_end: bool) -> tuple[int, int]:
    """Return where in the file the sample of a tensor begins, and its bytes: whole elements."""
    # Packed elements of less than a byte are never converted, so any byte may begin a sample.
    element = max(DTYPE_BITS[tensor.spec.dtype] // 8, 1)
    nbytes = min(_BLOCK_NBYTES // 16 * 16, tensor.spec.nbytes)
    start = (tensor.spec.nbytes - nbytes) // element * element if at_end else 0
    return tensor.offset + start, nbytes


def _is_constant(tensor: PlannedTensor) -> bool:
    return source_of(tensor.origin) is None


def _is_link(plan: Plan, file: PlannedFile, out: Path) -> bool:
    if file.identical_to is None:
        return False
    return (out / file.name).samefile(plan.path(file.identical_to))
