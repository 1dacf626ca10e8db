"""Refuse what the table of families does not cover: a config field, a tensor, a quantized weight.

What is copied or neutralised without being understood would silently change the model. Sees names,
shapes and the config, never tensor data.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from ..errors import CheckpointError, UnsupportedModelError
from ..formats.tensor_spec import FLOAT_DTYPES, TensorSpec
from ..messages import show
from .families.family import Family, LayerTable
from .families.layer_fields import FieldRule, get_field
from .families.tensor_roles import find_form, is_known

Shapes = Mapping[str, tuple[int, ...]]

# Buffers that older checkpoints carry along: masks, and positions of rotary embeddings.
BUFFER = re.compile(
    r"(?:attn|attn\.attention|attention|self_attention)\.(?:bias|masked_bias|causal_mask)|"
    r".+\.inv_freq"
)

QUANTIZED = re.compile(
    r".+[._](?:qweight|qzeros|scales?|g_idx|weight_packed|weight_scale(?:_inv|_2)?|input_scale|"
    r"weight_shape|weight_zero_point|absmax|quant_map|quant_state\..+|blocks|SCB)"
)

# Lists and objects of the config that never speak of layers.
NOT_PER_LAYER = frozenset(
    {
        *("architectures", "auto_map", "id2label", "label2id", "pruned_heads"),
        *("eos_token_id", "bos_token_id", "pad_token_id", "forced_eos_token_id"),
        *("suppress_tokens", "begin_suppress_tokens", "bad_words_ids"),
        *("rope_scaling", "rope_parameters", "rope_theta", "mrope_section"),
        *("keys_to_ignore_at_inference", "time_step_limit", "ssm_multipliers", "mlp_multipliers"),
        *("vision_config", "audio_config", "image_grid_pinpoints", "vision_feature_layer"),
        *("mtp_layer_types", "mtp_mlp_layer_types", "mtp_layers_block_type"),
        *("mtp_local_layer_ids", "task_specific_params", "quantization_config"),
        *("compression_config",),
    }
)


def refuse_unknown_fields(rules: Sequence[FieldRule], text: Mapping[str, Any], layers: int) -> None:
    """Refuse lists, and objects keyed by numbers, that could hold one value per layer."""
    ruled = {field for rule in rules for field in rule.fields}
    for name, value in text.items():
        if name in NOT_PER_LAYER or name in ruled:
            continue
        parts = {name: value}
        if isinstance(value, Mapping):
            nested = {key: part for key, part in value.items() if key not in NOT_PER_LAYER}
            parts |= {f"{name}.{key}": part for key, part in nested.items()}
        for field, part in parts.items():
            if field not in ruled and _could_be_per_layer(part, layers):
                raise UnsupportedModelError(
                    f"config.json: {field!r} seems to hold one value per layer, and the table of "
                    "families does not know how to rewrite it"
                )


def check_tensors(
    family: Family,
    model_type: str,
    prefix: str,
    layers: Mapping[int, Mapping[str, TensorSpec]],
    kinds: Sequence[object],
) -> None:
    """Check that the layers are complete, and that the row knows every tensor of every layer.

    `layers` maps a layer's number to its tensors by suffix, `kinds` holds what the config says of
    each layer: layers of one kind must have the same tensors. Layers past `kinds` are the tail.
    Raises: UnsupportedModelError, CheckpointError.
    """
    checked: set[tuple[str, str, bool]] = set()
    latest: dict[bool, Mapping[str, TensorSpec]] = {}
    for layer, tensors in layers.items():
        is_tail = layer >= len(kinds)
        # There may be 100,000 tensors, and most layers are like the one before.
        if tensors == latest.get(is_tail):
            continue
        latest[is_tail] = tensors
        for suffix, spec in tensors.items():
            # What is asked of a tensor depends on this alone.
            question = (suffix, spec.dtype, is_tail)
            if question in checked:
                continue
            checked.add(question)
            known = is_tail or is_known(family, suffix)
            _check_tensor(
                family, model_type, f"{prefix}{layer}.{suffix}", suffix, spec, known=known
            )
    complete: set[frozenset[str]] = set()
    for layer in range(len(kinds)):
        suffixes = frozenset(layers[layer])
        if suffixes not in complete:
            _check_branches(family, model_type, prefix, layer, layers[layer])
            complete.add(suffixes)
    by_kind: dict[object, int] = {}
    differs = 1 if family.first_layer_differs else 0
    for layer in range(differs, len(kinds)):
        like = by_kind.setdefault(kinds[layer], layer)
        if layers[layer] != layers[like]:
            _compare_layers(prefix, like, _shapes(layers[like]), layer, _shapes(layers[layer]))


def find_tables(
    tables: Sequence[LayerTable],
    text: Mapping[str, Any],
    prefix: str,
    layers: int,
    tensors: Mapping[str, TensorSpec],
) -> dict[str, int]:
    """Return the tables beside the layers that have a part for each, with the dimension it is in.

    Raises: CheckpointError where the config says that there is one, and it is not there or of
    another size.
    """
    parent = prefix.removesuffix(".").rpartition(".")[0]
    found = {}
    for table in tables:
        size = get_field(text, table.field, table.default)
        if not size:
            continue
        name = f"{parent}.{table.module}.weight".removeprefix(".")
        spec = tensors.get(name)
        if spec is None:
            raise CheckpointError(
                f"tensor {name!r} is missing, or stored quantized; config.json has {table.field!r} "
                f"{show(size)}, so the model has one with a part for each of {layers} layers"
            )
        if len(spec.shape) != 2 or spec.shape[table.axis] != size * layers:
            raise CheckpointError(
                f"tensor {name!r}: expected {layers} x {show(size)} ({table.field!r}) in dimension "
                f"{table.axis}, found the shape {list(spec.shape)}"
            )
        found[name] = table.axis
    return found


def _could_be_per_layer(value: Any, layers: int) -> bool:
    if isinstance(value, Mapping):
        return bool(value) and all(str(key).isdecimal() for key in value)
    return isinstance(value, (list, tuple)) and len(value) == layers


def _check_branches(
    family: Family, model_type: str, prefix: str, layer: int, tensors: Mapping[str, TensorSpec]
) -> None:
    for branch in family.branches:
        forms = find_form(branch, tensors)
        if len(forms) == 1:
            continue
        names = " or ".join(form.outputs[0] for form in forms or branch)
        fact = "more than one of" if forms else "no tensor"
        raise CheckpointError(
            f"layer {layer} has {fact} {names} ({prefix}{layer}.*); expected one of them in every "
            f"layer of a {model_type!r} model"
        )


def _compare_layers(prefix: str, like: int, expected: Shapes, layer: int, found: Shapes) -> None:
    for suffix in sorted(expected.keys() ^ found.keys()):
        lacking, having = (layer, like) if suffix in expected else (like, layer)
        raise CheckpointError(
            f"tensor '{prefix}{lacking}.{suffix}' is missing, but layer {having}, which is of the "
            "same kind, has it; expected complete layers"
        )
    for suffix, shape in expected.items():
        if found[suffix] != shape:
            raise UnsupportedModelError(
                f"tensor '{prefix}{layer}.{suffix}': layers of the same kind differ in shape; "
                f"expected {list(shape)} as in layer {like}, found {list(found[suffix])}"
            )


def _check_tensor(
    family: Family, model_type: str, name: str, suffix: str, spec: TensorSpec, *, known: bool
) -> None:
    if QUANTIZED.fullmatch(suffix) and not is_known(family, suffix):
        raise UnsupportedModelError(
            f"tensor {name!r} belongs to quantized weights, which cannot be expanded; "
            "use the unquantized checkpoint"
        )
    if not known:
        raise UnsupportedModelError(
            f"tensor {name!r} is unknown in a layer of a {model_type!r} model: it could "
            "belong to an adapter or to a further branch that would have to be zero; if it is "
            "neither, a row of your own can list it under 'copied' (--family)"
        )
    if spec.dtype not in FLOAT_DTYPES and not BUFFER.fullmatch(suffix):
        raise UnsupportedModelError(
            f"tensor {name!r} has dtype {spec.dtype}: packed or quantized weights cannot be "
            f"expanded; expected one of {', '.join(sorted(FLOAT_DTYPES))}"
        )


def _shapes(tensors: Mapping[str, TensorSpec]) -> dict[str, tuple[int, ...]]:
    return {suffix: spec.shape for suffix, spec in tensors.items()}
