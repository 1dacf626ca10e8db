"""Put an adapter's blocks into a model that `transformers` has loaded, and take them out again.

The new layers are loaded by the model's own class from a small checkpoint of themselves alone, so
that whatever that class does to weights when it loads them is done to these. Nothing of the base is
read or proven here: what is compared are its config and the shapes of its tensors.
"""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..checkpoints.files import CONFIG_FILE, WEIGHTS_FILE
from ..errors import TrainingError
from ..formats.json_object import edit_json_object
from ..models.decoder import Decoder, find_decoder
from ..models.loading import quiet_transformers
from ..models.runtime import runtime_prefixes
from ..models.surgery import plan_rearrangement, plan_surgery
from ..planning.unquantized import drop_quantization
from .opening import OpenedAdapter
from .proof import check_neutral

if TYPE_CHECKING:
    import torch

# What a module may call the number of the layer that it is in.
_NUMBERS = ("layer_idx", "layer_id", "layer_index", "layer_number", "block_idx", "idx")
_RECORD = "_blockexpand_attached"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Attached:
    """What `detach` needs: where the layers are, those of the base, and the config as it was."""

    path: str
    layers: Any
    fields: tuple[tuple[Any, str, Any], ...]


def attach_blocks(model: torch.nn.Module, opened: OpenedAdapter, scale: float) -> tuple[int, ...]:
    """Insert an adapter's layers; return their numbers in the model as it then is.

    `scale` multiplies what closes each residual branch: 1 gives the trained model, 0 the base.
    Raises: TrainingError where the model is not of the adapter's base; it is then as it was.
    """
    adapter = opened.adapter
    if hasattr(model, _RECORD):
        raise TrainingError("the model has blocks attached already; detach them first")
    config: Any = model.config
    specs = {name: tensor.spec for name, tensor in adapter.base.tensors.items()}
    decoder = find_decoder(adapter.base.config, specs)
    if config.model_type != adapter.base.config.get("model_type"):
        raise TrainingError(
            f"the model is of type {config.model_type!r}; the adapter's base is of type "
            f"{adapter.base.config.get('model_type')!r}"
        )
    if not math.isfinite(scale):
        raise TrainingError(f"scale: expected a number, found {scale}")
    check_neutral(decoder, adapter.base.config, opened)
    path, layers = _find_layers(model, decoder)
    changes = _config_changes(type(config), adapter.base.config, _edited_config(opened, decoder))
    # Loaded before anything of the model is touched.
    new = _load_blocks(model, opened, decoder, path, scale)
    merged = _merge(layers, new, opened)
    fields = tuple(_apply(config, changes))
    parent, _, name = path.rpartition(".")
    setattr(model.get_submodule(parent), name, _same_list(layers, merged))
    _number(merged)
    object.__setattr__(model, _RECORD, _Attached(path=path, layers=layers, fields=fields))
    return adapter.new_layers


def detach_blocks(model: torch.nn.Module) -> None:
    """Take attached blocks out again: the model is then the base, as it was.

    Raises: TrainingError where there are none.
    """
    record = getattr(model, _RECORD, None)
    if record is None:
        raise TrainingError("the model has no blocks attached")
    parent, _, name = record.path.rpartition(".")
    setattr(model.get_submodule(parent), name, record.layers)
    for owner, field, value in record.fields:
        setattr(owner, field, value)
    _number(list(record.layers))
    object.__delattr__(model, _RECORD)


def _find_layers(model: torch.nn.Module, decoder: Decoder) -> tuple[str, Any]:
    """Return the path of the decoder's list of layers in a model, and the list."""
    import torch

    modules = dict(model.named_modules())
    paths = [prefix[:-1] for prefix in runtime_prefixes(decoder.model_type, decoder.prefix)]
    found = {
        path: modules[path] for path in paths if isinstance(modules.get(path), torch.nn.ModuleList)
    }
    if len(found) != 1:
        raise TrainingError(
            f"the model's decoder layers were not found: expected a list of modules at one of "
            f"{', '.join(paths)}"
        )
    ((path, layers),) = found.items()
    if len(layers) != decoder.layers:
        raise TrainingError(
            f"the model has {len(layers)} layers; the adapter's base has {decoder.layers}"
        )
    return path, layers


def _edited_config(opened: OpenedAdapter, decoder: Decoder) -> dict[str, Any]:
    """Return config.json of the whole model, base and blocks."""
    base = opened.adapter.base.config
    surgery = plan_surgery(decoder, base, opened.adapter.layer_map)
    edited = edit_json_object(json.dumps(base).encode(), surgery.config_edits)
    result: dict[str, Any] = json.loads(edited)
    return result


def _config_changes(
    config_class: Any, before: Mapping[str, Any], after: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the attributes that differ between two configs as their class fills them in."""

    def differing(one: Any, other: Any) -> dict[str, Any]:
        changes: dict[str, Any] = {}
        for field, value in other.to_dict().items():
            inner, inner_before = getattr(other, field, None), getattr(one, field, None)
            if hasattr(inner, "to_dict") and hasattr(inner_before, "to_dict"):
                if nested := differing(inner_before, inner):
                    changes[field] = nested
            elif inner != inner_before and hasattr(other, field):
                changes[field] = inner
            del value
        return changes

    return differing(config_class.from_dict(dict(before)), config_class.from_dict(dict(after)))


def _apply(config: Any, changes: Mapping[str, Any]) -> Iterator[tuple[Any, str, Any]]:
    """Set fields of a config and of its parts; yield each with what it was."""
    for field, value in changes.items():
        current = getattr(config, field, None)
        if isinstance(value, dict) and hasattr(current, "to_dict"):
            yield from _apply(current, value)
        else:
            yield config, field, current
            setattr(config, field, value)


def _load_blocks(
    model: torch.nn.Module, opened: OpenedAdapter, decoder: Decoder, path: str, scale: float
) -> list[Any]:
    """Load the new layers as a model of their own, and return its layers."""
    from safetensors.torch import load_file, save_file

    adapter = opened.adapter
    base = adapter.base.config
    sources = [adapter.layer_map[layer].source for layer in adapter.new_layers]
    surgery = plan_rearrangement(decoder, base, [(decoder, base, source) for source in sources])
    # Blocks of an adapter are stored unquantised, whatever the base is.
    plain = drop_quantization(base)
    config = edit_json_object(json.dumps(plain).encode(), surgery.config_edits)
    numbers = {layer: index for index, layer in enumerate(adapter.new_layers)}
    tensors: dict[str, torch.Tensor] = {}
    for shard in opened.shards:
        for name, tensor in load_file(opened.root / shard.file.name).items():
            if name not in adapter.tensors:
                continue
            number, _, suffix = name.removeprefix(adapter.layer_prefix).partition(".")
            if suffix in adapter.neutral and scale != 1:
                neutral = adapter.neutral[suffix]
                tensor = (neutral + scale * (tensor.float() - neutral)).to(tensor.dtype)
            tensors[f"{adapter.layer_prefix}{numbers[int(number)]}.{suffix}"] = tensor
    with tempfile.TemporaryDirectory() as temporary, quiet_transformers():
        folder = Path(temporary)
        (folder / CONFIG_FILE).write_bytes(config)
        save_file(tensors, folder / WEIGHTS_FILE, metadata={"format": "pt"})
        loaded: Any = type(model)
        small, report = loaded.from_pretrained(
            folder,
            dtype=model.dtype,
            attn_implementation=getattr(model.config, "_attn_implementation", None),
            output_loading_info=True,
            trust_remote_code=False,
        )
    missing = [name for name in report["missing_keys"] if f".{path}." in f".{name}"]
    unexpected = [*report["unexpected_keys"], *report["mismatched_keys"]]
    if missing or unexpected:
        raise TrainingError(
            f"transformers does not load these blocks: missing {missing[:3]}, unexpected "
            f"{unexpected[:3]}"
        )
    blocks = list(small.get_submodule(path))
    for block in blocks:
        for tensor in (*block.parameters(), *block.buffers()):
            tensor.data = tensor.data.clone()
    return blocks


def _merge(layers: Sequence[Any], new: list[Any], opened: OpenedAdapter) -> list[Any]:
    """Return the layers of the base and the new ones in the order of the layer map."""
    merged = []
    blocks = iter(new)
    originals = iter(layers)
    for entry in opened.adapter.layer_map:
        if not entry.is_new:
            merged.append(next(originals))
            continue
        source, block = layers[entry.source], next(blocks)
        twins = dict(source.named_modules())
        for name, module in block.named_modules():
            # Modules ask their config for more than shapes; it has to be the model's own.
            if hasattr(module, "config") and hasattr(twins.get(name), "config"):
                module.config = twins[name].config
        parameter = next(source.parameters())
        merged.append(block.to(parameter.device).train(source.training))
    return merged


def _same_list(layers: Any, merged: list[Any]) -> Any:
    import torch

    result = torch.nn.ModuleList(merged)
    result.training = layers.training
    return result


def _number(layers: Sequence[Any]) -> None:
    """Tell every module of a layer its layer's number, by which caches are kept."""
    for number, layer in enumerate(layers):
        for module in layer.modules():
            for attribute in _NUMBERS:
                if type(getattr(module, attribute, None)) is int:
                    setattr(module, attribute, number)
