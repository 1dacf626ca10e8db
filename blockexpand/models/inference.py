"""A row for a model type that the table does not have, from names, shapes and the config.

A guess, and said to be one: nothing may be written with it unless a proof has held. What it knows
of names it takes from the table itself. It runs no model and reads no tensor data.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ..errors import UnsupportedModelError
from ..formats.tensor_spec import TensorSpec
from .decoder import COUNT_FIELDS, count_predicted, find_model_type
from .decoder_checks import BUFFER, NOT_PER_LAYER
from .families.form import FamilyForm
from .families.layer_vocabulary import COPIED
from .families.tensor_roles import module_paths
from .inferred_branches import CONSTANTS, Shapes, find_branches, find_by_shape

_TOWERS = re.compile(r"visi|visual|vit|audio|image|speech|mtp|talker|patch|resampler")

_LEADING = ("first_k_dense_replace", "num_dense_layers", "max_window_layers")

_INDICES = ("mlp_only_layers", "attn_layer_indices", "full_attn_idxs", "moe_layers")

_INDEX_LIST = re.compile(r".*(?:_layers|_idxs|layer_(?:ids|idxs?|indices|indexes))")

_DEPTH_ROOTS = ("scale_depth",)

_HIDDEN = ("hidden_size", "n_embd", "d_model", "embed_dim")


def infer_forms(
    config: Mapping[str, Any],
    tensors: Mapping[str, TensorSpec],
    effective: Mapping[str, Any] | None = None,
) -> tuple[FamilyForm, ...]:
    """Return the rows that may hold for a checkpoint, the likeliest first.

    `effective` is the config with the defaults of `transformers` filled in, where it knows it.
    Raises: UnsupportedModelError where no decoder layers, or no outputs of theirs, can be told.
    """
    model_type = find_model_type(config)
    path, text = _find_text(config)
    known = effective if effective is not None else {}
    for key in path:
        known = known.get(key) or {}
    prefix, layers, count = _find_layers(text, known, tensors)
    hidden = next((text.get(n) or known.get(n) for n in _HIDDEN if text.get(n) or known.get(n)), 0)
    fields: dict[str, Any] = {
        "model_type": str(text.get("model_type") or model_type),
        "prefix": prefix,
        "count": count,
        "config": path,
        **_find_fields(text, len(layers)),
        "derived": _find_derived(text, known, len(layers)),
    }
    # What shapes alone tell comes last: a proof decides.
    forms: list[FamilyForm] = []
    by_shape = find_by_shape(layers, int(hidden or 0))
    for further in dict.fromkeys((frozenset[str](), by_shape)):
        try:
            forms += _make_forms(layers, int(hidden or 0), further, fields)
        except UnsupportedModelError:
            if further == by_shape and not forms:
                raise
    return tuple(forms)


def _make_forms(
    layers: Shapes, hidden: int, further: frozenset[str], fields: Mapping[str, Any]
) -> list[FamilyForm]:
    """Return the rows of which `further` are outputs, besides those known by name."""
    branches, constants = find_branches(layers, hidden, further)
    suffixes = {suffix for shapes in layers.values() for suffix in shapes}
    named = {output for branch in branches for form in branch for output in form.outputs}
    named |= {norm for branch in branches for form in branch for norm in form.norms}
    copied = {
        module_paths(suffix)[4]
        for suffix in suffixes
        if not BUFFER.fullmatch(suffix)
        and not any(p in COPIED or p in named or p in CONSTANTS for p in module_paths(suffix))
    }
    form = FamilyForm(
        branches=branches, constants=constants, copied=tuple(sorted(copied)), **fields
    )
    forms = [form]
    if any(one.norms for branch in branches for one in branch):
        shifted = tuple(
            tuple(replace(one, norm_value=-1.0 if one.norms else 0.0) for one in branch)
            for branch in branches
        )
        forms.append(replace(form, branches=shifted))
    if form.depth_roots:
        forms += [replace(one, depth_roots=()) for one in forms]
    return forms


def _find_text(config: Mapping[str, Any]) -> tuple[tuple[str, ...], Mapping[str, Any]]:
    for key in ("text_config", "llm_config", "language_config"):
        text = config.get(key)
        if isinstance(text, Mapping) and text:
            return (key,), text
    return (), config


def _find_layers(
    text: Mapping[str, Any], known: Mapping[str, Any], tensors: Mapping[str, TensorSpec]
) -> tuple[str, Shapes, str]:
    """Return the prefix of the decoder's layers, their shapes, and the field that counts them."""
    found: dict[str, dict[int, dict[str, tuple[int, ...]]]] = defaultdict(dict)
    for name, spec in tensors.items():
        match = re.match(r"(.*?\.)(0|[1-9][0-9]{0,5})\.(.+)", f".{name}")
        if match and not _TOWERS.search(match[1]):
            prefix = match[1].removeprefix(".")
            found[prefix].setdefault(int(match[2]), {})[match[3]] = spec.shape
    fields = (*COUNT_FIELDS, "layers", "num_blocks", "depth")
    sizes = {prefix: sum(map(len, layers.values())) for prefix, layers in found.items()}
    for prefix in sorted(found, key=lambda prefix: ("encoder" in prefix, -sizes[prefix])):
        layers = found[prefix]
        if set(layers) != set(range(len(layers))):
            continue
        for field in fields:
            count = text.get(field, known.get(field))
            if type(count) is int and 0 <= len(layers) - count <= count_predicted(text):
                return prefix, {index: layers[index] for index in range(count)}, field
    raise UnsupportedModelError(
        "no row could be inferred: no tensors are numbered as the layers that config.json counts "
        f"({', '.join(fields)})"
    )


def _find_fields(text: Mapping[str, Any], layers: int) -> dict[str, tuple[str, ...]]:
    lists, numbers, indices = [], [], []
    for name, value in text.items():
        if name in NOT_PER_LAYER or name in _INDICES:
            continue
        if _is_index_list(name, value, layers):
            indices.append(name)
            continue
        parts = {name: value}
        if isinstance(value, Mapping):
            parts |= {f"{name}.{key}": part for key, part in value.items()}
        for field, part in parts.items():
            if field.rpartition(".")[2] in NOT_PER_LAYER:
                continue
            if isinstance(part, list) and len(part) == layers:
                lists.append(field)
            elif isinstance(part, Mapping) and part and all(str(k).isdecimal() for k in part):
                numbers.append(field)
    # A step alone decides too: without a list of exceptions, as with an empty one.
    steps = "decoder_sparse_step" in text
    return {
        "lists": tuple(lists),
        "leading": tuple(n for n in _LEADING if type(text.get(n)) is int),
        "indices": (
            *(n for n in _INDICES if isinstance(text.get(n), list) or (steps and n == _INDICES[0])),
            *indices,
        ),
        "numbered": tuple(numbers),
        "depth_roots": tuple(n for n in _DEPTH_ROOTS if type(text.get(n)) in (int, float)),
    }


def _is_index_list(name: str, value: object, layers: int) -> bool:
    """Tell whether a field lists some of the layers by their numbers, which count from 0."""
    if not _INDEX_LIST.fullmatch(name) or not isinstance(value, list) or not value:
        return False
    if not all(type(number) is int and 0 <= number < layers for number in value):
        return False
    return len(value) < layers and value == sorted(set(value))


def _find_derived(
    text: Mapping[str, Any], known: Mapping[str, Any], layers: int
) -> tuple[tuple[str, tuple[Any, ...]], ...]:
    """Return lists that only transformers knows, where layers differ by them."""
    found = []
    for name, kinds in known.items():
        if name in NOT_PER_LAYER:
            continue
        absent = text.get(name) in (None, [])
        if absent and isinstance(kinds, list) and len(kinds) == layers and _differ(kinds):
            found.append((name, tuple(kinds)))
    return tuple(found)


def _differ(kinds: list[Any]) -> bool:
    """Tell whether there are several plain values in a list."""
    plain = all(isinstance(kind, (str, int, float)) for kind in kinds)
    return plain and len(set(kinds)) > 1
