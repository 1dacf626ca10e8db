"""Is this the base that an adapter was trained in? Config, headers and digests, compared. Pure."""

from __future__ import annotations

from collections.abc import Mapping

from ..checkpoints.checkpoint import Checkpoint
from ..errors import CheckpointError
from ..formats.json_object import JsonObject
from ..messages import show
from ..models.decoder import Decoder
from ..models.surgery import plan_surgery
from .extraction import config_differences
from .format import ADAPTER_FILE, BlockAdapter, DigestedTensor
from .opening import OpenedAdapter


def check_neutral(decoder: Decoder, config: JsonObject, opened: OpenedAdapter) -> None:
    """Refuse an adapter whose neutral values are not those that its family's blocks begin with.

    With others, scale 0 would not give the base back. Raises: CheckpointError.
    """
    adapter = opened.adapter
    surgery = plan_surgery(decoder, config, adapter.layer_map)
    expected = {
        suffix: constant
        for index in adapter.new_layers
        for suffix, constant in surgery.neutral[adapter.layer_map[index].source].items()
    }
    if expected != adapter.neutral:
        wrong = sorted(set(expected.items()) ^ set(adapter.neutral.items()))
        raise CheckpointError(
            f"{opened.root}: {ADAPTER_FILE}: neutral: {show(wrong[0][0])} is not as a new layer of "
            f"{decoder.model_type!r} begins; fetch the adapter again, or extract it again"
        )


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
