"""Which decoder layers matter least on a text: how little each changes, and the loss without it.

Source of the first measure: ShortGPT, arXiv 2403.03853, section 3.1 (block influence).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..errors import TrainingError
from ..models.runtime import runtime_prefixes

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerScore:
    """How much a layer matters on a text.

    `influence` is 1 − the cosine of its input and its output, the mean over tokens, from 0 (it
    changes nothing) to 2; `loss_rise` is the rise of the loss, in nats a token, without the layer.
    """

    layer: int
    influence: float
    loss_rise: float


def find_layers(model: torch.nn.Module, model_type: str, prefix: str) -> Sequence[torch.nn.Module]:
    """Return the decoder layers of a loaded model, in order. Raises: TrainingError."""
    for runtime in runtime_prefixes(model_type, prefix):
        try:
            found: Any = model.get_submodule(runtime.rstrip("."))
        except AttributeError:
            continue
        return list(found)
    raise TrainingError(f"the loaded model has no layers under {prefix!r}")


def score_layers(
    model: Any,
    layers: Sequence[torch.nn.Module],
    examples: Sequence[Sequence[int]],
    advance: Callable[[int], object],
) -> tuple[float, tuple[LayerScore, ...]]:
    """Return the model's loss on examples, in nats a token, and the scores of its layers.

    `examples` have the same length and are run one at a time. `advance` is told of each run: one
    for the whole model and one without each layer, for each example.
    """
    import torch

    device = next(model.parameters()).device
    influence = [0.0] * len(layers)
    whole, without = 0.0, [0.0] * len(layers)

    def loss(ids: torch.Tensor) -> float:
        value = float(model(input_ids=ids, labels=ids, use_cache=False).loss)
        advance(1)
        return value

    with torch.no_grad():
        for example in examples:
            ids = torch.tensor([list(example)], device=device)
            hooks = [
                layer.register_forward_hook(_measure(influence, number), with_kwargs=True)
                for number, layer in enumerate(layers)
            ]
            try:
                whole += loss(ids)
            finally:
                for hook in hooks:
                    hook.remove()
            for number, layer in enumerate(layers):
                hook = layer.register_forward_hook(_pass_through, with_kwargs=True)
                try:
                    without[number] += loss(ids)
                finally:
                    hook.remove()
    count = len(examples)
    scores = tuple(
        LayerScore(
            layer=number,
            influence=influence[number] / count,
            loss_rise=(without[number] - whole) / count,
        )
        for number in range(len(layers))
    )
    return whole / count, scores


def _measure(influence: list[float], number: int) -> Callable[..., None]:
    def hook(_: Any, arguments: Any, named: Any, output: Any) -> None:
        import torch

        before, after = (_stream(value).float() for value in (_input(arguments, named), output))
        influence[number] += float((1 - torch.cosine_similarity(before, after, dim=-1)).mean())

    return hook


def _pass_through(_: Any, arguments: Any, named: Any, output: Any) -> Any:
    before = _input(arguments, named)
    return (before, *output[1:]) if isinstance(output, tuple) else before


def _input(arguments: Any, named: Any) -> Any:
    return arguments[0] if arguments else named["hidden_states"]


def _stream(value: Any) -> torch.Tensor:
    found: torch.Tensor = value[0] if isinstance(value, tuple) else value
    return found
