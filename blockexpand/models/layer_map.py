"""Positions → layer map: for each output layer, the source layer that it is taken from.

The general form of every request. It knows nothing of tensors, files or model families.
Source: LLaMA Pro, arXiv 2401.02415, section 3.2 (identity blocks are interleaved, one after each
group of layers, each a copy of the group's last layer).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ..errors import RecipeError


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerEntry:
    """One output layer: `source` counts from 0; `is_new` marks a clone to be made the identity.

    `model` tells which of several source models has it.
    """

    source: int
    is_new: bool = False
    model: int = 0


MAX_LAYERS = 10_000

POSITIONS = ("end", "interleaved", "start")

LayerMap = tuple[LayerEntry, ...]


def map_position(layers: int, position: str | Sequence[int], new_layers: int | None) -> LayerMap:
    """Resolve a position to the layer map of a model of `layers` layers.

    `position` is `end`, `start`, `interleaved`, or the original layers that are each followed by
    a clone of themselves (a repeated number adds several). `new_layers` is required with a name.
    Raises: RecipeError for an unknown name, a count below 1, or an index outside the model.
    """
    if not isinstance(position, str):
        return _map_list(layers, position, new_layers)
    if new_layers is None:
        raise RecipeError(f"position {position!r} needs the number of new layers too")
    if new_layers < 1:
        raise RecipeError(
            f"{new_layers} new layers: expected at least 1; there is nothing to add otherwise"
        )
    _check_total(layers, new_layers)
    match position:
        case "end":
            clones = [layers - 1] * new_layers
        case "interleaved":
            clones = _group_ends(layers, new_layers)
        case "start":
            new = LayerEntry(source=0, is_new=True)
            return (new,) * new_layers + tuple(LayerEntry(source=i) for i in range(layers))
        case _:
            raise RecipeError(
                f"position {position!r} is unknown: expected end, interleaved, start, "
                "or a comma list of original layers such as 7,15,23,31"
            )
    return _map_list(layers, clones, None)


def parse_layers(text: str) -> LayerMap:
    """Return the layers that a text lists: `0-31,31*4` is layers 0 to 31 and 4 new clones of 31.

    A number, a range, or a number with `*` for a new block, `*N` for N of them.
    Raises: RecipeError.
    """
    entries: list[LayerEntry] = []
    for word in text.split(","):
        match = re.fullmatch(r"([0-9]{1,9})(?:-([0-9]{1,9})|(\*)([0-9]{0,9}))?", word.strip())
        first = int(match[1]) if match else 0
        last = int(match[2]) if match and match[2] else first
        count = int(match[4]) if match and match[4] else 1
        if match is None or last < first or not count:
            raise RecipeError(
                f"layers {word.strip()!r}: expected a layer (7), a range (0-31), or a layer with "
                "* for a new block, a clone of it (31*, or 31*4 for four)"
            )
        if len(entries) + max(last - first + 1, count) > MAX_LAYERS:
            raise RecipeError(f"layers {text!r}: expected at most {MAX_LAYERS} layers in all")
        if match[3]:
            entries += [LayerEntry(source=first, is_new=True)] * count
        else:
            entries += [LayerEntry(source=index) for index in range(first, last + 1)]
    return tuple(entries)


def spell_layers(layer_map: LayerMap) -> str:
    """Return the shortest text from which `parse_layers` makes this map."""
    words: list[str] = []
    index = 0
    while index < len(layer_map):
        first = layer_map[index]
        end = index + 1
        step = 0 if first.is_new else 1
        while end < len(layer_map) and layer_map[end] == LayerEntry(
            source=first.source + step * (end - index), is_new=first.is_new
        ):
            end += 1
        count = end - index
        if first.is_new:
            words.append(f"{first.source}*{count if count > 1 else ''}")
        else:
            words.append(
                f"{first.source}-{first.source + count - 1}" if count > 1 else f"{first.source}"
            )
        index = end
    return ",".join(words)


def check_layers(layers: int, layer_map: LayerMap) -> None:
    """Raises: RecipeError where a map names a layer that a model of `layers` layers lacks."""
    for entry in layer_map:
        if not 0 <= entry.source < layers:
            raise RecipeError(
                f"layer {entry.source}: the model has layers 0 to {layers - 1} (counted from 0)"
            )


def keeps_originals(layers: int, layer_map: LayerMap) -> bool:
    """Tell whether all layers of the model are there, each once and in order, beside new blocks."""
    originals = [entry.source for entry in layer_map if not entry.is_new]
    return originals == list(range(layers))


def map_runs(layers: int, runs: Mapping[int, Sequence[int]]) -> LayerMap:
    """Return the map with new blocks after some layers (-1: before the first), of any sources."""
    _check_total(layers, sum(map(len, runs.values())))
    entries: list[LayerEntry] = []
    for index in range(-1, layers):
        if index >= 0:
            entries.append(LayerEntry(source=index))
        entries += [LayerEntry(source=source, is_new=True) for source in runs.get(index, ())]
    return tuple(entries)


def draw_layers(layer_map: LayerMap, width: int = 64) -> list[str]:
    """Draw the layers from the first to the last, `width` to a line; new ones stand tall."""
    bars = "".join("█" if entry.is_new else "▁" for entry in layer_map)
    return [bars[start : start + width] for start in range(0, len(bars), width)]


def has_equal_groups(layer_map: LayerMap) -> bool:
    """Tell whether every (k)-th layer is new and no other, as LLaMA Pro's trainers assume."""
    new = [index for index, entry in enumerate(layer_map) if entry.is_new]
    if not new or len(layer_map) % len(new):
        return False
    group = len(layer_map) // len(new)
    return new == list(range(group - 1, len(layer_map), group))


def list_equal_groups(layers: int) -> tuple[int, ...]:
    """Return the numbers of new layers that `interleaved` spreads over equal groups."""
    return tuple(count for count in range(1, layers + 1) if layers % count == 0)


def suggest_counts(layer_map: LayerMap) -> str:
    """Say which numbers of new layers near that of a map would make equal groups."""
    originals = sum(not entry.is_new for entry in layer_map)
    new = len(layer_map) - originals
    fitting = list_equal_groups(originals)
    below = [count for count in fitting if 1 < count <= new][-2:]
    above = [count for count in fitting if count > max(new, 1)][: 4 - len(below)]
    counts = [*below, *above] or [1]
    *first, last = map(str, counts)
    return (
        f"{', '.join(first)} or {last} new layers make equal groups"
        if first
        else (f"{last} new layers make equal groups")
    )


def _group_ends(layers: int, groups: int) -> list[int]:
    """Return the last layer of each of `groups` groups, as even as possible.

    With more groups than layers the surplus goes round: every layer gets a clone, some several.
    """
    return [-(-layers * (group + 1) // groups) - 1 for group in range(groups)]


def _map_list(layers: int, clones: Sequence[int], new_layers: int | None) -> LayerMap:
    if not clones:
        raise RecipeError("the list of layers to clone is empty: expected e.g. 7,15,23,31")
    for index in clones:
        if not 0 <= index < layers:
            raise RecipeError(
                f"position {index}: the model has layers 0 to {layers - 1} (counted from 0)"
            )
    if new_layers is not None and new_layers != len(clones):
        raise RecipeError(
            f"{new_layers} new layers contradict a list of {len(clones)} layers to clone: "
            "leave the number out"
        )
    _check_total(layers, len(clones))
    count = Counter(clones)
    entries: list[LayerEntry] = []
    for index in range(layers):
        entries.append(LayerEntry(source=index))
        entries += [LayerEntry(source=index, is_new=True)] * count[index]
    return tuple(entries)


def _check_total(layers: int, new_layers: int) -> None:
    if layers + new_layers > MAX_LAYERS:
        raise RecipeError(
            f"{new_layers} new layers beside {layers}: expected at most {MAX_LAYERS} layers in all"
        )
