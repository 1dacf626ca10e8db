"""What a training takes of memory and disk: an estimate from the headers, before a model is loaded.

Activations are not in it: they depend on the model's code.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from ..errors import TrainingError
from ..formats.tensor_spec import FLOAT_DTYPES, TensorSpec
from ..planning.parameters import count_tensors

_TRAINED_NBYTES = 16
"""Of a trained parameter: itself, its gradient and Adam's two moments, in float32."""

_STATE_NBYTES = 12
"""Of a trained parameter in a state that is saved: without its gradient."""

_WIDTHS = {"bfloat16": 2, "float32": 4}


def estimate_memory(
    specs: Mapping[str, TensorSpec], layer_prefix: str, new_layers: Collection[int], dtype: str
) -> int:
    """Return the bytes of weights, gradients and Adam's moments, without activations."""
    counted = count_tensors(specs.items(), layer_prefix, new_layers)
    return counted.original * _WIDTHS[dtype] + counted.packed_nbytes + counted.new * _TRAINED_NBYTES


def estimate_states(
    specs: Mapping[str, TensorSpec], layer_prefix: str, new_layers: Collection[int]
) -> int:
    """Return the bytes of disk that the states of a run take: two at a time, and the blocks."""
    new = count_tensors(specs.items(), layer_prefix, new_layers).new
    return new * (2 * _STATE_NBYTES + 4)


def choose_dtype(specs: Mapping[str, TensorSpec], names: Collection[str]) -> str:
    """Return what is computed in: bfloat16 where new blocks are stored in it, else float32."""
    dtypes = {specs[name].dtype for name in names if specs[name].dtype in FLOAT_DTYPES}
    return "bfloat16" if dtypes == {"BF16"} else "float32"


def check_memory(needed: int, processes: int, *, on_gpu: bool) -> None:
    """Refuse what cannot fit, activations aside; `needed` is for each process of this machine.

    Raises: TrainingError.
    """
    if on_gpu:
        import torch

        free, where, count = torch.cuda.mem_get_info()[1], "the GPU", 1
    else:
        import psutil  # type: ignore[import-untyped]  # accelerate needs it too

        free, where, count = psutil.virtual_memory().available, "this machine", processes
    if needed * count > free:
        each = f" for {count} processes" if count > 1 else ""
        raise TrainingError(
            f"training takes {needed * count / 1e9:.1f} GB of memory{each} and activations on top; "
            f"{where} has {free / 1e9:.1f} GB; use a larger one, fewer new blocks, or --fsdp over "
            "several"
        )
