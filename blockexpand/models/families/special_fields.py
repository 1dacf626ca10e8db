"""Rules for per-layer fields that one family, or a few, spell in a way of their own. Pure."""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Sequence
from typing import Any

from .layer_fields import Config, Derive, FieldEdits, FieldRule, Kinds, get_field, listed


def sparse_step(
    *,
    step: str = "decoder_sparse_step",
    dense: str = "mlp_only_layers",
    default: tuple[int, ...] = (),
) -> FieldRule:
    """Make Qwen-MoE's rule: experts in every `step`-th layer, except in those that `dense` lists.

    A step that the new depth breaks becomes 1, with every dense layer in the list.
    """

    def read(config: Config, layers: int) -> Kinds:
        period, listed = get_field(config, step, 1), get_field(config, dense, default)
        return tuple(i not in listed and (i + 1) % period == 0 for i in range(layers))

    def write(config: Config, kinds: Kinds, origins: Sequence[int]) -> FieldEdits:
        if read(config, len(kinds)) == kinds:
            return {}
        edits: FieldEdits = {(dense,): [i for i, sparse in enumerate(kinds) if not sparse]}
        return edits if get_field(config, step, 1) == 1 else edits | {(step,): 1}

    return FieldRule(fields=(step, dense), read=read, write=write)


def sparse_range() -> FieldRule:
    """Make ERNIE 4.5's rule: experts from a first to a last layer (-1: the last), by interval."""
    first, last, interval = "moe_layer_start_index", "moe_layer_end_index", "moe_layer_interval"

    def read(config: Config, layers: int) -> Kinds:
        end = get_field(config, last, -1)
        end = layers - 1 if end == -1 else end
        start, step = get_field(config, first, 1), get_field(config, interval, 1)
        return tuple((i + 1) % step == 0 and start <= i <= end for i in range(layers))

    def write(config: Config, kinds: Kinds, origins: Sequence[int]) -> FieldEdits:
        if read(config, len(kinds)) == kinds:
            return {}
        sparse = [i for i, kind in enumerate(kinds) if kind]
        if not sparse:
            return {(first,): len(kinds), (last,): len(kinds)}
        return {(first,): sparse[0], (last,): sparse[-1]}

    return FieldRule(fields=(first, last, interval), read=read, write=write)


def periodic(
    period: str,
    offset: str,
    *,
    default: tuple[int, int],
    unless: Callable[[Config], bool] = lambda config: False,
) -> FieldRule:
    """Make Jamba's rule: the layers i with i % `period` == `offset` are of another kind.

    The fields say nothing where `unless` holds.
    """

    def read(config: Config, layers: int) -> Kinds | None:
        if unless(config):
            return None
        step = get_field(config, period, default[0])
        start = config.get(offset, default[1])
        return tuple(index % step == start for index in range(layers))

    def write(config: Config, kinds: Kinds, origins: Sequence[int]) -> FieldEdits | None:
        layers = len(kinds)
        if read(config, layers) == kinds:
            return {}
        for step in range(1, layers + 2):
            for start in range(step):
                if tuple(index % step == start for index in range(layers)) == kinds:
                    return {(period,): step, (offset,): start}
        return None

    return FieldRule(
        fields=(period, offset),
        read=read,
        write=write,
        way_out="; a --recipe that repeats a whole period of layers at the end, with the outputs "
        "scaled by 0, keeps the pattern",
    )


def cycled(name: str, *, default: tuple[str, ...] = ()) -> FieldRule:
    """Make RecurrentGemma's rule: a list that is repeated to the depth of the model."""

    def read(config: Config, layers: int) -> Kinds | None:
        cycle = get_field(config, name, default)
        return tuple(cycle[index % len(cycle)] for index in range(layers)) if cycle else None

    def write(config: Config, kinds: Kinds, origins: Sequence[int]) -> FieldEdits:
        return {} if read(config, len(kinds)) == kinds else {(name,): list(kinds)}

    return FieldRule(fields=(name,), read=read, write=write)


def key_sources(name: str) -> FieldRule:
    """Make the rule of a list that gives for each layer the one whose keys and values it uses.

    A layer is of the kind that has its own, or of that which uses those of the n-th lender.
    """

    def read(config: Config, layers: int) -> Kinds | None:
        sources = get_field(config, name)
        if sources is None:
            return None
        lenders = sorted({source for index, source in enumerate(sources) if source != index})
        return tuple(
            -1 if source == index else lenders.index(source) for index, source in enumerate(sources)
        )

    def write(config: Config, kinds: Kinds, origins: Sequence[int]) -> FieldEdits | None:
        sources = get_field(config, name)
        lenders = sorted({source for index, source in enumerate(sources) if source != index})
        if min(origins) < 0 or not set(lenders) <= set(origins):
            return None
        places = [list(origins).index(lender) for lender in lenders]
        new = [index if kind < 0 else places[kind] for index, kind in enumerate(kinds)]
        return {} if new == sources else {(name,): new}

    return FieldRule(fields=(name,), read=read, write=write)


def step_experts() -> FieldRule:
    """Make Step's rule: a list of kinds, or the numbers of the layers with experts.

    Either may go on for the layers that are stored past the end. Without both, experts begin after
    three layers.
    """
    kinds_name, numbers_name, more = (
        "mlp_layer_types",
        "moe_layers_enum",
        "num_nextn_predict_layers",
    )

    def numbers(config: Config, layers: int) -> list[int]:
        stated = get_field(config, numbers_name)
        if isinstance(stated, str):
            return [int(number) for number in stated.split(",") if number.strip()]
        return list(range(3, layers) if stated is None else stated)

    def read(config: Config, layers: int) -> Kinds:
        stated = get_field(config, kinds_name)
        if stated is not None and len(stated) in (layers, layers + get_field(config, more, 0)):
            return tuple(stated[:layers])
        sparse = numbers(config, layers)
        return tuple("sparse" if index in sparse else "dense" for index in range(layers))

    def write(config: Config, kinds: Kinds, origins: Sequence[int]) -> FieldEdits | None:
        stated = get_field(config, kinds_name)
        tail = get_field(config, more, 0)
        if stated is None and get_field(config, numbers_name) is None:
            if read(config, len(kinds)) == kinds:
                return {}
            return {(kinds_name,): [*kinds, *["dense"] * tail]}
        if stated is not None:
            layers = 1 + max(origins)
            return {(kinds_name,): [*kinds, *stated[layers:]]}
        new = [index for index, kind in enumerate(kinds) if kind == "sparse"]
        was = get_field(config, numbers_name)
        return {(numbers_name,): ",".join(map(str, new)) if isinstance(was, str) else new}

    return FieldRule(fields=(kinds_name, numbers_name), read=read, write=write)


def shared_blocks(name: str, derive: Derive) -> FieldRule:
    """Make Zamba's rule: a list of kinds, where no hybrid layer is like another."""
    plain = listed(name, "layer_types", derive=derive)

    def read(config: Config, layers: int) -> Kinds | None:
        kinds = plain.read(config, layers)
        if kinds is None:
            return None
        return tuple(
            f"hybrid {kinds[:index].count('hybrid')}" if kind == "hybrid" else kind
            for index, kind in enumerate(kinds)
        )

    def write(config: Config, kinds: Kinds, origins: Sequence[int]) -> FieldEdits | None:
        return plain.write(config, tuple(kind.partition(" ")[0] for kind in kinds), origins)

    return FieldRule(fields=plain.fields, read=read, write=write)


def last_differs() -> FieldRule:
    """Make the rule of a last layer that has a tensor which the others lack, with no field."""

    def read(config: Config, layers: int) -> Kinds:
        return tuple(index == layers - 1 for index in range(layers))

    return FieldRule(fields=(), read=read, write=lambda config, kinds, origins: {})


def attention_types() -> FieldRule:
    """Make GPT-Neo's rule: `[[kinds, times], …]`, and the list that it expands to, if saved."""
    types, expanded = "attention_types", "attention_layers"

    def expand(value: Any) -> Kinds:
        return tuple(kind for kinds, times in value for _ in range(times) for kind in kinds)

    def read(config: Config, layers: int) -> Kinds:
        listed = get_field(config, expanded)
        return tuple(listed or expand(get_field(config, types, [[["global", "local"], 12]])))

    def write(config: Config, kinds: Kinds, origins: Sequence[int]) -> FieldEdits:
        edits: FieldEdits = {(types,): [[[kind], 1] for kind in kinds]}
        return edits | ({(expanded,): list(kinds)} if expanded in config else {})

    return FieldRule(fields=(types, expanded), read=read, write=write)


def root_of_depth(name: str, default: float) -> FieldRule:
    """Make MiniCPM's rule: residual branches are scaled by `name` / sqrt(number of layers).

    Scales are compared in float32, in which tensors of every dtype in use are multiplied by them.
    """

    def read(config: Config, layers: int) -> Kinds | None:
        scale = config.get(name, default)
        return None if not scale else (_to_float32(scale / math.sqrt(layers)),) * layers

    def write(config: Config, kinds: Kinds, origins: Sequence[int]) -> FieldEdits:
        scale = config.get(name, default)
        layers = round((scale / kinds[0]) ** 2)
        return {(name,): scale * math.sqrt(len(kinds) / layers)}

    return FieldRule(fields=(name,), read=read, write=write)


def _to_float32(value: float) -> float:
    rounded: float = struct.unpack("<f", struct.pack("<f", value))[0]
    return rounded
