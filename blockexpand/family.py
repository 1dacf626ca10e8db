"""What a row of the table of families says. Data only: it reads no checkpoint and decides nothing.

Tensors are named by module path within a layer (`self_attn.o_proj`), which stands for its
`.weight`, its `.bias`, the bare name and `_bias`; `{e}` stands for any number.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from .layer_fields import Config, FieldRule


@dataclass(frozen=True, slots=True, kw_only=True)
class Branch:
    """A residual branch, or one half of a layer: what makes it add nothing to the stream.

    Every layer has at least one tensor of `neutral`. In a new layer its weights are set to
    `value` and its biases to 0. `kept` are output projections that need no change because a
    neutral norm comes after them.
    """

    neutral: tuple[str, ...]
    value: float = 0.0
    kept: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """A property of the config (of `layers` layers) that makes an exact expansion impossible."""

    when: Callable[[Config, int], bool]
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """How the decoder layers of some `model_types` are named, neutralised and configured.

    `prefixes` are the spellings of what stands before the layer number. `count` lists the fields
    that hold the number of layers, besides `num_hidden_layers`. `constants` are set in a new layer
    besides its branches (a factor on the residual stream). `tail` permits layers stored past the
    end, for multi-token prediction. `float32` are tensors that the model computes in float32
    whatever its dtype. `first_layer_only` are tensors that only layer 0 has or lacks, so that it
    cannot be cloned and must stay first. `index_scaled` says that something in a layer depends on
    its number, so that only layers after the last original can be new; `refuse` names configs
    that are out of reach.
    """

    model_types: tuple[str, ...]
    branches: tuple[Branch, ...]
    prefixes: tuple[str, ...] = ("model.layers.",)
    count: tuple[str, ...] = ()
    fields: tuple[FieldRule, ...] = ()
    constants: tuple[tuple[str, float], ...] = ()
    tail: bool = False
    float32: tuple[str, ...] = ()
    first_layer_differs: bool = False
    index_scaled: Callable[[Config], str | None] | None = None
    refuse: tuple[Refusal, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Wrapper:
    """A multimodal model whose text decoder is a family of its own.

    The text config is the object `text_config`, or the root where that is absent (the layout of
    the first Qwen2-VL checkpoints); `text_type` is its model type where it names none.
    `deepstack` is the dotted path of a list whose length is the number of first layers that the
    vision tower adds features to.
    """

    model_types: tuple[str, ...]
    text_type: str
    prefixes: tuple[str, ...] = (
        "model.language_model.layers.",
        "language_model.model.layers.",
    )
    deepstack: str | None = None
