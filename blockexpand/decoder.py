"""Apply a row of the table of families to one checkpoint: its layers, and the surgery on them.

Sees names, shapes and the config, never tensor data. It refuses whatever the row does not cover:
what is copied or neutralised without being understood would silently change the model.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from .errors import BlockExpandError, CheckpointError, UnsupportedModelError
from .families import FAMILIES, MULTIMODAL, REFUSED
from .family import Branch, Family
from .json_document import JsonEdit
from .layer_fields import FieldEdits, apply_edits, get_field, listed, rewrite_fields
from .layer_map import LayerMap, map_position
from .layer_vocabulary import COPIED
from .safetensors_header import TensorSpec

MAX_LAYERS = 10_000
COUNT_FIELDS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
FLOAT_DTYPES = frozenset({"F64", "F32", "F16", "BF16"})
# Buffers that older checkpoints carry along: masks, and positions of rotary embeddings.
BUFFERS = re.compile(r"(?:.+\.)?(?:bias|masked_bias|inv_freq|causal_mask|embed_positions)")
QUANTIZED = re.compile(
    r".+[._](?:qweight|qzeros|scales?|zeros?|g_idx|weight_packed|weight_scale(?:_inv|_2)?|"
    r"input_scale|weight_shape|weight_zero_point|absmax|quant_map|quant_state\..+|blocks)"
)
# Lists and number-keyed objects of the config that never speak of layers.
NOT_PER_LAYER = frozenset(
    """
    architectures auto_map id2label label2id eos_token_id bos_token_id pad_token_id pruned_heads
    suppress_tokens begin_suppress_tokens bad_words_ids forced_eos_token_id rope_scaling
    rope_parameters rope_theta keys_to_ignore_at_inference vision_config audio_config
    time_step_limit ssm_multipliers mlp_multipliers
    """.split()
)


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerTensor:
    """A tensor of a decoder layer: `suffix` is what follows the number and its dot."""

    layer: int
    suffix: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Decoder:
    """The decoder of one checkpoint; a layer's tensor is named `prefix + str(layer) + "." + suffix`.

    `placed` has the tensors of the `layers` layers and of the `tail_layers` that are stored past
    the end (numbers from `layers` on); no other tensor is renumbered. `config_path` leads to the
    object of config.json that holds the decoder's fields.
    """

    family: Family
    model_type: str
    layers: int
    tail_layers: int
    prefix: str
    placed: Mapping[str, LayerTensor]
    config_path: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Surgery:
    """What a layer map does to a decoder.

    `neutral[source]` maps the suffixes of a new clone of layer `source` that are set to a constant
    to that constant; every other suffix is copied. `notes` are one-line things to know.
    """

    neutral: Mapping[int, Mapping[str, float]]
    config_edits: tuple[JsonEdit, ...]
    notes: tuple[str, ...]


def find_decoder(config: Mapping[str, Any], tensors: Mapping[str, TensorSpec]) -> Decoder:
    """Find the decoder layers that `config` and the names of `tensors` agree on.

    Raises: UnsupportedModelError for a model that the table does not cover, is quantized, or has
    tensors that the table does not know; CheckpointError when config and tensors disagree.
    """
    model_type = _model_type(config)
    _refuse_quantized(config)
    path, text_type, prefixes = _text_model(config, model_type)
    family = FAMILIES.get(text_type)
    if text_type in REFUSED:
        raise UnsupportedModelError(f"model_type {text_type!r} is refused: {REFUSED[text_type]}")
    if family is None:
        raise UnsupportedModelError(_unknown(text_type, config))
    text = _descend(config, path)
    prefix, placed = _place(tensors, prefixes or family.prefixes)
    layers, tail_layers = _count_layers(family, text, placed, prefix)
    for refusal in family.refuse:
        if refusal.when(text, layers):
            raise UnsupportedModelError(f"model_type {text_type!r}: {refusal.reason}")
    decoder = Decoder(
        family=family,
        model_type=model_type,
        layers=layers,
        tail_layers=tail_layers,
        prefix=prefix,
        placed=placed,
        config_path=path,
    )
    _refuse_unknown_fields(family, text, layers)
    _check_tensors(decoder, text, tensors)
    return decoder


def plan_surgery(decoder: Decoder, config: Mapping[str, Any], layer_map: LayerMap) -> Surgery:
    """Work out what the new layers of `layer_map` set to a constant, and the config's edits.

    `layer_map` keeps the originals in their order; its new layers may stand anywhere.
    Raises: UnsupportedModelError when the model with these layers cannot be exact, with the reason.
    """
    try:
        return _plan_surgery(decoder, config, layer_map)
    except UnsupportedModelError as error:
        raise UnsupportedModelError(
            f"{error}{_way_out(decoder, config, layer_map)}"
        ) from error.__cause__


def output_name(decoder: Decoder, placed: LayerTensor, layer: int) -> str:
    """Return the name of a layer's tensor when the layer is number `layer` of the output."""
    return f"{decoder.prefix}{layer}.{placed.suffix}"


def keeps_float32(decoder: Decoder, name: str) -> bool:
    """Tell whether the model computes with this tensor in float32 whatever its own dtype.

    Rounding such a tensor to a 16-bit dtype would change what the model computes.
    """
    placed = decoder.placed.get(name)
    return placed is not None and _matches(placed.suffix, decoder.family.float32)


def _plan_surgery(decoder: Decoder, config: Mapping[str, Any], layer_map: LayerMap) -> Surgery:
    text = _descend(config, decoder.config_path)
    origins = [entry.source for entry in layer_map]
    sources = sorted({entry.source for entry in layer_map if entry.is_new})
    notes = list(_check_positions(decoder, config, text, layer_map))
    edits = _count_edits(decoder, text, len(layer_map))
    rules = _rules(decoder.family)
    edits |= rewrite_fields(rules, apply_edits(text, edits), decoder.layers, origins)
    if decoder.tail_layers:
        notes.append(
            f"the {decoder.tail_layers} multi-token-prediction layer(s) stored past the end are "
            "renumbered; transformers finds such layers by fixed numbers and will not use them"
        )
    if config.get("auto_map"):
        notes.append(
            "config.json names custom code (auto_map): the output is exact for the model class of "
            f"transformers for {decoder.model_type!r}"
        )
    return Surgery(
        neutral=_neutral(decoder, sources),
        config_edits=_json_edits(decoder, config, edits),
        notes=tuple(notes),
    )


def _model_type(config: Mapping[str, Any]) -> str:
    model_type = config.get("model_type")
    if not isinstance(model_type, str) or not model_type:
        raise UnsupportedModelError(
            "config.json: 'model_type' is missing; expected the name of a supported family "
            f"({_supported()})"
        )
    return model_type


def _refuse_quantized(config: Mapping[str, Any]) -> None:
    text = config.get("text_config")
    for part in (config, text if isinstance(text, Mapping) else {}):
        for field in ("quantization_config", "compression_config"):
            if part.get(field):
                raise UnsupportedModelError(
                    f"config.json: {field!r} is present: a quantized checkpoint cannot be "
                    "expanded; use the unquantized one"
                )


def _text_model(
    config: Mapping[str, Any], model_type: str
) -> tuple[tuple[str, ...], str, tuple[str, ...]]:
    """Return where the decoder's fields are, its model type, and prefixes if not the family's."""
    wrapper = MULTIMODAL.get(model_type)
    if wrapper is None:
        return (), model_type, ()
    text = config.get("text_config")
    if not isinstance(text, Mapping):
        return (), wrapper.text_type, wrapper.prefixes
    text_type = text.get("model_type") or wrapper.text_type
    if text_type not in FAMILIES:
        raise UnsupportedModelError(
            f"config.json: the text decoder of {model_type!r}: {_unknown(str(text_type), text)}"
        )
    return ("text_config",), text_type, wrapper.prefixes


def _unknown(model_type: str, config: Mapping[str, Any]) -> str:
    custom = " (and it needs custom code: auto_map)" if config.get("auto_map") else ""
    return (
        f"model_type {model_type!r} is not in the table of families{custom}: which of its tensors "
        f"must be zero is unknown; supported are {_supported()}"
    )


def _supported() -> str:
    return ", ".join(sorted({*FAMILIES, *MULTIMODAL}))


def _descend(config: Mapping[str, Any], path: Sequence[str]) -> Mapping[str, Any]:
    for key in path:
        config = config[key]
    return config


def _place(
    tensors: Mapping[str, TensorSpec], prefixes: Sequence[str]
) -> tuple[str, dict[str, LayerTensor]]:
    """Find which prefix the layers have; a checkpoint of the bare decoder lacks its first part."""
    spellings = dict.fromkeys(prefixes)
    spellings |= dict.fromkeys(prefix.partition(".")[2] for prefix in prefixes)
    found: dict[str, dict[str, LayerTensor]] = {}
    for prefix in spellings:
        placed = {}
        for name in tensors:
            if not name.startswith(prefix):
                continue
            number, _, suffix = name[len(prefix) :].partition(".")
            if not re.fullmatch(r"0|[1-9][0-9]{0,8}", number) or not suffix:
                raise CheckpointError(
                    f"tensor {name!r}: no layer number after {prefix!r}; "
                    f"expected e.g. '{prefix}0.<tensor>'"
                )
            placed[name] = LayerTensor(layer=int(number), suffix=suffix)
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


def _count_layers(
    family: Family, text: Mapping[str, Any], placed: Mapping[str, LayerTensor], prefix: str
) -> tuple[int, int]:
    """Return the number of layers and of layers stored past the end, from config and tensors."""
    numbers = {tensor.layer for tensor in placed.values()}
    stored = max(numbers) + 1
    layers = stored
    for field in ("num_hidden_layers", *family.count):
        value = text.get(field)
        if value is None:
            continue
        if not isinstance(value, int) or isinstance(value, bool) or not 0 < value <= MAX_LAYERS:
            raise CheckpointError(
                f"config.json: {field!r} must be the number of layers; "
                f"expected a whole number from 1 to {MAX_LAYERS}, found {value!r}"
            )
        if value > stored or (value < stored and not family.tail) or layers not in (stored, value):
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


def _refuse_unknown_fields(family: Family, text: Mapping[str, Any], layers: int) -> None:
    """Refuse lists, and objects keyed by numbers, that could hold one value per layer."""
    known = {field.partition(".")[0] for rule in _rules(family) for field in rule.fields}
    known |= NOT_PER_LAYER
    for name, value in text.items():
        parts = {name: value}
        if isinstance(value, Mapping) and name not in known:
            parts |= {f"{name}.{key}": part for key, part in value.items()}
        for field, part in parts.items():
            if field.partition(".")[0] in known:
                continue
            by_number = isinstance(part, Mapping) and part and all(k.isdecimal() for k in part)
            if by_number or (isinstance(part, list) and len(part) == layers):
                raise UnsupportedModelError(
                    f"config.json: {field!r} seems to hold one value per layer, and the table of "
                    "families does not know how to rewrite it"
                )


def _check_tensors(
    decoder: Decoder, text: Mapping[str, Any], tensors: Mapping[str, TensorSpec]
) -> None:
    """Check that every layer is complete, and that the row knows every tensor of every layer."""
    family = decoder.family
    shapes: dict[int, dict[str, tuple[int, ...]]] = defaultdict(dict)
    for name, placed in decoder.placed.items():
        _check_tensor(family, name, placed.suffix, tensors[name])
        shapes[placed.layer][placed.suffix] = tensors[name].shape
    for layer in range(decoder.layers):
        for branch in family.branches:
            if not any(_matches(suffix, branch.neutral) for suffix in shapes[layer]):
                raise CheckpointError(
                    f"layer {layer} has no tensor {' or '.join(branch.neutral)} "
                    f"({decoder.prefix}{layer}.*); expected one in every layer of a "
                    f"{decoder.model_type!r} model"
                )
    by_kind: dict[Any, int] = {}
    kinds = [rule.read(text, decoder.layers) for rule in _rules(family) if not rule.advisory]
    for layer in range(1 if family.first_layer_differs else 0, decoder.layers):
        kind = repr([values[layer] for values in kinds if values is not None])
        like = by_kind.setdefault(kind, layer)
        _compare_layers(decoder, like, shapes[like], layer, shapes[layer])


def _compare_layers(
    decoder: Decoder,
    like: int,
    expected: Mapping[str, tuple[int, ...]],
    layer: int,
    found: Mapping[str, tuple[int, ...]],
) -> None:
    if expected == found:
        return
    for suffix in sorted(expected.keys() ^ found.keys()):
        lacking, having = (layer, like) if suffix in expected else (like, layer)
        raise CheckpointError(
            f"tensor '{decoder.prefix}{lacking}.{suffix}' is missing, but layer {having}, which is "
            "of the same kind, has it; expected complete layers"
        )
    suffix = next(suffix for suffix in expected if expected[suffix] != found[suffix])
    raise UnsupportedModelError(
        f"tensor '{decoder.prefix}{layer}.{suffix}': layers of the same kind have different "
        f"shapes; expected {list(expected[suffix])} as in layer {like}, "
        f"found {list(found[suffix])}"
    )


def _check_tensor(family: Family, name: str, suffix: str, spec: TensorSpec) -> None:
    outputs = _output_patterns(family)
    if QUANTIZED.fullmatch(suffix) and not _matches(suffix, outputs):
        raise UnsupportedModelError(
            f"tensor {name!r} belongs to quantized weights, which cannot be expanded; "
            "use the unquantized checkpoint"
        )
    known = _matches(suffix, outputs) or _is_copied(suffix)
    if not known and not (BUFFERS.fullmatch(suffix) and spec.dtype not in FLOAT_DTYPES):
        raise UnsupportedModelError(
            f"tensor {name!r} is not part of a {'/'.join(family.model_types[:3])} layer that the "
            "table of families knows; expected no further branch or adapter in a layer"
        )
    if spec.dtype not in FLOAT_DTYPES and not BUFFERS.fullmatch(suffix):
        raise UnsupportedModelError(
            f"tensor {name!r} has dtype {spec.dtype}: packed or quantized weights cannot be "
            f"expanded; expected one of {', '.join(sorted(FLOAT_DTYPES))}"
        )


def _check_positions(
    decoder: Decoder, config: Mapping[str, Any], text: Mapping[str, Any], layer_map: LayerMap
) -> Sequence[str]:
    """Refuse places where a new layer cannot stand, and return what to know of those where it can."""
    family, layers = decoder.family, decoder.layers
    moved = next((i for i, e in enumerate(layer_map) if e.source != i or e.is_new), len(layer_map))
    if family.first_layer_differs and any(e.is_new and e.source == 0 for e in layer_map):
        raise UnsupportedModelError(
            f"model_type {decoder.model_type!r}: layer 0 has other tensors than the rest and "
            "cannot be cloned; choose layers from 1 on"
        )
    wrapper = MULTIMODAL.get(decoder.model_type)
    if wrapper is not None and wrapper.deepstack is not None:
        fed = len(get_field(config, wrapper.deepstack, []))
        if moved < fed:
            raise UnsupportedModelError(
                f"model_type {decoder.model_type!r}: the vision tower adds features after each of "
                f"the first {fed} layers by number; a new layer cannot stand before layer {fed}"
            )
    reason = family.index_scaled(text) if family.index_scaled else None
    if reason is None:
        return ()
    if moved < layers:
        raise UnsupportedModelError(
            f"model_type {decoder.model_type!r}: {reason}; "
            "an original layer would change with its number"
        )
    return (f"{reason}: the new layers are no true clones of their source layers",)


def _count_edits(decoder: Decoder, text: Mapping[str, Any], layers: int) -> FieldEdits:
    """Write the count under every spelling that is there, or under the first if none is."""
    edits: FieldEdits = {}
    for field in dict.fromkeys((*COUNT_FIELDS, *decoder.family.count)):
        if text.get(field) == decoder.layers and field in text:
            edits[(field,)] = layers
    own = ("num_hidden_layers", *decoder.family.count)
    if not any(text.get(field) is not None for field in own):
        edits[("num_hidden_layers",)] = layers
    return edits


def _neutral(decoder: Decoder, sources: Sequence[int]) -> dict[int, dict[str, float]]:
    family = decoder.family
    neutral: dict[int, dict[str, float]] = {source: {} for source in sources}
    for placed in decoder.placed.values():
        if placed.layer not in neutral:
            continue
        value = _neutral_value(family, placed.suffix)
        if value is not None:
            neutral[placed.layer][placed.suffix] = value
    return neutral


@lru_cache(maxsize=65536)
def _neutral_value(family: Family, suffix: str) -> float | None:
    for pattern, constant in family.constants:
        if _matches(suffix, (pattern,)):
            return constant
    for branch in family.branches:
        if _matches(suffix, branch.neutral):
            return 0.0 if suffix.endswith("bias") else branch.value
    return None


def _json_edits(
    decoder: Decoder, config: Mapping[str, Any], edits: FieldEdits
) -> tuple[JsonEdit, ...]:
    """Address the edits in config.json; some multimodal configs repeat the text's fields at the root."""
    result = []
    text = _descend(config, decoder.config_path)
    for path, value in edits.items():
        result.append(JsonEdit(path=decoder.config_path + path, value=value))
        if decoder.config_path and path[0] in config and config[path[0]] == text.get(path[0]):
            result.append(JsonEdit(path=path, value=value))
    return tuple(result)


def _way_out(decoder: Decoder, config: Mapping[str, Any], layer_map: LayerMap) -> str:
    """Say that the end is possible, where it is and was not what was asked for."""
    new_layers = sum(entry.is_new for entry in layer_map)
    if not new_layers:
        return ""
    at_end = map_position(decoder.layers, "end", new_layers)
    if at_end == layer_map:
        return ""
    try:
        _plan_surgery(decoder, config, at_end)
    except BlockExpandError:
        return "; --position end is not possible either"
    return "; --position end is possible"


@lru_cache(maxsize=512)
def _rules(family: Family) -> tuple[Any, ...]:
    """Return the row's rules; transformers checks the length of `layer_types` in every family."""
    owned = {field for rule in family.fields for field in rule.fields}
    return family.fields if "layer_types" in owned else (*family.fields, listed("layer_types"))


@lru_cache(maxsize=512)
def _output_patterns(family: Family) -> tuple[str, ...]:
    def names(branch: Branch) -> tuple[str, ...]:
        return branch.neutral + branch.kept

    constants = tuple(pattern for pattern, _ in family.constants)
    return sum((names(branch) for branch in family.branches), constants)


@lru_cache(maxsize=65536)
def _matches(suffix: str, patterns: tuple[str, ...]) -> bool:
    return any(spelling in patterns for spelling in _spellings(suffix))


@lru_cache(maxsize=65536)
def _is_copied(suffix: str) -> bool:
    return any(spelling in COPIED for spelling in _spellings(suffix))


def _spellings(suffix: str) -> tuple[str, ...]:
    """Return the module paths that a suffix may be listed under: as it is, and with any number."""
    module = re.sub(r"(?:\.weight|\.bias|_bias)$", "", suffix)
    return module, re.sub(r"(?<=\.)[0-9]+(?=\.|$)", "{e}", module)
