"""Trained parameters → tensors as the expansion's own files name, shape and store them.

`transformers` renames and joins tensors when it loads some models, and undoes that when it saves:
that is used here, for the new blocks alone, into a temporary folder.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..checkpoints.checkpoint import Shard
from ..errors import TrainingError
from ..formats.safetensors import LENGTH_NBYTES, parse_header, read_header
from ..formats.tensor_spec import TensorSpec
from ..fs.io import explain
from ..fs.reading import describe_file
from ..messages import and_more, one_line
from ..models.loading import quiet_transformers
from ..planning.manifest import Manifest
from .freezing import place_parameters

if TYPE_CHECKING:
    import torch

BLOCKS_FILE = "blocks.safetensors"

_TORCH = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}


def name_stored(
    model: Any, weights: Mapping[str, torch.Tensor], specs: Mapping[str, TensorSpec]
) -> dict[str, torch.Tensor]:
    """Return parameters under the names of a checkpoint's tensors, in its dtypes.

    `specs` are the checkpoint's. Raises: TrainingError where `transformers` saves what is no tensor
    of it.
    """
    import torch
    from safetensors.torch import load_file

    saved: dict[str, torch.Tensor] = {}
    with tempfile.TemporaryDirectory() as folder, quiet_transformers():
        try:
            model.save_pretrained(
                folder,
                state_dict={name: weight.contiguous() for name, weight in weights.items()},
            )
        except Exception as error:  # anything may fail in there
            raise TrainingError(
                f"transformers cannot save the new blocks: {one_line(error, 300)}"
            ) from error
        for file in Path(folder).glob("*.safetensors"):
            saved.update(load_file(file))
    unknown = [
        repr(name)
        for name, tensor in saved.items()
        if name not in specs
        or tuple(tensor.shape) != specs[name].shape
        or specs[name].dtype not in _TORCH
    ]
    if unknown or not saved:
        raise TrainingError(
            f"transformers saves the new blocks as {and_more(unknown) or 'nothing'}, which is not "
            "how the model's files store them; train it with another trainer (train-config)"
        )
    return {
        name: tensor.to(getattr(torch, _TORCH[specs[name].dtype])) for name, tensor in saved.items()
    }


def write_blocks(folder: Path, tensors: Mapping[str, torch.Tensor]) -> Shard:
    """Write the new blocks' tensors into a file of their own. Raises: TransferError."""
    from safetensors.torch import save_file

    path = folder / BLOCKS_FILE
    try:
        folder.mkdir(parents=True, exist_ok=True)
        save_file(dict(tensors), path, metadata={"format": "pt"})
        with path.open("rb") as stream:
            status = os.fstat(stream.fileno())
            data = read_header(stream, status.st_size)
    except OSError as error:
        raise explain("write", path, error) from error
    return Shard(
        file=describe_file(BLOCKS_FILE, status),
        header=parse_header(data[LENGTH_NBYTES:], status.st_size),
        header_bytes=data,
    )


def find_closing(
    model: torch.nn.Module, manifest: Manifest
) -> dict[int, tuple[tuple[str, float], ...]]:
    """Return for each new layer the parameters that close its branches, with their neutral values.

    Where `transformers` calls them otherwise than the files do, those that are constant.
    """
    parameters = dict(model.named_parameters())
    placed = place_parameters(parameters, manifest)
    neutral = {_shorten(suffix): value for suffix, value in manifest.neutral.items()}
    closing: dict[int, tuple[tuple[str, float], ...]] = {}
    for layer in manifest.new_layers:
        own = [parameter for parameter in placed if parameter.layer == layer]
        found = [
            (p.name, neutral[_shorten(p.suffix)]) for p in own if _shorten(p.suffix) in neutral
        ]
        closing[layer] = tuple(
            found or ((p.name, 0.0) for p in own if not parameters[p.name].any())
        )
    return closing


def _shorten(suffix: str) -> str:
    """Return a suffix without the numbers of experts, which `transformers` may keep in one."""
    parts = [part for part in suffix.removesuffix(".weight").split(".") if not part.isdecimal()]
    return ".".join(parts)
