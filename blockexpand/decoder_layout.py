"""Where a checkpoint has its decoder: the config object, the prefix and number of its layers.

Sees names and the config, never tensor data. It refuses what config and tensors do not agree on.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from .errors import CheckpointError, UnsupportedModelError
from .families import FAMILIES, MULTIMODAL
from .families.family import Family
from .families.layer_fields import get_field
from .families.refused import REFUSED
from .layer_map import MAX_LAYERS
from .tensor_spec import TensorSpec


class LayerTensor(NamedTuple):
    """A tensor of a decoder layer: `suffix` is what follows the number and its dot."""

    layer: int
    suffix: str


def find_model_type(config: Mapping[str, Any]) -> str:
    """Return `model_type`, without which nothing is known of a model."""
    model_type = config.get("model_type")
    if not isinstance(model_type, str) or not model_type:
        raise UnsupportedModelError(
            "config.json: 'model_type' is missing; expected the name of a supported family "
            f"({_supported()})"
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
    text_type = text.get("model_type") or wrapper.text_type
    return wrapper.path, str(text_type), wrapper.prefixes


def find_family(config: Mapping[str, Any], model_type: str) -> Family:
    """Return the row of a decoder's model type, or refuse the model with the reason."""
    if model_type in REFUSED:
        raise UnsupportedModelError(f"model_type {model_type!r}: {REFUSED[model_type]}")
    if model_type in FAMILIES:
        for refusal in FAMILIES[model_type].refuse:
            if refusal.when(config):
                raise UnsupportedModelError(f"model_type {model_type!r}: {refusal.reason}")
        return FAMILIES[model_type]
    custom = " and runs custom code ('auto_map')" if config.get("auto_map") else ""
    raise UnsupportedModelError(
        f"model_type {model_type!r} is not in the table of families{custom}: which of its tensors "
        f"must be zero is unknown; supported are {_supported()}"
    )


def _supported() -> str:
    return ", ".join(sorted({*FAMILIES, *MULTIMODAL}))


def descend(config: Mapping[str, Any], path: Sequence[str]) -> Mapping[str, Any]:
    """Return the object at a path of config.json."""
    for key in path:
        config = config[key]
    return config


def place_layers(
    tensors: Mapping[str, TensorSpec], prefixes: Sequence[str]
) -> tuple[str, dict[str, LayerTensor]]:
    """Find which prefix the layers have; a checkpoint of the bare decoder lacks its first part."""
    spellings = dict.fromkeys(prefixes)
    spellings |= dict.fromkeys(prefix.partition(".")[2] for prefix in prefixes)
    found: dict[str, dict[str, LayerTensor]] = {}
    numbers: dict[str, int] = {}
    for prefix in spellings:
        placed = {}
        for name in tensors:
            if not name.startswith(prefix):
                continue
            number, _, suffix = name[len(prefix) :].partition(".")
            layer = numbers.get(number)
            if layer is None and re.fullmatch(r"0|[1-9][0-9]{0,8}", number):
                layer = numbers[number] = int(number)
            if layer is None or not suffix:
                raise CheckpointError(
                    f"tensor {name!r}: no layer number after {prefix!r}; "
                    f"expected e.g. '{prefix}0.<tensor>'"
                )
            # Layers share their suffixes: one string for all of them.
            placed[name] = LayerTensor(layer, sys.intern(suffix))
        if placed:
            found[prefix] = placed
    if not found:
        raise CheckpointError(
            f"no tensor of a decoder layer was found; expected names such as "
            f"'{prefixes[0]}0.<tensor>', found e.g. {next(iter(sorted(tensors)), 'none')!r}"
        )
    if len(found) > 1:
        raise CheckpointError(
            f"decoder layers under several prefixes: {', '.join(map(repr, found))}; expected one"
        )
    return found.popitem()


def count_layers(
    family: Family, text: Mapping[str, Any], placed: Mapping[str, LayerTensor], prefix: str
) -> tuple[int, int]:
    """Return the number of layers and of layers stored past the end, from config and tensors."""
    numbers = {tensor.layer for tensor in placed.values()}
    stored = max(numbers) + 1
    layers = stored
    predicted = (text.get(field) for field in ("num_nextn_predict_layers", "num_mtp_layers"))
    most_tail = max([1, *(n for n in predicted if isinstance(n, int))]) if family.tail else 0
    for field in dict.fromkeys(("num_hidden_layers", *family.count)):
        value = text.get(field)
        if value is None:
            continue
        if not isinstance(value, int) or isinstance(value, bool) or not 0 < value <= MAX_LAYERS:
            raise CheckpointError(
                f"config.json: {field!r} must be the number of layers; "
                f"expected a whole number from 1 to {MAX_LAYERS}, found {value!r}"
            )
        tail = stored - value
        if not 0 <= tail <= most_tail or layers not in (stored, value):
            raise CheckpointError(
                f"config.json: {field!r} is {value}, but the tensors {prefix}<i>.* "
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
