"""Two checkpoints → which layer of one is which of the other, from the tensors alone.

For outputs that nothing relates to their source: those of other tools, and what trainers save.
Samples of the tensors tell layers apart; whether all of a layer is equal is compared elsewhere.
"""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping

from ..checkpoints.checkpoint import Checkpoint
from ..errors import RecipeError
from ..formats.elements import convert_slice
from ..formats.tensor_spec import DTYPE_BITS, FLOAT_DTYPES, TensorSpec
from ..models.decoder import split_name
from ..models.layer_map import LayerEntry, LayerMap

_SAMPLE_NBYTES = 2048

Layers = Mapping[int, Mapping[str, str]]
"""By layer, and by what follows its number in a name: the tensor's name."""


def find_layer_map(
    base: Checkpoint, other: Checkpoint, prefixes: tuple[str, str]
) -> LayerMap | None:
    """Find which layers of OTHER are BASE's, in their order, and which were added.

    `prefixes` are what stands before the layers' numbers in each. A new layer is a clone of the
    layer with which it shares most, or of the one before it. None where OTHER has fewer layers, or
    its layers are not BASE's.
    """
    mine, theirs = (
        group_layers(side.specs, prefix)
        for side, prefix in zip((base, other), prefixes, strict=True)
    )
    old, count = len(mine), len(theirs)
    if not 0 < old <= count or set(mine) != set(range(old)) or set(theirs) != set(range(count)):
        return None
    differences = _Differences(base, other, mine, theirs)
    originals = _align(old, count, differences)
    unlike = sum(differences[index, layer] for layer, index in enumerate(originals))
    if 2 * unlike > sum(map(len, mine.values())):
        return None
    places = {index: layer for layer, index in enumerate(originals)}
    entries: list[LayerEntry] = []
    before = 0
    for index in range(count):
        if index in places:
            before = places[index]
            entries.append(LayerEntry(source=before))
            continue
        # With equally many shared tensors the nearest layer is the likeliest.
        nearest = sorted(range(old), key=lambda layer: (abs(layer - before), layer))
        source = min(nearest, key=lambda layer: differences[index, layer])
        entries.append(LayerEntry(source=source, is_new=True))
    return tuple(entries)


def group_layers(names: Iterable[str], prefix: str) -> dict[int, dict[str, str]]:
    """Group names of layers' tensors by layer and suffix."""
    layers: defaultdict[int, dict[str, str]] = defaultdict(dict)
    for name in names:
        if (parts := split_name(name, prefix)) is not None:
            layers[parts[0]][parts[1]] = name
    return dict(layers)


def find_deeper_prefix(base: Iterable[str], other: Iterable[str]) -> tuple[str, str] | None:
    """Find the layers of which OTHER has more: what stands before their numbers in each.

    Saving may add or drop the first part of names (`model.layers.0`, `layers.0`).
    """
    mine, theirs = _count_layers(base), _count_layers(other)
    best: tuple[int, str, str] | None = None
    for prefix, depth in mine.items():
        alike = [p for p in theirs if p == prefix or p.endswith("." + prefix)]
        alike += [p for p in theirs if prefix.endswith("." + p)]
        for spelling in alike[:1]:
            if theirs[spelling] > depth and (best is None or depth > best[0]):
                best = depth, prefix, spelling
    return None if best is None else best[1:]


def _count_layers(names: Iterable[str]) -> dict[str, int]:
    """Count the numbers that stand behind each prefix, the first number of a name only."""
    numbers: defaultdict[str, set[int]] = defaultdict(set)
    for name in names:
        if match := re.match(r"((?:[A-Za-z_]\w*\.)*)([0-9]{1,6})\.", name):
            numbers[match[1]].add(int(match[2]))
    return {prefix: len(found) for prefix, found in numbers.items()}


class _Differences:
    """How many tensors of layer `index` of OTHER differ from those of BASE's layer, by samples."""

    def __init__(self, base: Checkpoint, other: Checkpoint, mine: Layers, theirs: Layers) -> None:
        # A sample is taken in the dtype in which the other side keeps its values.
        dtypes = {
            suffix: other.specs[name].dtype
            for layer in theirs.values()
            for suffix, name in layer.items()
        }
        self._mine = _sample_layers(base, mine, dtypes)
        self._theirs = _sample_layers(other, theirs, dtypes)
        self._known: dict[tuple[int, int], int] = {}

    def __getitem__(self, pair: tuple[int, int]) -> int:
        if pair not in self._known:
            theirs, mine = self._theirs[pair[0]], self._mine[pair[1]]
            shared = theirs.keys() & mine.keys()
            unlike = sum(theirs[suffix] != mine[suffix] for suffix in shared)
            self._known[pair] = unlike + len(theirs.keys() ^ mine.keys())
        return self._known[pair]


def _align(old: int, count: int, differences: _Differences) -> list[int]:
    """Return the place of every original layer, in order, so that least of them differs."""
    spare = count - old
    costs: list[dict[int, int]] = [{0: 0}]
    for index in range(count):
        row: dict[int, int] = {}
        for matched in range(max(0, index + 1 - spare), min(old, index + 1) + 1):
            choices = []
            if matched and matched - 1 in costs[-1]:
                choices.append(costs[-1][matched - 1] + differences[index, matched - 1])
            if matched in costs[-1]:
                choices.append(costs[-1][matched])
            row[matched] = min(choices)
        costs.append(row)
    originals: list[int] = []
    matched = old
    for index in range(count - 1, -1, -1):
        # A repeated layer: the first of them is the original.
        if matched in costs[index] and costs[index][matched] == costs[index + 1][matched]:
            continue
        matched -= 1
        originals.append(index)
    return originals[::-1]


def _sample_layers(
    checkpoint: Checkpoint, layers: Layers, dtypes: Mapping[str, str]
) -> dict[int, dict[str, tuple[tuple[int, ...], bytes]]]:
    wanted = {
        name: (layer, suffix) for layer, names in layers.items() for suffix, name in names.items()
    }
    samples: defaultdict[int, dict[str, tuple[tuple[int, ...], bytes]]] = defaultdict(dict)
    for shard in checkpoint.shards:
        entries = [entry for entry in shard.header.entries if entry.name in wanted]
        if not entries:
            continue
        with (checkpoint.root / shard.file.name).open("rb") as stream:
            for entry in entries:
                layer, suffix = wanted[entry.name]
                start = shard.header.data_start + entry.data_offset
                data = _sample(stream.fileno(), start, entry.spec)
                data = _convert(data, entry.spec.dtype, dtypes.get(suffix, entry.spec.dtype))
                samples[layer][suffix] = entry.spec.shape, data
    return dict(samples)


def _sample(fd: int, start: int, spec: TensorSpec) -> bytes:
    """Read whole elements from the beginning and the middle of a tensor."""
    element = max(DTYPE_BITS[spec.dtype] // 8, 1)
    elements = spec.nbytes // element
    count = min(_SAMPLE_NBYTES // 4, elements)
    middle = (elements - count) // 2
    return b"".join(os.pread(fd, count * element, start + at * element) for at in (0, middle))


def _convert(data: bytes, from_dtype: str, to_dtype: str) -> bytes:
    if from_dtype == to_dtype or not {from_dtype, to_dtype} <= FLOAT_DTYPES or not data:
        return data
    target = bytearray(len(data) * DTYPE_BITS[to_dtype] // DTYPE_BITS[from_dtype])
    try:
        convert_slice(memoryview(bytearray(data)), from_dtype, memoryview(target), to_dtype, "")
    except RecipeError:  # too large for that dtype: not what the other side has
        return data
    return bytes(target)
