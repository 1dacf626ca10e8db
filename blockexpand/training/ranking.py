"""Which decoder layers matter least on a text: how little each changes, and the loss without it.

Source of the first measure: ShortGPT, arXiv 2403.03853, section 3.1 (block influence).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

from ..errors import TrainingError
from .layerwise import OpenModel

_ROWS = 8
"""Streams that a layer computes at once: more take more memory and are hardly faster."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerScore:
    """How much a layer matters on a text.

    `influence` is 1 − the cosine of its input and its output, the mean over tokens, from 0 (it
    changes nothing) to 2; `loss_rise` is the rise of the loss, in nats a token, without the layer.
    """

    layer: int
    influence: float
    loss_rise: float


def score_layers(
    opened: OpenModel, examples: Sequence[Sequence[int]], advance: Callable[[int], object]
) -> tuple[float, tuple[LayerScore, ...]]:
    """Return the model's loss on examples, in nats a token, and the scores of its layers.

    `examples` have the same length and are run one at a time. What runs without layer i starts
    behind it with its input, so that layer k is computed for k + 1 streams at most, `[rows, tokens,
    width]`, and all of them are the memory that is taken besides one layer. `advance` is told of
    each layer that an example has passed.
    Raises: TrainingError where the model computes something between its layers.
    """
    import torch

    count, layers = len(examples), len(opened.layers)
    influence = [0.0] * layers
    losses = [0.0] * (layers + 1)
    device = torch.device("cpu") if not opened.is_whole else next(opened.model.parameters()).device
    with torch.no_grad():
        for example in examples:
            ids = torch.tensor([list(example)], device=device)
            streams, forms = _run_streams(opened, ids, influence, advance)
            for row in range(layers + 1):
                losses[row] += _end(opened, ids, streams[row : row + 1], forms)
    whole, *without = (loss / count for loss in losses)
    scores = tuple(
        LayerScore(
            layer=number, influence=influence[number] / count, loss_rise=without[number] - whole
        )
        for number in range(layers)
    )
    return whole, scores


def _run_streams(
    opened: OpenModel, ids: Any, influence: list[float], advance: Callable[[int], object]
) -> tuple[Any, list[Any]]:
    """Return what leaves the last layer: the whole model's stream, then that without each layer.

    And what each layer returned beside its stream, None where it returns that alone.
    """
    import torch

    streams: Any = None
    forms: list[Any] = []

    def pass_layer(number: int, forward: Callable[..., Any], *words: Any, **named: Any) -> Any:
        nonlocal streams
        before = words[0] if words else named["hidden_states"]
        if streams is None:
            streams = before
        elif not torch.equal(before, streams[:1]):
            raise TrainingError(
                "this model computes something between its layers, so that they cannot be left "
                "out one at a time"
            )
        with opened.within(number):
            made, form = _run_rows(forward, streams, words, named)
        change = 1 - torch.cosine_similarity(streams[:1].float(), made[:1].float(), dim=-1)
        influence[number] += float(change.mean())
        streams = torch.cat([made, streams[:1]])
        advance(number)
        forms.append(form[1:] if isinstance(form, tuple) else None)
        return _give(made[:1], forms[number])

    with _replaced(opened.layers, pass_layer):
        opened.model(input_ids=ids, use_cache=False)
    return streams, forms


def _give(stream: Any, form: Any) -> Any:
    return stream if form is None else (stream, *form)


def _run_rows(forward: Any, streams: Any, words: Any, named: Any) -> tuple[Any, Any]:
    """Run a layer on each stream, several at once; return the outputs and the form of the last."""
    import torch

    made = []
    output: Any = None
    size = _ROWS
    start = 0
    while start < len(streams):
        rows = streams[start : start + size]
        try:
            # What goes with the stream (positions, masks) is that of one row, and fits all.
            if words:
                output = forward(rows, *words[1:], **named)
            else:
                output = forward(**{**named, "hidden_states": rows})
        except (RuntimeError, ValueError, IndexError):
            if size == 1:
                raise
            size = 1
            continue
        made.append(output[0] if isinstance(output, tuple) else output)
        start += size
    return torch.cat(made), output


def _end(opened: OpenModel, ids: Any, stream: Any, forms: list[Any]) -> float:
    """Return the loss of what leaves the last layer, by the model's own norm, head and loss."""

    def jump(number: int, forward: Any, *words: Any, **named: Any) -> Any:
        return _give(stream, forms[number])

    with _replaced(opened.layers, jump):
        return float(opened.model(input_ids=ids, labels=ids, use_cache=False).loss)


@contextmanager
def _replaced(layers: Sequence[Any], by: Callable[..., Any]) -> Iterator[None]:
    """Let another function run in place of each layer's own; it is given its number and that."""
    for number, layer in enumerate(layers):
        layer.forward = partial(by, number, layer.forward)
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward
