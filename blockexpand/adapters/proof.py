"""Is this the base that an adapter was trained in? Config, headers and digests, compared. Pure."""

from __future__ import annotations

from collections.abc import Mapping

from ..checkpoints.checkpoint import Checkpoint
from .extraction import config_differences
from .format import BlockAdapter, DigestedTensor


def find_header_differences(checkpoint: Checkpoint, adapter: BlockAdapter) -> list[str]:
    """Return in words what config and headers say of another base; nothing where they agree."""
    found = [
        f"config field {'.'.join(path)!r} is another"
        for path in config_differences(adapter.base.config, checkpoint.config)
    ]
    told = adapter.base.tensors
    for name, tensor in told.items():
        spec = checkpoint.specs.get(name)
        if spec is None:
            found.append(f"tensor {name!r} is missing")
        elif spec != tensor.spec:
            found.append(
                f"tensor {name!r} is {spec.dtype} {list(spec.shape)}, expected "
                f"{tensor.spec.dtype} {list(tensor.spec.shape)}"
            )
    found += [f"tensor {name!r} is not in it" for name in checkpoint.specs if name not in told]
    return found


def find_content_differences(
    found: Mapping[str, DigestedTensor], adapter: BlockAdapter
) -> list[str]:
    """Return the names of tensors whose bytes are others than those of the adapter's base."""
    return [
        name
        for name, tensor in adapter.base.tensors.items()
        if name in found and found[name].sha256 != tensor.sha256
    ]


def is_known_by_files(sha256: Mapping[str, str | None], adapter: BlockAdapter) -> bool:
    """Tell whether file digests, by shard, prove that the base is the adapter's."""
    return {shard.name: shard.sha256 for shard in adapter.base.shards} == dict(sha256)
