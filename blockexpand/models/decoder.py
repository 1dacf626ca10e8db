"""Where a checkpoint has its decoder: the config object, the prefix and number of its layers.

Sees names and the config, never tensor data. It refuses what config and tensors do not agree on.
"""

from __future__ import annotations

import math
import re
import sys
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from functools import lru_cache
from typing import Any

from ..errors import CheckpointError, UnknownFamilyError, UnsupportedModelError
from ..formats.tensor_spec import TensorSpec, make_tensor_spec
from .decoder_checks import check_tensors, find_tables, refuse_unknown_fields
from .families import FAMILIES, MULTIMODAL
from .families.family import Family
from .families.form import FamilyForm, Row, make_family
from .families.layer_fields import (
    FieldRule,
    get_field,
    listed,
    read_kinds,
)
from .families.refused import REFUSED
from .families.tensor_roles import is_float32
from .layer_map import MAX_LAYERS
from .quantization.find import Quantization, find_quantization


def split_name(name: str, prefix: str) -> tuple[int, str] | None:
    """Take `<prefix><layer>.<suffix>` apart; None for other names."""
    if not name.startswith(prefix):
        return None
    number, _, suffix = name[len(prefix) :].partition(".")
    layer = _parse_layer(number)
    # Layers share their suffixes: one string for all of them.
    return None if layer is None or not suffix else (layer, sys.intern(suffix))


@lru_cache(maxsize=2 * MAX_LAYERS)
def _parse_layer(number: str) -> int | None:
    return int(number) if re.fullmatch(r"0|[1-9][0-9]{0,8}", number) else None


def find_model_type(config: Mapping[str, Any]) -> str:
    """Return `model_type`, without which nothing is known of a model."""
    model_type = config.get("model_type")
    if not isinstance(model_type, str) or not model_type:
        raise UnsupportedModelError(
            "config.json: 'model_type' is missing; expected the name of a supported family "
            f"({_TABLE})"
        )
    return model_type


def find_text_model(
    config: Mapping[str, Any], model_type: str
) -> tuple[tuple[str, ...], str, tuple[str, ...]]:
    """Return where the decoder's fields are, its model type, and prefixes if not the family's."""
    wrapper = MULTIMODAL.get(model_type)
    if wrapper is None:
        return (), model_type, ()
    text = get_field(config, ".".join(wrapper.path))
    if not isinstance(text, Mapping):
        return (), wrapper.text_type, wrapper.prefixes
    named = text.get("model_type")
    if not named or wrapper.fixed_text or named in wrapper.text_names:
        return wrapper.path, wrapper.text_type, wrapper.prefixes
    return wrapper.path, str(named), wrapper.prefixes


def find_family(config: Mapping[str, Any], model_type: str) -> Family:
    """Return the row of a decoder's model type, or refuse the model with the reason."""
    if model_type in REFUSED:
        raise UnsupportedModelError(f"model_type {model_type!r}: {REFUSED[model_type]}")
    if model_type in FAMILIES:
        for refusal in FAMILIES[model_type].refuse:
            if refusal.when(config):
                raise UnsupportedModelError(f"model_type {model_type!r}: {refusal.reason}")
        family = FAMILIES[model_type]
        for when, branches in family.variants:
            if when(config):
                return replace(family, branches=branches)
        return family
    custom = " and runs custom code ('auto_map')" if config.get("auto_map") else ""
    alike = get_close_matches(model_type, sorted({*FAMILIES, *MULTIMODAL}), 3)
    closest = f"; the closest names are {', '.join(map(repr, alike))}" if alike else ""
    raise UnknownFamilyError(
        f"model_type {model_type!r} is not in the table of families{custom}: which of its tensors "
        f"must be zero is unknown{closest} ({_TABLE})"
    )


_TABLE = "`blockexpand families` lists them all"


def descend(config: Mapping[str, Any], path: Sequence[str]) -> Mapping[str, Any]:
    """Return the object at a path of config.json."""
    for key in path:
        config = config[key]
    return config


def _descend_checked(config: Mapping[str, Any], path: Sequence[str]) -> Mapping[str, Any]:
    if path and not isinstance(get_field(config, ".".join(path)), Mapping):
        raise UnsupportedModelError(
            f"config.json: {'.'.join(path)!r} is missing; the row of the model says that the "
            "decoder's fields are there"
        )
    return descend(config, path)


def place_layers(
    tensors: Mapping[str, TensorSpec], prefixes: Sequence[str]
) -> tuple[str, dict[int, dict[str, str]]]:
    """Return the layers' prefix, and of each layer the tensors by what follows its number.

    A checkpoint of the bare decoder lacks the first part of its family's prefix.
    """
    spellings = dict.fromkeys(prefixes)
    bare = (prefix.partition(".")[2] for prefix in prefixes)
    spellings |= dict.fromkeys(prefix for prefix in bare if prefix)
    found: dict[str, dict[int, dict[str, str]]] = {}
    for prefix in spellings:
        layers: dict[int, dict[str, str]] = defaultdict(dict)
        for name in [name for name in tensors if name.startswith(prefix)]:
            split = split_name(name, prefix)
            if split is None:
                raise CheckpointError(
                    f"tensor {name!r}: no layer number after {prefix!r}; "
                    f"expected e.g. '{prefix}0.<tensor>'"
                )
            layer, suffix = split
            layers[layer][suffix] = name
        if layers:
            found[prefix] = layers
    if not found:
        raise CheckpointError(
            f"no tensor of a decoder layer was found; expected names such as "
            f"'{prefixes[0]}0.<tensor>', found e.g. {_example(tensors)!r}"
        )
    if len(found) > 1:
        raise CheckpointError(
            f"decoder layers under several prefixes: {', '.join(map(repr, found))}; expected one"
        )
    return found.popitem()


def _example(tensors: Mapping[str, TensorSpec]) -> str:
    """Return a name that looks like a decoder layer's, else any name."""
    names = sorted(
        tensors, key=lambda name: (re.search(r"visi|visual|audio", name) is not None, name)
    )
    numbered = (name for name in names if re.search(r"\.[0-9]+\.", name))
    return next(numbered, names[0] if names else "none")


def count_layers(
    family: Family, text: Mapping[str, Any], numbers: Collection[int], prefix: str
) -> tuple[int, int]:
    """Return the number of layers and of layers stored past the end, from config and tensors.

    `numbers` are those of the layers that have tensors.
    """
    stored = max(numbers) + 1
    layers = stored
    most_tail = max(1, count_predicted(text)) if family.tail else 0
    for name in dict.fromkeys(("num_hidden_layers", *family.count)):
        value = text.get(name)
        if value is None:
            continue
        if not isinstance(value, int) or isinstance(value, bool) or not 0 < value <= MAX_LAYERS:
            raise CheckpointError(
                f"config.json: {name!r} must be the number of layers; "
                f"expected a whole number from 1 to {MAX_LAYERS}, found {value!r}"
            )
        tail = stored - value
        if not 0 <= tail <= most_tail or layers not in (stored, value):
            raise CheckpointError(
                f"config.json: {name!r} is {value}, but the tensors {prefix}<i>.* "
                f"are numbered to {stored - 1}; expected {stored}"
            )
        layers = value
    if len(numbers) < stored:
        missing = next(index for index in range(stored) if index not in numbers)
        raise CheckpointError(
            f"layer {missing} has no tensor ({prefix}{missing}.*); "
            f"expected layers 0 to {stored - 1} without a gap"
        )
    return layers, stored - layers


def count_predicted(text: Mapping[str, Any]) -> int:
    """Return how many layers for multi-token prediction a config says may stand past the end."""
    fields = ("num_nextn_predict_layers", "num_mtp_layers")
    return max([0, *(n for n in map(text.get, fields) if isinstance(n, int))])


COUNT_FIELDS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")

# transformers refuses a `layer_types` of another length in every family.
LAYER_TYPES = listed("layer_types")


@dataclass(frozen=True, slots=True, kw_only=True)
class Decoder:
    """The decoder of one checkpoint: a tensor is named `prefix`, its layer, a dot and its suffix.

    `placed` has the tensors of the `layers` layers and of the `tail_layers` that are stored past
    the end (numbers from `layers` on), each with its layer; no other tensor is renumbered. `tables`
    have a part for every layer in the dimension that is given. `config_path` leads to the
    object of config.json that holds the decoder's fields; `text_type` is the model type of that
    object, which is that of the whole model where there is no other. Of a quantised checkpoint
    `quantization` tells which tensors make up a module; to the family each is its plain weight.
    """

    family: Family
    model_type: str
    text_type: str
    layers: int
    tail_layers: int
    prefix: str
    placed: Mapping[str, int]
    config_path: tuple[str, ...] = ()
    quantization: Quantization | None = None
    tables: Mapping[str, int] = field(default_factory=dict)


def find_decoder(
    config: Mapping[str, Any], tensors: Mapping[str, TensorSpec], row: Row | None = None
) -> Decoder:
    """Find the decoder layers that `config` and the names of `tensors` agree on.

    `row` is that of a model type that the table does not have.
    Raises: UnsupportedModelError for a model that the table does not cover, is quantized in a way
    that no row covers, or has tensors that the table does not know; CheckpointError when config and
    tensors disagree.
    """
    model_type = find_model_type(config)
    path: tuple[str, ...] = ()
    prefixes: tuple[str, ...] = ()
    if isinstance(row, FamilyForm):
        path, text_type, family = row.config, row.model_type, make_family(row)
    else:
        path, text_type, prefixes = find_text_model(config, row or model_type)
        family = find_family(_descend_checked(config, path), text_type)
    text = _descend_checked(config, path)
    if isinstance(row, FamilyForm) and count_predicted(text):
        family = replace(family, tail=True)
    prefix, names = place_layers(tensors, prefixes or family.prefixes)
    layers, tail_layers = count_layers(family, text, names, prefix)
    quantization = find_quantization(config, tensors)
    decoder = Decoder(
        family=family,
        model_type=model_type,
        text_type=text_type,
        layers=layers,
        tail_layers=tail_layers,
        prefix=prefix,
        placed={name: layer for layer in names for name in names[layer].values()},
        config_path=path,
        quantization=quantization,
        tables=find_tables(family.tables, text, prefix, layers, tensors),
    )
    rules = field_rules(family)
    refuse_unknown_fields(rules, text, layers)
    kinds = [read_kinds(rule, text, layers) for rule in rules if not rule.advisory]
    by_layer: dict[int, dict[str, TensorSpec]] = defaultdict(dict)
    for layer, parts in names.items():
        if quantization is None:
            by_layer[layer] = {suffix: tensors[name] for suffix, name in parts.items()}
            continue
        for name in parts.values():
            if (suffix := family_suffix(decoder, name)) is not None:
                by_layer[layer][suffix] = quantization.weight_spec(name, tensors[name])
    if quantization and any(m.scheme.shape is None for m in quantization.modules.values()):
        _take_shapes(by_layer)
    known = [repr([kind[i] for kind in kinds if kind is not None]) for i in range(layers)]
    check_tensors(family, text_type, prefix, by_layer, known)
    return decoder


def _take_shapes(by_layer: Mapping[int, dict[str, TensorSpec]]) -> None:
    """Give weights whose shape headers do not tell that of another layer's that is as large.

    bitsandbytes stores four-bit weights as one column, and leaves some layers unquantised.
    """
    shapes: dict[str, set[tuple[int, ...]]] = defaultdict(set)
    for tensors in by_layer.values():
        for suffix, spec in tensors.items():
            if len(spec.shape) != 2 or spec.shape[1] != 1:
                shapes[suffix].add(spec.shape)
    for tensors in by_layer.values():
        for suffix, spec in tensors.items():
            if spec.shape in shapes[suffix]:
                continue
            for shape in shapes[suffix]:
                if -(-math.prod(shape) // 2) == math.prod(spec.shape):
                    tensors[suffix] = make_tensor_spec(spec.dtype, shape)


def layer_suffix(decoder: Decoder, name: str) -> str:
    """Return what follows the number of its layer, and the dot, in the name of a layer's tensor."""
    return sys.intern(name[len(decoder.prefix) :].partition(".")[2])


def output_name(decoder: Decoder, name: str, layer: int) -> str:
    """Return the name of a layer's tensor when the layer is number `layer` of the output."""
    return f"{decoder.prefix}{layer}.{layer_suffix(decoder, name)}"


def family_suffix(decoder: Decoder, name: str) -> str | None:
    """Return the suffix by which the family knows a layer's tensor; None for a mere part of one.

    The values of a quantised module go by the name of its unquantised weight.
    """
    member = decoder.quantization.members.get(name) if decoder.quantization else None
    if member is None:
        return layer_suffix(decoder, name)
    if member.module is None or member.role != "q":
        return None
    return module_suffix(decoder, name)


def module_suffix(decoder: Decoder, name: str) -> str:
    """Return the suffix of a layer's tensor, of a quantised module's part that of the weight."""
    member = decoder.quantization.members.get(name) if decoder.quantization else None
    if member is None or member.module is None:
        return layer_suffix(decoder, name)
    return member.module.weight[len(f"{decoder.prefix}{decoder.placed[name]}.") :]


def keeps_float32(decoder: Decoder, name: str) -> bool:
    """Tell whether the model computes with this tensor in float32 whatever its own dtype.

    Rounding such a tensor to a 16-bit dtype would change what the model computes.
    """
    return name in decoder.placed and is_float32(decoder.family, layer_suffix(decoder, name))


def field_rules(family: Family) -> tuple[FieldRule, ...]:
    owned = {field for rule in family.fields for field in rule.fields}
    return family.fields if "layer_types" in owned else (*family.fields, LAYER_TYPES)
