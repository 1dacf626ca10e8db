"""The formulas by which models derive a per-layer list that their config does not spell out.

Each takes (config, layers) and returns one kind per layer, or is made for one by its parameters.
Source: the `__post_init__` of the configuration classes of transformers 5.23.
"""

from __future__ import annotations

from .layer_fields import Config, Derive, Kinds, get_field

SLIDING, FULL = "sliding_attention", "full_attention"


def every(period: int | str, *, default: int = 0, last: str = FULL, other: str = SLIDING) -> Derive:
    """Every `period`-th layer is `last`, counting from 1; `period` may name a config field."""

    def derive(config: Config, layers: int) -> Kinds:
        step = get_field(config, period, default) if isinstance(period, str) else period
        return tuple(other if (index + 1) % step else last for index in range(layers))

    return derive


def every_from_first(period: int, *, last: str = FULL, other: str = SLIDING) -> Derive:
    """Every `period`-th layer is `last`, counting from 0: the first layer is."""

    def derive(config: Config, layers: int) -> Kinds:
        return tuple(other if index % period else last for index in range(layers))

    return derive


def all_layers(kind: str) -> Derive:
    """Every layer is `kind`."""
    return lambda config, layers: (kind,) * layers


def window_after(default: int) -> Derive:
    """Qwen2: the layers from `max_window_layers` on have a sliding window, if it is in use."""

    def derive(config: Config, layers: int) -> Kinds:
        first = get_field(config, "max_window_layers", default)
        window = config.get("use_sliding_window") and config.get("sliding_window", 0) is not None
        return tuple(SLIDING if window and i >= first else FULL for i in range(layers))

    return derive
