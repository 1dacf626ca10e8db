"""SHA-256 of tensors and of shards, read once, in flat memory, on a few threads. Only reads."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from ..checkpoints.checkpoint import Shard
from ..formats.elements import convert_slice
from ..formats.tensor_spec import DTYPE_BITS
from ..fs.reading import Place, Reader, make_buffer
from ..fs.threads import THREADS
from ..progress import Report
from .format import BaseShard, DigestedTensor

_SLICE_NBYTES = 4 << 20


def digest_tensors(
    root: Path, shards: tuple[Shard, ...], report: Report
) -> tuple[dict[str, DigestedTensor], tuple[BaseShard, ...]]:
    """Digest every tensor of some shards, and each shard as a file.

    A tensor's digest is that of its bytes alone, so it is the same in every sharding.
    Raises: TransferError, SourceChangedError.
    """
    files = {shard.file.name: shard.file for shard in shards}
    with Reader(Place(root, files)) as reader, ThreadPoolExecutor(THREADS) as pool:
        found = list(pool.map(lambda shard: _digest_shard(reader, shard, report), shards))
        reader.check_unchanged()
    tensors = {name: tensor for digests, _ in found for name, tensor in digests.items()}
    return tensors, tuple(shard for _, shard in found)


def _digest_shard(
    reader: Reader, shard: Shard, report: Report
) -> tuple[dict[str, DigestedTensor], BaseShard]:
    """Read a shard from front to back. Tensors lie in it without gaps, as the format demands."""
    buffer = make_buffer(_SLICE_NBYTES)
    name, end = shard.file.name, shard.file.nbytes
    whole = hashlib.sha256(shard.header_bytes)
    header_sha256 = whole.hexdigest()
    tensors = {}
    position = len(shard.header_bytes)
    for entry in sorted(shard.header.entries, key=lambda entry: entry.data_offset):
        digest = hashlib.sha256()
        stop = position + entry.spec.nbytes
        while position < stop:
            part = reader.read(name, position, min(_SLICE_NBYTES, stop - position), buffer)
            digest.update(part)
            whole.update(part)
            position += len(part)
            report(len(part))
        tensors[entry.name] = DigestedTensor(entry.spec, digest.hexdigest())
    assert position == end, f"{name}: {position} of {end} bytes belong to tensors"
    described = BaseShard(
        name=name, nbytes=end, header_sha256=header_sha256, sha256=whole.hexdigest()
    )
    return tensors, described


def digest_widened(
    root: Path, shards: tuple[Shard, ...], dtypes: Mapping[str, str], report: Report
) -> dict[str, str]:
    """Digest tensors as they would be in a wider dtype: `dtypes` maps their names to it.

    Trainers save a copy in float32 of what they loaded in bfloat16; every value is then the same.
    """
    files = {shard.file.name: shard.file for shard in shards}
    source, target = make_buffer(_SLICE_NBYTES), bytearray(_SLICE_NBYTES * 4)
    digests = {}
    with Reader(Place(root, files)) as reader:
        for shard in shards:
            for entry in shard.header.entries:
                if entry.name not in dtypes:
                    continue
                spec, to_dtype = entry.spec, dtypes[entry.name]
                growth = DTYPE_BITS[to_dtype] // DTYPE_BITS[spec.dtype]
                digest = hashlib.sha256()
                start = shard.header.data_start + entry.data_offset
                for offset in range(0, spec.nbytes, _SLICE_NBYTES):
                    nbytes = min(_SLICE_NBYTES, spec.nbytes - offset)
                    part = reader.read(shard.file.name, start + offset, nbytes, source)
                    widened = memoryview(target)[: nbytes * growth]
                    convert_slice(part, spec.dtype, widened, to_dtype, entry.name)
                    digest.update(widened)
                    report(nbytes)
                digests[entry.name] = digest.hexdigest()
        reader.check_unchanged()
    return digests
