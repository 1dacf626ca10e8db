"""A mergekit passthrough recipe as values, and the scale that it gives a tensor. Pure.

It knows no YAML and no checkpoint. Models are named as the recipe names them.
Source: mergekit 0.1.5, whose evaluation of conditions, gradients and precedence is repeated here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Condition:
    """A scale for the tensors whose name contains `filter` (None: for all).

    Several `values` are a gradient: interpolated from a slice's first layer to its last.
    """

    values: tuple[float, ...]
    filter: str | None = None

    def holds_for(self, name: str) -> bool:
        return self.filter is None or self.filter == "*" or self.filter in name


# The first condition that holds counts.
Scale = tuple[Condition, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class MergeSlice:
    """Layers `first` to `last` (excluded) of one model, in order; None means all of its layers.

    `scales` are the settings that hold here, the one that goes before the others first. `line` is
    where the recipe says it.
    """

    model: str
    line: int
    first: int | None = None
    last: int | None = None
    scales: tuple[Scale, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class MergeRecipe:
    """A passthrough merge. `text` is the YAML that it was read from, `file` that file's name.

    Weights are converted to `dtype`, scaled, and converted to `out_dtype`; None keeps what is
    there. The config is `base_model`'s, or that of the first slice's model; the tokenizer is
    `tokenizer_source`'s (`base` is spelled out), None if the recipe does not name one.
    """

    file: str
    text: str
    slices: tuple[MergeSlice, ...]
    dtype: str | None = None
    out_dtype: str | None = None
    base_model: str | None = None
    tokenizer_source: str | None = None

    @property
    def base(self) -> str:
        """The model whose config the output has."""
        return self.base_model or self.slices[0].model

    @property
    def models(self) -> tuple[str, ...]:
        """Every model that is named, the one whose config the output has first."""
        named = [self.base, *(part.model for part in self.slices)]
        if self.tokenizer_source is not None:
            named.append(self.tokenizer_source)
        return tuple(dict.fromkeys(named))


def find_factor(scales: Sequence[Scale], name: str, t: float) -> float:
    """Return what a tensor is multiplied with; 1 where no setting holds for it.

    `name` is the tensor's name in the model that it is taken from; `t` runs from 0 to 1 over the
    layers of a slice.
    """
    for scale in scales:
        for condition in scale:
            if condition.holds_for(name):
                return _interpolate(condition.values, t)
    return 1.0


def layer_position(index: int, layers: int) -> float:
    """Return `t` of layer `index` of a slice. A slice of a single layer is at its end."""
    return index / (layers - 1) if layers > 1 else 1.0


def _interpolate(values: Sequence[float], t: float) -> float:
    scaled = t * (len(values) - 1)
    below = int(scaled)
    above = min(len(values) - 1, below + 1)
    part = scaled - below
    return (1 - part) * values[below] + part * values[above]
