"""Recipes for tiny checkpoints of every decoder family, as transformers and as the Hub spell them.

Every parameter is random, norms and biases too, so that a layer out of place shows in the logits;
windows are shorter than the test sequence.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

TOKENS = 24  # of the test sequence: longer than every window below
BASE: Mapping[str, Any] = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "tie_word_embeddings": False,
}
Names = Callable[[str], str]
Tensors = dict[str, torch.Tensor]
Config = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Zoo:
    """One tiny checkpoint: `config` on top of `BASE`, then the Hub's spelling of its files.

    `base` off leaves `BASE` out; `text` is the nested text config of a multimodal model.
    `on_disk` edits config.json after saving (None drops the field), `rename` renames tensors, and
    `masks` names the mask buffers that old checkpoints have in every layer, `extra` makes
    further tensors. `without` leaves fields of `BASE` out. `refused` maps
    positions to a part of the message that refuses them.
    """

    name: str
    model_type: str
    config: Mapping[str, Any] = field(default_factory=dict)
    base: bool = True
    text: Mapping[str, Any] | None = None
    on_disk: Mapping[str, Any] = field(default_factory=dict)
    rename: Names | None = None
    masks: str | None = None
    extra: Callable[[Tensors], Tensors] | None = None
    without: tuple[str, ...] = ()
    depth: int = 6
    refused: Mapping[str, str] = field(default_factory=dict)


def without_prefix(prefix: str) -> Names:
    return lambda name: name.removeprefix(prefix)


def mtp_layer(tensors: Tensors) -> Tensors:
    """Make a multi-token-prediction layer as DeepSeek-V3 stores it: past the end, with a head."""
    last = {n: t for n, t in tensors.items() if n.startswith("model.layers.5.")}
    layer = {n.replace("layers.5.", "layers.6."): t + 1 for n, t in last.items()}
    norm = torch.ones(32, dtype=torch.bfloat16)
    head = {f"model.layers.6.{name}.weight": norm for name in ("enorm", "hnorm")}
    return layer | {n: t.clone() for n, t in head.items()}


def make_checkpoint(recipe: Zoo, folder: Path, *, seed: int = 0) -> None:
    """Write the recipe's checkpoint (bfloat16, one shard) into `folder`."""
    import pytest
    from transformers import CONFIG_MAPPING, AutoConfig

    if recipe.model_type not in CONFIG_MAPPING:
        pytest.skip(f"this transformers does not have {recipe.model_type}")
    # transformers writes into the objects of a config, which recipes share.
    config = AutoConfig.for_model(recipe.model_type, **deepcopy(config_fields(recipe)))
    torch.manual_seed(seed)
    model_class = auto_class(config)
    model = getattr(model_class, "from_config", model_class)(config)
    randomize(model)
    model.to(torch.bfloat16).save_pretrained(folder)
    path = folder / "config.json"
    document = json.loads(path.read_text())
    for name, value in recipe.on_disk.items():
        *parents, last = name.split(".")
        target = document
        for parent in parents:
            target = target[parent]
        target[last] = value
        if value is None:
            del target[last]
    path.write_text(json.dumps(document, indent=2))
    if recipe.rename or recipe.masks or recipe.extra:
        weights = folder / "model.safetensors"
        tensors = load_file(weights)
        if recipe.rename is not None:
            tensors = {recipe.rename(name): tensor for name, tensor in tensors.items()}
        for layer in range(6 if recipe.masks else 0):
            mask = torch.ones(1, 1, 8, 8, dtype=torch.uint8).tril()
            tensors[recipe.masks.replace("{i}", str(layer))] = mask
        if recipe.extra is not None:
            tensors |= recipe.extra(tensors)
        save_file(tensors, weights, metadata={"format": "pt"})


def config_fields(recipe: Zoo) -> Config:
    if recipe.text is not None:
        return {**recipe.config, "text_config": {**BASE, **recipe.text}}
    base = {name: value for name, value in BASE.items() if name not in recipe.without}
    return {**(base if recipe.base else {}), **recipe.config}


def auto_class(config: Any) -> Any:
    import transformers
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

    if config.model_type == "shieldgemma2":  # an auto class takes it for a Gemma 3
        return transformers.ShieldGemma2ForImageClassification
    for model_class in (AutoModelForImageTextToText, AutoModelForCausalLM):
        if type(config) in model_class._model_mapping:
            return model_class
    return transformers.AutoModelForMultimodalLM


def randomize(model: torch.nn.Module) -> None:
    """Give every parameter and every saved buffer random values of a healthy size."""
    saved = set(model.state_dict())
    with torch.no_grad():
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if name not in saved or not tensor.is_floating_point() or tensor.dim() == 0:
                continue
            noise = torch.randn_like(tensor)
            if "embed" in name or "wte" in name or "rwkv.embeddings" in name:
                tensor.copy_(noise)  # a stream as large as what real layers see
            elif tensor.dim() >= 2 and tensor.abs().max() < 0.5:
                tensor.copy_(noise * 0.7 / tensor.shape[-1] ** 0.5)
            else:  # norms, factors and decays keep the value that they are spread around
                tensor.add_(0.2 * noise)
