"""Which modules of an expansion's new blocks LoRA has to reach, as `transformers` names them.

The model is built on the meta device from its config alone: no weights are read, no custom code
runs.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import TrainingError
from ..messages import one_line
from ..models.loading import language_model_classes
from ..planning.manifest import Manifest
from .freezing import PlacedParameter, place_parameters

# As in PEFT's own check: these models' kernels read the weight past the module.
_NO_OUT_PROJ = frozenset({"falcon_h1", "falcon_mamba", "mamba", "mamba2", "nemotron_h"})

_EXPERT_NAMES = ("gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterTargets:
    """PEFT's words: `modules` are paths of linear modules within a layer, the rest full names.

    `parameters` are weights that only their full name selects (all experts in one tensor);
    `saved_modules` are norms that close a branch and are neutral: they must learn for it to learn.
    """

    model_class: str
    layers_pattern: str
    modules: tuple[str, ...]
    parameters: tuple[str, ...]
    saved_modules: tuple[str, ...]


def find_targets(out: Path, manifest: Manifest) -> AdapterTargets:
    """Find what LoRA must reach in the new layers of the model in `out`.

    Raises: TrainingError where `transformers` cannot build the model.
    """
    import torch
    from transformers.pytorch_utils import Conv1D

    model = _build(out)
    names = [name for name, _ in model.named_parameters()]
    placed = place_parameters(names, manifest)
    new = [parameter for parameter in placed if parameter.layer in manifest.new_layers]
    closing = {
        suffix for suffix, value in manifest.neutral.items() if value != 1 and "norm" in suffix
    }
    # A norm that transformers renames when it loads is not found by its name: then all are taken.
    known = closing <= {parameter.suffix for parameter in new}
    is_mixture = any(_is_expert(model, parameter) for parameter in placed)
    modules: set[str] = set()
    parameters: list[str] = []
    saved: dict[str, None] = {}
    for parameter in new:
        owner, _, tensor = parameter.name.rpartition(".")
        path = parameter.suffix.rpartition(".")[0]
        module = model.get_submodule(owner)
        # A subclass with a forward of its own (a router) is none that an adapter can stand in for.
        if type(module).forward in (torch.nn.Linear.forward, Conv1D.forward):
            # In a mixture of experts PEFT takes names such as gate_proj for those of experts, and
            # then for experts of all layers; a weight that is named in full it leaves alone.
            if not is_mixture or ("attn" in path and not path.endswith(_EXPERT_NAMES)):
                modules.add(path)
            elif tensor == "weight":
                parameters.append(parameter.name)
        elif _is_expert(model, parameter):
            parameters.append(parameter.name)
        elif parameter.suffix in closing or (
            not known and getattr(module, tensor).ndim == 1 and "norm" in path
        ):
            saved[owner] = None
    model_type = model.config.model_type
    if model_type in _NO_OUT_PROJ and any(path.endswith("out_proj") for path in modules):
        raise TrainingError(
            f"{out}: PEFT has no LoRA for 'out_proj' of {model_type!r}, which is zero in the new "
            "layers, so that nothing before it could learn; train the new layers in full, with "
            "transformers or axolotl"
        )
    return AdapterTargets(
        model_class=type(model).__name__,
        layers_pattern=_layers_pattern(new[0], names),
        modules=tuple(sorted(modules)),
        parameters=tuple(parameters),
        saved_modules=tuple(saved),
    )


def _is_expert(model: Any, parameter: PlacedParameter) -> bool:
    """Tell whether this is the weight of all experts of a layer in one tensor."""
    owner, _, tensor = parameter.name.rpartition(".")
    weight = getattr(model.get_submodule(owner), tensor)
    return bool(weight.ndim == 3 and min(weight.shape) > 1) and "conv" not in owner


def _build(out: Path) -> Any:
    import torch
    import transformers

    try:
        config = transformers.AutoConfig.from_pretrained(out, trust_remote_code=False)
        model_class = language_model_classes(config)[0]
        build = getattr(model_class, "from_config", model_class)
        with torch.device("meta"):
            return build(config)
    except Exception as error:  # a config that is wrong fails anywhere in there
        reason = one_line(error, 500)
        if "trust_remote_code" in reason:
            reason = "only the checkpoint's own code builds it, which is not run here"
        raise TrainingError(
            f"{out}: transformers cannot build the model from its config: {reason}"
        ) from error


def _layers_pattern(parameter: PlacedParameter, names: list[str]) -> str:
    """Return the decoder's last word (`layers`), or its path where others end in that word too."""
    path = parameter.name.removesuffix(f".{parameter.layer}.{parameter.suffix}")
    word = path.rpartition(".")[2]
    others = {match[1] for name in names if (match := re.match(r"(.+?)\.\d+\.", name))}
    return path if any(other.endswith(f".{word}") for other in others - {path}) else word
