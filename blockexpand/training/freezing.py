"""Leave only the new blocks of an expansion trainable, in a model as `transformers` holds it.

It changes `requires_grad`, and the dtype of what is trained where that is asked for: no value, no
device. Layers are found by an
anchored path of the decoder, never by a part of a name, so that a vision tower's layer or an
expert of the same number is never taken for a new block.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..checkpoints.files import read_manifest
from ..errors import TrainingError
from ..fs.paths import expand_home
from ..messages import join
from ..models.decoder import split_name
from ..models.runtime import runtime_prefixes
from ..planning.manifest import Manifest, parse_manifest

if TYPE_CHECKING:
    import torch


# Modules that others put around modules: compile, FSDP, activation checkpoints. They may stand
# anywhere in a name; those of DDP, DeepSpeed and PEFT only at its start.
_TRANSPARENT = frozenset({"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"})

_OUTER = re.compile(r"(?:(?:module|_forward_module)\.|base_model\.model\.)+")


@dataclass(frozen=True, slots=True, kw_only=True)
class PlacedParameter:
    """A parameter of a decoder layer; `suffix` follows the layer's number and its dot."""

    name: str
    layer: int
    suffix: str


def freeze_original_layers(
    model: torch.nn.Module,
    path_or_manifest: str | Path | Mapping[str, Any],
    *,
    dtype: torch.dtype | None = None,
) -> tuple[str, ...]:
    """Leave exactly the parameters of the new blocks trainable; return their names.

    `path_or_manifest` is the expansion's folder, its block_expansion.json, or that file's content.
    In a PEFT model, what PEFT froze stays frozen (it would not save it): of the adapters and the
    copies of `modules_to_save`, those in new blocks stay trainable. `dtype` is what the trainable
    parameters are held in: in bfloat16 an optimizer's small steps are rounded away (a norm's weight
    near 1 does not move at all), so train in `torch.float32`, under autocast where the frozen
    layers are narrower.
    Raises: TrainingError where the model is not this expansion, or nothing in its new blocks can
    be trained; the model is then as it was. CheckpointError for a damaged manifest.
    """
    manifest = open_manifest(path_or_manifest)
    if not manifest.new_layers:
        raise TrainingError(f"{manifest.file}: the model has no new layer to train")
    parameters = dict(model.named_parameters())
    placed = place_parameters(parameters, manifest)
    new = set(manifest.new_layers)
    chosen = [parameter.name for parameter in placed if parameter.layer in new]
    if any(hasattr(module, "peft_config") for module in model.modules()):
        chosen = [name for name in chosen if parameters[name].requires_grad]
        if not chosen:
            raise TrainingError(
                f"no adapter of this PEFT model lies in the new layers {join(sorted(new))}; give "
                f"its config layers_to_transform={sorted(new)}, and unfreeze adapters that were "
                "loaded for inference (is_trainable=True)"
            )
    for name in chosen:
        # A float8 weight says that it is floating-point, and asks for a gradient.
        if not parameters[name].is_floating_point() or parameters[name].element_size() < 2:
            raise TrainingError(
                f"parameter {name!r} is quantized ({parameters[name].dtype}) and cannot be "
                "trained; load the model without quantization, make the expansion with "
                "--quantized new-blocks-full, or train LoRA adapters in the new layers"
            )
    _refuse_quantized_activations(model)
    trainable = set(chosen)
    for name, parameter in parameters.items():
        parameter.requires_grad_(name in trainable)
        if dtype is not None and name in trainable:
            parameter.data = parameter.data.to(dtype)
    return tuple(chosen)


def _refuse_quantized_activations(model: torch.nn.Module) -> None:
    """Refuse modules whose activations compressed-tensors quantises: no gradient passes them."""
    for name, module in model.named_modules():
        scheme = getattr(module, "quantization_scheme", None)
        is_quantized = getattr(module, "quantization_enabled", True)
        if getattr(scheme, "input_activations", None) is not None and is_quantized:
            raise TrainingError(
                f"module {name!r} quantizes its activations, which stops the gradients of all that "
                "is before it; load the model with quantization_config=CompressedTensorsConfig("
                "dequantize=True)"
            )


def open_manifest(path_or_manifest: str | Path | Mapping[str, Any]) -> Manifest:
    """Read an expansion's folder, its block_expansion.json, or that file's parsed content.

    Raises: CheckpointError.
    """
    if isinstance(path_or_manifest, Mapping):
        return parse_manifest(path_or_manifest)
    return parse_manifest(*read_manifest(expand_home(path_or_manifest)))


def place_parameters(names: Iterable[str], manifest: Manifest) -> tuple[PlacedParameter, ...]:
    """Return the parameters of decoder layers among a model's names, in their order.

    Raises: TrainingError where the decoder is not found or has other layers than the manifest says.
    """
    paths = {name: _unwrap(name) for name in names}
    prefixes = runtime_prefixes(manifest.model_type, manifest.layer_prefix)
    found: dict[str, list[PlacedParameter]] = defaultdict(list)
    for name, path in paths.items():
        for prefix in prefixes:
            split = split_name(path, prefix)
            if split is not None:
                layer, suffix = split
                found[prefix].append(PlacedParameter(name=name, layer=layer, suffix=suffix))
                break
    if len(found) != 1:
        what = f"layers under {join(found)}" if found else f"no layer under {join(prefixes)}"
        raise TrainingError(
            f"the model's decoder was not found: {what}; it has {join(_stacks(paths.values()))}; "
            f"expected the {len(manifest.layer_map)} layers of {manifest.file}"
        )
    ((prefix, placed),) = found.items()
    layers = {parameter.layer for parameter in placed}
    if layers != set(range(len(manifest.layer_map))):
        raise TrainingError(
            f"the model has {len(layers)} layers {prefix}<i>, to {max(layers)}; {manifest.file} "
            f"says {len(manifest.layer_map)}; load the model from the expansion's own folder"
        )
    return tuple(placed)


def _unwrap(name: str) -> str:
    """Return a parameter's path in the model that others have wrapped."""
    path = ".".join(part for part in name.split(".") if part not in _TRANSPARENT)
    outer = _OUTER.match(path)
    return path[outer.end() :] if outer else path


def _stacks(paths: Iterable[str]) -> Sequence[str]:
    """Name the numbered lists of modules, for a message."""
    stacks = {match[1] for path in paths if (match := re.match(r"(.+?\.)\d+\.", path))}
    return sorted(stacks)[:8] or ("no numbered layers",)
