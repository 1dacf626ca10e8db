"""What processes of a training share out, brought together: parameters, moments, growth.

Every process has to ask for the same at the same time.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ..errors import TrainingError

if TYPE_CHECKING:
    import torch

    from .loop import Training

MOMENTS = ("exp_avg", "exp_avg_sq")


def gather(value: torch.Tensor) -> torch.Tensor:
    """Return a tensor whole and on the CPU; every process has to ask."""
    whole: Any = value.detach()
    if hasattr(whole, "full_tensor"):
        whole = whole.full_tensor()
    result: torch.Tensor = whole.to("cpu", copy=True)
    return result


def gather_state(training: Training) -> dict[str, dict[str, torch.Tensor]]:
    """Return the trained parameters and Adam's moments, whole; every process has to ask."""
    state: dict[str, dict[str, torch.Tensor]] = {"weights": {}, **{name: {} for name in MOMENTS}}
    for name, parameter in training.trained.items():
        state["weights"][name] = gather(parameter)
        for moment in MOMENTS:
            state[moment][name] = gather(training.optimizer.state[parameter][moment])
    return state


def restore_state(
    training: Training, tensors: Mapping[str, Mapping[str, torch.Tensor]], step: int
) -> None:
    """Put a state back that `gather_state` returned after `step` steps.

    Raises: TrainingError where it is of other parameters.
    """
    import torch

    for name in ("weights", *MOMENTS):
        if tensors[name].keys() != training.trained.keys():
            raise TrainingError(f"the state of step {step} is of another model: {name} differ")
    with torch.no_grad():
        for name, parameter in training.trained.items():
            parameter.copy_(_scatter(tensors["weights"][name], parameter))
            training.optimizer.state[parameter] = {
                "step": torch.tensor(float(step)),
                **{m: _scatter(tensors[m][name], parameter).clone() for m in MOMENTS},
            }


def _scatter(whole: torch.Tensor, like: Any) -> torch.Tensor:
    """Return this process's part of a tensor, as a parameter is shared out."""
    if not hasattr(like, "full_tensor"):
        return whole.to(like.device)
    from torch.distributed.tensor import distribute_tensor

    part: torch.Tensor = distribute_tensor(whole.to(like.device), like.device_mesh, like.placements)
    return part


def measure_growth(
    training: Training, closing: Mapping[int, Sequence[tuple[str, float]]]
) -> dict[int, float]:
    """Return for each new layer how far what closes its branches is from letting nothing through.

    `closing` has parameters' names with their neutral values; the result is the Euclidean norm of
    the difference of all of a layer's.
    """
    growth = {}
    for layer, parameters in closing.items():
        squares = 0.0
        for name, neutral in parameters:
            moved = gather(training.trained[name]).double() - neutral
            squares += float(moved.square().sum())
        growth[layer] = math.sqrt(squares)
    return growth
