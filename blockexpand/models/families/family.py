"""What a row of the table of families says. Data only: it reads no checkpoint and decides nothing.

Tensors are named by module path within a layer (`self_attn.o_proj`), which stands for its
`.weight`, its `.bias`, the bare name and `_bias`; `{e}` stands for any number.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ..layer_map import LayerMap
from .layer_fields import Config, FieldRule


@dataclass(frozen=True, slots=True, kw_only=True)
class Form:
    """One form of a residual branch: what it ends in, which tells how it is made to add nothing.

    A layer has the form if it has one of `outputs`. They are set to 0 in a new layer, unless the
    layer has one of `norms`, a norm that closes the branch: then the norm's weight is set to
    `norm_value` (its bias to 0) instead, and the outputs are copied. A norm of zeros magnifies
    what reaches it, so that behind zeroed outputs the first optimizer step would wreck the model.
    """

    outputs: tuple[str, ...]
    norms: tuple[str, ...] = ()
    norm_value: float = 0.0


Branch = tuple[Form, ...]
"""A residual branch: the forms that it takes in one layer or another."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """A property of the config that makes an exact expansion impossible."""

    when: Callable[[Config], bool]
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerTable:
    """A tensor beside the layers that has a part for each of them along dimension `axis`.

    `field` holds the size of a part, `default` is that where the config is silent; a model whose
    size is 0 has no such table.
    """

    module: str
    axis: int
    field: str
    default: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """How the decoder layers of some `model_types` are named, neutralised and configured.

    `prefixes` are the spellings of what stands before the layer number; `count` are the fields
    that hold the number of layers, the first of which is written where none is there. `constants`
    are set in a new layer besides its branches (a factor on the residual stream), `copied` are
    tensors beyond the vocabulary of those that are copied as they are. `tables` are beside the
    layers and have a part for each. `tail` permits
    layers stored past the end, for multi-token prediction. `float32` are tensors that the model
    computes in float32 whatever its dtype. `places` say why a layer map is impossible, if it is;
    `variants` has the branches where the config makes them others.
    `index_scaled` says what depends on a layer's number, so that no original may move.
    """

    model_types: tuple[str, ...]
    branches: tuple[Branch, ...]
    prefixes: tuple[str, ...] = ("model.layers.",)
    count: tuple[str, ...] = ("num_hidden_layers",)
    fields: tuple[FieldRule, ...] = ()
    constants: tuple[tuple[str, float], ...] = ()
    copied: tuple[str, ...] = ()
    tables: tuple[LayerTable, ...] = ()
    tail: bool = False
    float32: tuple[str, ...] = ()
    first_layer_differs: bool = False
    places: tuple[Callable[[Config, LayerMap], str | None], ...] = ()
    variants: tuple[tuple[Callable[[Config], bool], tuple[Branch, ...]], ...] = ()
    index_scaled: Callable[[Config], str | None] | None = None
    refuse: tuple[Refusal, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Wrapper:
    """A multimodal model whose text decoder is a family of its own.

    The text config is the object at `path`, or the root where that is absent (the layout of the
    first Qwen2-VL checkpoints); `text_type` is its model type where it names none. It is so too
    where it names one of `text_names`, which released configs have for the same class, and, with
    `fixed_text`, whatever it names: transformers then has one class for it. `deepstack` is
    the dotted path of a list whose length is the number of first layers that the vision tower adds
    features to; `fed_layers` are fields that list such layers by number (or pairs, of which the
    second is one), with what holds where they are absent. `talker` is the path of the number of
    first layers whose output a talker listens to. `auto_class` is the class of transformers that
    loads the whole model.
    """

    model_types: tuple[str, ...]
    text_type: str
    prefixes: tuple[str, ...] = (
        "model.language_model.layers.",
        "language_model.model.layers.",
    )
    path: tuple[str, ...] = ("text_config",)
    text_names: tuple[str, ...] = ()
    fixed_text: bool = False
    deepstack: str | None = None
    fed_layers: tuple[tuple[str, tuple[int, ...]], ...] = ()
    talker: str | None = None
    auto_class: str = "AutoModelForImageTextToText"
