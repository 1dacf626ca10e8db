"""Readers that tell what a layer is from its number alone, and what they make of a layer map. Pure.

`transformers` from 4.53 on reads `layer_types` and its like, which an expansion rewrites. Other
readers have a period built in, or read one from the config: to them a layer that has moved can be
of another kind, without an error. Data, and what follows from it; it opens no file.
Source: llama.cpp as in llama-cpp-python 0.3.36 (`load_swa_pattern`, the converter's keys), mlx-lm
0.32.2, vLLM 0.32.0 (`gpt_oss.py`), the wheels of transformers 4.40 to 4.57.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import RecipeError
from .families.layer_fields import Config, get_field
from .layer_map import LayerMap, map_position, map_runs


@dataclass(frozen=True, slots=True, kw_only=True)
class NumberRule:
    """How some versions of a reader tell the kind of layer `i` of a family.

    It is `kinds[0]` where `i` + `first` is a multiple of the period, else `kinds[1]`. `period` is a
    number, or the config field that the reader takes it from (`default` where it is absent; of a
    text such as LLLG each letter is a kind).
    """

    reader: str
    versions: str
    period: int | str
    kinds: tuple[str, str]
    default: int = 0
    first: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class ReaderView:
    """What a reader that goes by numbers makes of a layer map.

    `moved` are the output layers that are originals and would run as another kind there; `untrue`
    the new ones that would run as another kind than the layer that they clone, once they are
    trained. `period` counts layers; `field` is the config field that it is read from, if it is."""

    reader: str
    versions: str
    period: int
    field: str | None
    kinds: tuple[str, str]
    moved: tuple[int, ...]
    untrue: tuple[int, ...]

    @property
    def other_tensors(self) -> bool:
        """Whether layers of the two kinds have other tensors, so that a mix-up does not load."""
        return self.kinds in (_LINEAR, _EXPERTS)

    @property
    def same_function(self) -> bool:
        """Whether the reader computes of the output what it computes of its source."""
        return not self.moved and not (self.untrue and self.other_tensors)


_LLAMA_CPP = ("llama.cpp", "b11549")
_MLX = ("mlx-lm", "0.32")
_VLLM = ("vLLM", "0.32")
_OLD = ("transformers", "before 4.53")

_WINDOW = ("full attention", "a sliding window")
_CHUNKS = ("full attention without rotary positions", "chunks with rotary positions")
_NOPE = ("no rotary positions", "rotary positions")
_LINEAR = ("attention", "linear attention")
_EXPERTS = ("experts", "a dense MLP")


def _rule(
    reader: tuple[str, str],
    period: int | str,
    kinds: tuple[str, str],
    default: int = 0,
) -> NumberRule:
    name, versions = reader
    return NumberRule(reader=name, versions=versions, period=period, kinds=kinds, default=default)


_INTERVAL = (
    _rule(_LLAMA_CPP, "full_attention_interval", _LINEAR, 4),
    _rule(_MLX, "full_attention_interval", _LINEAR, 4),
)

NUMBER_RULES: Mapping[str, tuple[NumberRule, ...]] = {
    "gemma2": (_rule(_LLAMA_CPP, 2, _WINDOW), _rule(_OLD, 2, _WINDOW)),
    "gemma3_text": (
        _rule(_LLAMA_CPP, 6, _WINDOW),
        _rule(_MLX, "sliding_window_pattern", _WINDOW, 6),
        _rule(_OLD, "sliding_window_pattern", _WINDOW, 6),
    ),
    "gpt_oss": (_rule(_LLAMA_CPP, 2, _WINDOW), _rule(_VLLM, 2, _WINDOW)),
    "smollm3": (_rule(_LLAMA_CPP, 4, _NOPE),),
    "llama4_text": (
        _rule(_LLAMA_CPP, 4, _CHUNKS),
        _rule(_LLAMA_CPP, "interleave_moe_layer_step", _EXPERTS, 1),
        _rule(_MLX, 4, _CHUNKS),
        _rule(_MLX, "interleave_moe_layer_step", _EXPERTS, 1),
        _rule(_VLLM, "interleave_moe_layer_step", _EXPERTS, 1),
        _rule(("transformers", "4.51"), 4, _CHUNKS),
    ),
    "cohere2": (
        _rule(_LLAMA_CPP, 4, _WINDOW),
        _rule(_MLX, "sliding_window_pattern", _WINDOW, 4),
        _rule(_OLD, "sliding_window_pattern", _WINDOW, 4),
    ),
    "exaone4": (_rule(_MLX, "sliding_window_pattern", _WINDOW, 0),),
    "afmoe": (_rule(_LLAMA_CPP, 4, _WINDOW),),
    "qwen3_next": _INTERVAL,
    "qwen3_5_text": _INTERVAL,
    "qwen3_5_moe_text": _INTERVAL,
}


def view_layers(text_type: str, config: Config, layer_map: LayerMap) -> tuple[ReaderView, ...]:
    """Return what each reader that goes by numbers makes of `layer_map`.

    `text_type` is the decoder's model type, `config` the object that holds its fields. Nothing for
    a family that all readers known here read from the lists of its config.
    """
    views = []
    for rule in NUMBER_RULES.get(text_type, ()):
        period = _period(rule, config)
        if period < 2:
            continue
        changed = [
            index
            for index, entry in enumerate(layer_map)
            if _kind(rule, config, index) != _kind(rule, config, entry.source)
        ]
        views.append(
            ReaderView(
                reader=rule.reader,
                versions=rule.versions,
                period=period,
                field=rule.period if isinstance(rule.period, str) else None,
                kinds=rule.kinds,
                moved=tuple(index for index in changed if not layer_map[index].is_new),
                untrue=tuple(index for index in changed if layer_map[index].is_new),
            )
        )
    return tuple(views)


def describe_views(views: Sequence[ReaderView], layer_map: LayerMap) -> tuple[str, ...]:
    """Return what to know of readers that go by numbers, in at most one line."""
    broken = [view for view in views if not view.same_function]
    untrue = [view for view in views if view.untrue]
    if broken:
        return (
            f"{_who(broken)}: {_damage(broken, layer_map)}; readers of the lists in config.json "
            "compute what the source does; --phase keep makes a model that all of them read alike",
        )
    if untrue:
        numbers = sorted({index for view in untrue for index in view.untrue})
        return (
            f"{_who(untrue)}: all readers compute what the source does, but once it is trained, "
            f"new layer {', '.join(map(str, numbers))} would run there as another kind than it was "
            "trained as; --phase keep clones layers of the right kind",
        )
    return (f"{_who(views)}: they see every layer as it was",) if views else ()


def _who(views: Sequence[ReaderView]) -> str:
    return f"{_join(views)} tell what a layer is from its number ({_rules(views)})"


def _damage(views: Sequence[ReaderView], layer_map: LayerMap) -> str:
    """Say what such readers make of the output: another function, or nothing at all."""
    originals = sum(not entry.is_new for entry in layer_map)
    most = max((len(view.moved) for view in views if not view.other_tensors), default=0)
    silent = (
        f"there up to {most} of the {originals} original layers would run as another kind, "
        "without an error"
    )
    loud = "there the model does not load, as layers have other tensors than expected"
    parts = [silent] if most else []
    return " or ".join(parts + [loud] * any(view.other_tensors for view in views))


def keep_phase(
    text_type: str,
    config: Config,
    layers: int,
    position: str | Sequence[int],
    new_layers: int | None,
) -> LayerMap:
    """Resolve a position to a layer map under which no layer changes its kind by its number.

    A named position becomes whole periods of blocks at the nearest places, each block a clone of
    the layer before it that has its phase. Raises: RecipeError for a list that would move an
    original to another phase, with the nearest list that does not.
    """
    asked = map_position(layers, position, new_layers)
    period = math.lcm(*(max(_period(rule, config), 1) for rule in NUMBER_RULES.get(text_type, ())))
    if period == 1:
        return asked
    if not isinstance(position, str):
        moved = any(view.moved for view in view_layers(text_type, config, asked))
        if moved:
            nearest = ",".join(map(str, _nearest_list(position, layers, period)))
            raise RecipeError(
                f"--phase keep: after --position {','.join(map(str, position))} some original "
                f"layers would have another place in the period of {period} layers; new blocks "
                f"before an original must come in whole periods; the nearest list is {nearest}"
            )
        return asked
    if layers < period:
        raise RecipeError(
            f"--phase keep: the model has {layers} layers, fewer than one period of {period}"
        )
    count = sum(entry.is_new for entry in asked)
    if position == "end":
        return map_runs(layers, {layers - 1: _clones(layers - 1, count, period)})
    periods = max(1, (2 * count + period) // (2 * period))
    if position == "start":
        return map_runs(layers, {-1: [i % period for i in range(periods * period)]})
    ends = [max(-(-layers * (group + 1) // periods) - 1, period - 1) for group in range(periods)]
    runs: dict[int, list[int]] = {}
    for end in ends:
        runs.setdefault(end, []).extend(_clones(end, period, period))
    return map_runs(layers, runs)


def _clones(after: int, count: int, period: int) -> list[int]:
    """Return for blocks behind layer `after` the layers up to it that have their phase."""
    return [after - period + 1 + index % period for index in range(count)]


def _nearest_list(position: Sequence[int], layers: int, period: int) -> list[int]:
    """Return a list near to `position` with whole periods before every original."""
    wanted = {place: position.count(place) for place in sorted(set(position))}
    result: list[int] = []
    for place, count in wanted.items():
        if place < layers - 1:
            count = period * max(0, (2 * count + period) // (2 * period))
        result += [place] * count
    return result or [min(wanted)] * period


def _period(rule: NumberRule, config: Config) -> int:
    value: Any = rule.period
    if isinstance(value, str):
        value = get_field(config, value, rule.default)
    if isinstance(value, str):
        return len(value)
    return value if type(value) is int and value > 0 else 0


def _kind(rule: NumberRule, config: Config, index: int) -> object:
    period = _period(rule, config)
    pattern = get_field(config, rule.period) if isinstance(rule.period, str) else None
    if isinstance(pattern, str):
        return pattern[index % period]
    return (index + rule.first) % period == 0


def _join(views: Sequence[ReaderView]) -> str:
    names = list(dict.fromkeys(f"{view.reader} {view.versions}" for view in views))
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def _rules(views: Sequence[ReaderView]) -> str:
    return "; ".join(
        dict.fromkeys(
            f"every {_ordinal(view.period)} has {view.kinds[0]}, the others {view.kinds[1]}"
            + (f", by '{view.field}'" if view.field else "")
            for view in views
        )
    )


def _ordinal(number: int) -> str:
    return {2: "second", 3: "third"}.get(number, f"{number}th")
