"""What a toy's layers are built like, and whether its new ones can learn: a guessed row's proof.

Logits do not show what a layer is whose output is zero, nor what is zeroed without need. It reads
models that are built, and knows no checkpoint.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING, Any

from ..planning.plan import Plan

if TYPE_CHECKING:
    import torch

# What tells of a layer's place, not of what it is.
_OF_THE_PLACE = frozenset(
    {"layer_idx", "layer_id", "layer_number", "training", "store_full_length_kv"}
)


def find_odd_layer(
    source: Any, made: Any, plan: Plan, ids: torch.Tensor, compared: Collection[int] = ()
) -> str:
    """Say which layer of a toy is not what its source layer is, or cannot learn; nothing if none.

    `source` and `made` are the toys of a plan's source and output. Factors are left out of layers
    whose work is `compared` with that of their source, and of originals, as logits show them.
    """
    name = plan.layer_prefix.rstrip(".").rpartition(".")[2]
    originals = _find_layers(source, plan.original_layers, name)
    layers = _find_layers(made, len(plan.layer_map), name)
    if originals is None or layers is None:
        return f"has no one list of layers called {name!r}, so that they cannot be compared"
    for index, entry in enumerate(plan.layer_map):
        is_shown = index in compared or not entry.is_new
        if odd := _compare_traits(originals, layers, index, entry.source, is_shown):
            return odd
    return _find_idle(originals, layers, made, plan, ids)


def find_other_factor(source: Any, made: Any, plan: Plan) -> str:
    """Say which new layer of a toy has another factor than its source layer; nothing if none."""
    name = plan.layer_prefix.rstrip(".").rpartition(".")[2]
    originals = _find_layers(source, plan.original_layers, name)
    layers = _find_layers(made, len(plan.layer_map), name)
    found = (
        _compare_traits(originals, layers, index, plan.layer_map[index].source, False)
        for index in plan.new_layers
    )
    return next(filter(None, found), "")


def _compare_traits(originals: Any, layers: Any, index: int, source: int, is_shown: bool) -> str:
    expected, found = _traits(originals[source]), _traits(layers[index])
    for key in sorted(expected.keys() | found.keys()):
        old, new = expected.get(key), found.get(key)
        if old == new or _is_of_the_place(old, new, (source, index), (len(originals), len(layers))):
            continue
        if is_shown and isinstance(old, float) and isinstance(new, float):
            continue
        return (
            f"has a layer {index} that is not built like its source layer {source}: {key} is "
            f"{new!r}, expected {old!r}"
        )
    return ""


def _is_of_the_place(
    old: object, new: object, numbers: tuple[int, int], depths: tuple[int, int]
) -> bool:
    """Tell whether a number is the layer's own, from 0 or from 1, or that of all layers."""
    places = (numbers, (numbers[0] + 1, numbers[1] + 1), depths)
    return type(old) is int and type(new) is int and (old, new) in places


def _find_layers(model: Any, depth: int, name: str) -> Any:
    import torch

    found = [
        module
        for path, module in model.named_modules()
        if isinstance(module, torch.nn.ModuleList)
        and len(module) == depth
        and path.rpartition(".")[2] == name
        and not any(tower in path for tower in ("vision", "visual", "audio"))
    ]
    return found[0] if len(found) == 1 else None


def _traits(layer: Any) -> dict[str, Any]:
    """Return the class of every module of a layer, and its plain attributes but its number."""
    import torch

    found: dict[str, Any] = {}
    for name, module in layer.named_modules():
        found[name] = type(module).__name__
        for key, value in vars(module).items():
            if key.startswith("_") or key in _OF_THE_PLACE:
                continue
            if isinstance(value, float):  # what a float32 tensor is multiplied by
                found[f"{name}.{key}"] = float(torch.tensor(value, dtype=torch.float32))
            elif isinstance(value, bool | int | str | tuple | None):
                found[f"{name}.{key}"] = value
    return found


def _find_idle(originals: Any, layers: Any, model: Any, plan: Plan, ids: torch.Tensor) -> str:
    """Name a parameter that is set to a constant in a new layer and gets no gradient."""
    import torch

    model.requires_grad_(False)
    changed: dict[str, Any] = {}
    for index in plan.new_layers:
        cloned = dict(originals[plan.layer_map[index].source].named_parameters())
        layers[index].requires_grad_(True)
        for name, parameter in layers[index].named_parameters():
            if name in cloned and not torch.equal(parameter, cloned[name]):
                changed[f"{index}.{name}"] = parameter
    logits = model(input_ids=ids, use_cache=False).logits
    target = ids[:, 1:].flatten()
    loss: Any = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), target)
    loss.backward()
    if not changed:
        return "has new layers in which nothing is set to a constant"
    for name, parameter in changed.items():
        if parameter.grad is None or not parameter.grad.abs().sum() > 0:
            return f"has a tensor that is set to a constant and could never learn: layer {name}"
    return ""
