"""Which tensor of one checkpoint is which of the other, where layers moved. Names and config only.

An expansion's block_expansion.json says from which layer each of its layers was taken; where one
side is (or comes from) an expansion of the other, original layers are matched through it.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from ..checkpoints.checkpoint import Checkpoint
from ..checkpoints.files import MANIFEST_FILE
from ..models.decoder import COUNT_FIELDS, split_name
from ..models.layer_map import LayerEntry, LayerMap
from ..planning.manifest import SCHEMA_VERSION, Manifest, parse_manifest
from .layer_finding import find_deeper_prefix, find_layer_map


@dataclass(frozen=True, slots=True)
class TensorKey:
    """What a tensor is called in both checkpoints: its layer's origin, or its own name.

    `layer` is the layer that its own was taken from, or marked as a new clone of; `copy` counts
    the layers for which that was so before.
    """

    suffix: str
    layer: LayerEntry | None = None
    copy: int = 0

    @property
    def is_new(self) -> bool:
        """Whether the tensor is part of a new block."""
        return self.layer is not None and self.layer.is_new


@dataclass(frozen=True, slots=True, kw_only=True)
class Matching:
    """The keys of both sides' tensors by name: equal keys are the same tensor.

    `layer_map` and `layer_prefix` are those of OTHER where it is an expansion, else of BASE;
    `neutral` has the constants at which tensors of its new layers began. All are empty where no
    manifest relates the two.
    """

    base: Mapping[str, TensorKey]
    other: Mapping[str, TensorKey]
    matched_by: str
    layer_map: LayerMap = ()
    layer_prefix: str = ""
    neutral: Mapping[str, float] = field(default_factory=dict)


def match_tensors(base: Checkpoint, other: Checkpoint) -> Matching:
    """Key the tensors of two checkpoints. Raises: CheckpointError for a damaged manifest."""
    mine, theirs, matched_by = _match_layers(base, other)
    if mine is None and (found := _find_layers(base, other)) is not None:
        mine, theirs, matched_by = found
    if mine is None or theirs is None:
        keys = [{name: TensorKey(name) for name in side.specs} for side in (base, other)]
        return Matching(base=keys[0], other=keys[1], matched_by=matched_by)
    base_prefix = find_prefix(base.specs, mine.manifest.layer_prefix)
    other_prefix = find_prefix(other.specs, theirs.manifest.layer_prefix)
    # transformers saves transformer.h.0 and transformer.wte; files of the Hub have h.0 and wte.
    return Matching(
        base=_keys(base, mine, base_prefix, find_lead(base_prefix, other_prefix)),
        other=_keys(other, theirs, other_prefix, find_lead(other_prefix, base_prefix)),
        matched_by=matched_by,
        layer_map=(theirs if theirs.expanded else mine).manifest.layer_map,
        layer_prefix=other_prefix if theirs.expanded else base_prefix,
        neutral=(theirs if theirs.expanded else mine).manifest.neutral,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Layers:
    """A side's layers by a manifest: where it is the expansion (`expanded`) or its source."""

    manifest: Manifest
    expanded: bool


def _match_layers(
    base: Checkpoint, other: Checkpoint
) -> tuple[_Layers | None, _Layers | None, str]:
    """Find the manifest that says which layer of one side is which of the other."""
    mine, theirs = _find_manifest(base), _find_manifest(other)
    base_layers = _count_layers(base, mine, theirs)
    other_layers = _count_layers(other, theirs, mine)

    def describe(side: str, manifest: Manifest) -> str:
        new = len(manifest.new_layers)
        return (
            f"layers matched through {MANIFEST_FILE} of {side}: {manifest.original_layers} + {new} "
            "new"
        )

    if mine and theirs and mine.layer_map == theirs.layer_map:
        sides = _Layers(manifest=mine, expanded=True), _Layers(manifest=theirs, expanded=True)
        return *sides, describe("both", mine)
    if theirs and theirs.original_layers == base_layers:
        return (
            _Layers(manifest=theirs, expanded=False),
            _Layers(manifest=theirs, expanded=True),
            describe("OTHER", theirs),
        )
    if mine and mine.original_layers == other_layers:
        return (
            _Layers(manifest=mine, expanded=True),
            _Layers(manifest=mine, expanded=False),
            describe("BASE", mine),
        )
    if mine and theirs and mine.original_layers == theirs.original_layers:
        sides = _Layers(manifest=mine, expanded=True), _Layers(manifest=theirs, expanded=True)
        return *sides, f"layers matched through {MANIFEST_FILE} of both"
    for side, manifest in (("BASE", mine), ("OTHER", theirs)):
        if manifest and base_layers == other_layers == len(manifest.layer_map):
            both = _Layers(manifest=manifest, expanded=True)
            return both, both, describe(side, manifest)
    return (
        None,
        None,
        f"tensors matched by name: no {MANIFEST_FILE} relates the two{_cure(base, other)}",
    )


def _cure(base: Checkpoint, other: Checkpoint) -> str:
    """Say what helps where layers moved, and neither file nor tensors tell where to."""
    if find_deeper_prefix(base.specs, other.specs) is None:
        return ""
    return (
        ", and OTHER has more layers; if BASE was expanded and trained as a whole, compare with "
        f"the expansion's own folder, or copy its {MANIFEST_FILE} into OTHER"
    )


def _find_layers(base: Checkpoint, other: Checkpoint) -> tuple[_Layers, _Layers, str] | None:
    """Find from the tensors which layers of a deeper OTHER are BASE's, where nothing says so."""
    prefixes = find_deeper_prefix(base.specs, other.specs)
    layer_map = None if prefixes is None else find_layer_map(base, other, prefixes)
    if prefixes is None or layer_map is None:
        return None
    manifest = Manifest(
        file="",
        schema_version=SCHEMA_VERSION,
        model_type=None,
        original_layers=sum(not entry.is_new for entry in layer_map),
        layer_map=layer_map,
        layer_prefix=prefixes[0],
        neutral={},
        content={},
    )
    new = len(manifest.new_layers)
    return (
        _Layers(manifest=manifest, expanded=False),
        _Layers(manifest=manifest, expanded=True),
        f"layers matched by their tensors, as no {MANIFEST_FILE} relates the two: "
        f"{manifest.original_layers} + {new} new",
    )


def _find_manifest(checkpoint: Checkpoint) -> Manifest | None:
    if checkpoint.manifest is None:
        return None
    return parse_manifest(checkpoint.manifest, str(checkpoint.root / MANIFEST_FILE))


def _count_layers(
    checkpoint: Checkpoint, own: Manifest | None, like: Manifest | None
) -> int | None:
    """Count a side's layers: by its manifest, its config, or its names where those are silent."""
    if own is not None:
        return len(own.layer_map)
    for config in (checkpoint.config, checkpoint.config.get("text_config")):
        for count in COUNT_FIELDS:
            if isinstance(config, Mapping) and type(config.get(count)) is int:
                return int(config[count])
    if like is None:
        return None
    prefix = find_prefix(checkpoint.specs, like.layer_prefix)
    splits = (split_name(name, prefix) for name in checkpoint.specs)
    return max((split[0] + 1 for split in splits if split is not None), default=None)


def _keys(checkpoint: Checkpoint, layers: _Layers, prefix: str, lead: str) -> dict[str, TensorKey]:
    """Key a side's tensors; `lead` is what its names begin with and the other side's lack."""
    entries = layers.manifest.layer_map
    if not layers.expanded:
        entries = tuple(LayerEntry(source=i) for i in range(layers.manifest.original_layers))
    seen: Counter[LayerEntry] = Counter()
    copies = []
    for entry in entries:
        copies.append(seen[entry])
        seen[entry] += 1
    keys = {}
    for name in checkpoint.specs:
        split = split_name(name, prefix)
        if split is None:
            bare = name.removeprefix(lead)
            keys[name] = TensorKey(name if bare in checkpoint.specs else bare)
            continue
        layer, suffix = split
        if layer < len(entries):
            keys[name] = TensorKey(suffix, entries[layer], copies[layer])
        else:
            # Layers for multi-token prediction stand past the end and are renumbered with it.
            source = layer - len(entries) + layers.manifest.original_layers
            keys[name] = TensorKey(suffix, LayerEntry(source=source))
    return keys


def find_lead(prefix: str, other: str) -> str:
    """Return what stands before `other` in `prefix`, if nothing else tells them apart."""
    return prefix[: -len(other)] if prefix.endswith(other) else ""


def find_prefix(names: Iterable[str], stated: str) -> str:
    """Return the prefix of the layers in these names: the stated one, shorter, or longer."""
    present = list(names)
    for prefix in filter(None, (stated, stated.partition(".")[2])):
        if any(split_name(name, prefix) is not None for name in present):
            return prefix
    pattern = re.compile(rf"([a-z_]+\.{re.escape(stated)})\d+\.")
    longer = {match[1] for name in present if (match := pattern.match(name))}
    return longer.pop() if len(longer) == 1 else stated
