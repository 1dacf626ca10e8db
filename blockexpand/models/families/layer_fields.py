"""Rules that rewrite the per-layer fields of a model's config for another sequence of layers.

A rule reads from a config what kind each layer is, and writes the config whose layers have the
wanted kinds. `rewrite_fields` proves every rewriting by reading it back: the kind of new layer j
is the kind of its source layer, or the rewriting is refused. Pure: it knows no tensors, no files
and no model family, and it never changes the config that it is given.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TypeVar

from ...errors import CheckpointError, UnsupportedModelError
from ...messages import show

Config = Mapping[str, Any]

Path = tuple[str, ...]

Kinds = tuple[Any, ...]

Derive = Callable[[Config, int], Kinds]

FieldEdits = dict[Path, Any]

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True, kw_only=True)
class FieldRule:
    """One property of the layers and the config fields that hold it.

    `read(config, layers)` returns the kind of every layer, or None where the config does not have
    the property. `write(config, kinds, origins)` returns the edits of `config` that give layer j
    `kinds[j]`, where `origins[j]` is its source layer (-1: none in this config is of that kind), or
    None where the fields cannot express it.
    An `advisory` rule keeps a field in step that another rule's field overrides when the model is
    built; it is not proven and never a reason to refuse. `way_out` tells what to do where the
    fields cannot express the layers.
    """

    fields: tuple[str, ...]
    read: Callable[[Config, int], Kinds | None]
    write: Callable[[Config, Kinds, Sequence[int]], FieldEdits | None]
    advisory: bool = False
    way_out: str = ""


def read_kinds(rule: FieldRule, config: Config, layers: int) -> Kinds | None:
    """Return what a rule reads: the kind of each of `layers` layers.

    Raises: CheckpointError where the fields hold what no model can be built from.
    """
    kinds = _apply(rule.read, config, layers, rule=rule)
    if kinds is not None and len(kinds) != layers:
        raise CheckpointError(
            f"config.json: {_spell(rule.fields)}: expected what each of {layers} layers is, found "
            f"{len(kinds)} entries"
        )
    return kinds


def rewrite_fields(
    rules: Sequence[FieldRule], config: Config, layers: int, origins: Sequence[int]
) -> FieldEdits:
    """Return the edits of `config` (of `layers` layers) for layers taken from `origins`.

    Raises: UnsupportedModelError when a rule's fields cannot express the wanted layers;
    CheckpointError when a per-layer list has another length than the model has layers.
    """
    return combine_fields(rules, config, layers, [(config, layers, origin) for origin in origins])


def combine_fields(
    rules: Sequence[FieldRule],
    config: Config,
    layers: int,
    sources: Sequence[tuple[Config, int, int]],
) -> FieldEdits:
    """Return the edits of `config` (of `layers` layers) for layers that several configs describe.

    `sources` holds for each wanted layer the config that describes it, that config's number of
    layers, and the layer's number there.
    Raises: UnsupportedModelError when a rule's fields cannot express the wanted layers.
    """
    edits: FieldEdits = {}
    edited: Config = config
    wanted: list[tuple[FieldRule, Kinds]] = []
    for rule in rules:
        own = read_kinds(rule, config, layers)
        known = {id(other): read_kinds(rule, other, count) for other, count, _ in sources}
        if own is None and not any(known.values()):
            continue
        new: list[Any] = []
        origins: list[int] = []
        for other, _, layer in sources:
            kinds = known[id(other)]
            if own is None or kinds is None:
                raise UnsupportedModelError(
                    f"config.json: not every model of the recipe has {_spell(rule.fields)}, so its "
                    "layers cannot be described together"
                )
            new.append(kinds[layer])
            origins.append(layer if other is config else _find(own, kinds[layer]))
        changes = _apply(rule.write, edited, tuple(new), origins, rule=rule)
        if not rule.advisory:
            wanted.append((rule, tuple(new)))
        if changes:
            edits.update(changes)
            edited = apply_edits(edited, changes)
    _prove(wanted, edited, len(sources))
    return edits


def apply_edits(config: Config, edits: Mapping[Path, Any]) -> dict[str, Any]:
    """Return a copy of `config` with the value at each path replaced."""
    result = dict(config)
    for path, value in edits.items():
        if len(path) > 1:
            value = apply_edits(result[path[0]], {path[1:]: value})
        result[path[0]] = value
    return result


def get_field(config: Config, field: str, default: Any = None) -> Any:
    """Return a field by its name, or by the dotted path of a nested one; null counts as absent."""
    value: Any = config
    for key in field.split("."):
        value = value.get(key) if isinstance(value, Mapping) else None
    return default if value is None else value


def listed(
    *names: str,
    derive: Derive | None = None,
    last: str | None = None,
    or_scalar: bool = False,
    tail: str | None = None,
) -> FieldRule:
    """Make the rule of a list with one entry per layer, under one of several spellings.

    Where no spelling is present (or the list is empty), `derive` is the library's own formula; a
    pattern that the new depth breaks is then written out under the first spelling. `last` is what
    the library makes of the last layer whatever the list says; `or_scalar` permits one value that
    holds for all layers. `tail` is the field with the number of layers stored past the end, for
    which the list may go on.
    """

    def padding(config: Config, value: Sequence[Any], layers: int) -> Sequence[Any]:
        more = get_field(config, tail, 0) if tail else 0
        return value[layers:] if len(value) == layers + more else value[:0]

    def present(config: Config) -> dict[str, Sequence[Any]]:
        lists: dict[str, Sequence[Any]] = {}
        for name in names:
            value = get_field(config, name)
            empty = value is None or (value == [] and derive is not None)
            if not empty and not (or_scalar and not isinstance(value, list)):
                lists[name] = value
        return lists

    def read(config: Config, layers: int) -> Kinds | None:
        kinds: Kinds | None = None
        for name, value in present(config).items():
            own = isinstance(value, (list, tuple, str))
            if not own or len(value) - len(padding(config, value, layers)) != layers:
                raise CheckpointError(
                    f"config.json: {name!r} must have one entry per layer; "
                    f"expected {layers}, found {_length(value)}"
                )
            kinds = tuple(value[:layers]) if kinds is None else kinds
        if kinds is None:
            kinds = None if derive is None else derive(config, layers)
        return kinds if kinds is None or last is None else (*kinds[:-1], last)

    def write(config: Config, kinds: Kinds, origins: Sequence[int]) -> FieldEdits | None:
        edits: FieldEdits = {}
        for name, value in present(config).items():
            by_kind = last is not None or min(origins) < 0
            if by_kind and last is None and len(present(config)) > 1:
                return None  # the other spellings have words of their own for the kind
            new = list(kinds) if by_kind else [value[origin] for origin in origins]
            own = len(value) - (get_field(config, tail, 0) if tail else 0)
            new += value[own:] if max(origins) < own else []
            edits[_path(name)] = "".join(new) if isinstance(value, str) else new
        if not edits and read(config, len(origins)) != kinds:
            edits[_path(names[0])] = list(kinds)
        return edits

    return FieldRule(fields=names, read=read, write=write)


def numbered(name: str) -> FieldRule:
    """Make the rule of an object that is keyed by layer number, with an entry for some layers.

    The numbers may be padded with zeros, as `transformers` saves them.
    """

    def read(config: Config, layers: int) -> Kinds | None:
        entries = get_field(config, name)
        if entries is None:
            return None
        by_number = {int(key): entry for key, entry in entries.items() if key.isdecimal()}
        return tuple(by_number.get(i) for i in range(layers))

    def write(config: Config, kinds: Kinds, origins: Sequence[int]) -> FieldEdits:
        padded = any(key.startswith("0") and key != "0" for key in get_field(config, name))
        width = len(str(len(kinds) - 1)) if padded else 1
        entries = {f"{i:0{width}}": kind for i, kind in enumerate(kinds) if kind is not None}
        return {_path(name): entries}

    return FieldRule(fields=(name,), read=read, write=write)


def indexed(
    name: str, *, first: int = 0, derive: Derive | None = None, advisory: bool = False
) -> FieldRule:
    """Make the rule of a list of layer numbers, which count from `first`.

    Where it is absent, `derive` tells which layers are members.
    """

    def read(config: Config, layers: int) -> Kinds | None:
        numbers = get_field(config, name)
        if numbers is None:
            return None if derive is None else derive(config, layers)
        return tuple(index + first in numbers for index in range(layers))

    def write(config: Config, kinds: Kinds, origins: Sequence[int]) -> FieldEdits:
        numbers = [index + first for index, member in enumerate(kinds) if member]
        return {} if read(config, len(kinds)) == kinds else {_path(name): numbers}

    return FieldRule(fields=(name,), read=read, write=write, advisory=advisory)


def leading(name: str, *, default: int | None = None, advisory: bool = False) -> FieldRule:
    """Make the rule of a count of leading layers; a count of all layers goes on to be all."""

    def read(config: Config, layers: int) -> Kinds | None:
        count = get_field(config, name, default)
        return None if count is None else tuple(index < count for index in range(layers))

    def write(config: Config, kinds: Kinds, origins: Sequence[int]) -> FieldEdits | None:
        count = sum(kinds)
        if kinds != tuple(index < count for index in range(len(kinds))):
            return None
        old = get_field(config, name, default)
        if old == count or (count == len(kinds) and old > count):
            return {}
        return {_path(name): count}

    return FieldRule(fields=(name,), read=read, write=write, advisory=advisory)


def trailing(name: str) -> FieldRule:
    """Make the rule of a count of last layers, none where it is absent."""

    def read(config: Config, layers: int) -> Kinds | None:
        first = layers - get_field(config, name, 0)
        return tuple(index >= first for index in range(layers))

    def write(config: Config, kinds: Kinds, origins: Sequence[int]) -> FieldEdits | None:
        count = sum(kinds)
        if kinds != tuple(index >= len(kinds) - count for index in range(len(kinds))):
            return None
        return {} if get_field(config, name, 0) == count else {_path(name): count}

    return FieldRule(fields=(name,), read=read, write=write)


def _prove(wanted: Sequence[tuple[FieldRule, Kinds]], edited: Config, layers: int) -> None:
    """Read every kind back. Raises: UnsupportedModelError where one is not what was wanted."""
    for rule, new in wanted:
        if _apply(rule.read, edited, layers, rule=rule) != new:
            raise UnsupportedModelError(
                f"config.json: {_spell(rule.fields)} cannot express these {layers} layers: "
                f"some layer would get another behaviour than it has in the source{rule.way_out}"
            )


class _Asked(dict[str, Any]):
    """A config that notes which of its fields a rule asks for."""

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.fields: dict[str, None] = {}

    def get(self, key: str, default: Any = None) -> Any:
        self.fields[key] = None
        return super().get(key, default)


def _apply(function: Callable[..., Result], config: Config, *rest: Any, rule: FieldRule) -> Result:
    """Let a rule compute with fields that may hold anything. Raises: CheckpointError."""
    try:
        return function(config, *rest)
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        asked = _Asked(config)
        with suppress(type(error)):
            function(asked, *rest)
        found = ", ".join(
            f"{name!r} is {show(config[name])}" for name in asked.fields if name in config
        )
        raise CheckpointError(
            f"config.json: {found or 'a field is wrong'}, from which "
            f"{_spell(rule.fields)} cannot be worked out; compare it with the original model's"
        ) from error


def _find(kinds: Kinds, kind: Any) -> int:
    """Return the first layer of a kind; -1 where there is none."""
    return kinds.index(kind) if kind in kinds else -1


def _path(field: str) -> Path:
    return tuple(field.split("."))


def _spell(fields: Sequence[str]) -> str:
    return ", ".join(repr(field) for field in fields)


def _length(value: Any) -> str:
    if isinstance(value, (list, tuple, str)):
        return f"{len(value)} entries"
    return f"a value of type {type(value).__name__}"
