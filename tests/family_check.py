"""Expand one checkpoint of the zoo at one position, and prove the result with transformers."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from family_zoo import TOKENS, Zoo, auto_class, make_checkpoint
from safetensors.torch import load_file, save_file

from blockexpand.decoder import Surgery, find_decoder, output_name, plan_surgery
from blockexpand.errors import UnsupportedModelError
from blockexpand.layer_map import LayerMap, map_position
from blockexpand.safetensors_header import TensorSpec

POSITIONS = ("end", "interleaved", "start", "list")
DTYPE_NAMES = {torch.bfloat16: "BF16", torch.float32: "F32", torch.uint8: "U8"}
# The change of the logits by one step, relative to their mean size. At the start of a model the
# stream is the bare embeddings, so that the same step weighs more.
LEARNING_BAR = {"end": 1e-3, "interleaved": 1e-3, "start": 1e-2, "list": 2e-3}


@dataclass(frozen=True, slots=True, kw_only=True)
class Outputs:
    """What a checkpoint computes: logits by dtype, and tokens generated with the cache.

    `layers` says what transformers built for each layer, `model` is loaded in float32.
    """

    logits: dict[torch.dtype, torch.Tensor]
    tokens: torch.Tensor
    layers: tuple[dict[str, Any], ...]
    model: Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    folder: Path
    config: dict[str, Any]
    tensors: dict[str, torch.Tensor]
    outputs: Outputs


def open_source(recipe: Zoo, folder: Path) -> Source:
    make_checkpoint(recipe, folder)
    return Source(
        folder=folder,
        config=json.loads((folder / "config.json").read_text()),
        tensors=load_file(folder / "model.safetensors"),
        outputs=run(folder, 6),
    )


def layer_map_at(layers: int, position: str) -> LayerMap:
    if position == "list":
        return map_position(layers, [1, 1, layers - 2], None)
    return map_position(layers, position, 2)


def specs(tensors: dict[str, torch.Tensor]) -> dict[str, TensorSpec]:
    return {
        name: TensorSpec(
            dtype=DTYPE_NAMES[tensor.dtype], shape=tuple(tensor.shape), nbytes=tensor.nbytes
        )
        for name, tensor in tensors.items()
    }


def expand(source: Source, position: str, out: Path) -> tuple[Surgery, LayerMap]:
    """Apply the plan of the surgery to tensors in memory, and save them."""
    decoder = find_decoder(source.config, specs(source.tensors))
    layer_map = layer_map_at(decoder.layers, position)
    surgery = plan_surgery(decoder, source.config, layer_map)
    result = {n: t for n, t in source.tensors.items() if n not in decoder.placed}
    for index, entry in enumerate(layer_map):
        for name, placed in decoder.placed.items():
            if placed.layer != entry.source:
                continue
            tensor = source.tensors[name]
            constants = surgery.neutral[entry.source] if entry.is_new else {}
            if placed.suffix in constants:
                tensor = torch.full_like(tensor, constants[placed.suffix])
            result[output_name(decoder, placed, index)] = tensor.clone()
    for name, placed in decoder.placed.items():
        if placed.layer >= decoder.layers:
            index = placed.layer - decoder.layers + len(layer_map)
            result[output_name(decoder, placed, index)] = source.tensors[name].clone()
    config = json.loads(json.dumps(source.config))
    for edit in surgery.config_edits:
        target = config
        for key in edit.path[:-1]:
            target = target[key]
        target[edit.path[-1]] = edit.value
    out.mkdir()
    save_file(result, out / "model.safetensors", metadata={"format": "pt"})
    (out / "config.json").write_text(json.dumps(config))
    generation = source.folder / "generation_config.json"
    if generation.exists():
        (out / generation.name).write_bytes(generation.read_bytes())
    return surgery, layer_map


def load(folder: Path, dtype: torch.dtype, **options: Any) -> Any:
    """Load with transformers and refuse any key that it misses or does not expect."""
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(folder)
    model, info = auto_class(config).from_pretrained(
        folder, dtype=dtype, output_loading_info=True, **options
    )
    missing = {key for key in info["missing_keys"] if "lm_head" not in key}
    assert not missing, f"missing keys: {sorted(missing)}"
    assert not info["mismatched_keys"]
    unexpected = [k for k in info["unexpected_keys"] if not k.endswith((".attn.bias", "inv_freq"))]
    assert not unexpected, f"unexpected keys: {sorted(unexpected)}"
    return model.eval()


def run(folder: Path, depth: int) -> Outputs:
    ids = tokens()
    logits = {}
    for dtype in (torch.bfloat16, torch.float32):
        model = load(folder, dtype)
        with torch.no_grad():
            logits[dtype] = model(input_ids=ids).logits
        assert logits[dtype].isfinite().all()
    options = {"max_new_tokens": 8, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    return Outputs(
        logits=logits,
        tokens=model.generate(ids[:1], **options),
        layers=tuple(traits(layer) for layer in decoder_layers(model, depth)),
        model=model,
    )


def tokens() -> torch.Tensor:
    return torch.randint(3, 90, (2, TOKENS), generator=torch.Generator().manual_seed(1))


def check_position(recipe: Zoo, source: Source, position: str, out: Path) -> str:
    """Expand at one position and assert that the result is the same function and can learn."""
    if position in recipe.refused:
        with pytest.raises(UnsupportedModelError, match=recipe.refused[position]):
            expand(source, position, out)
        return "refused"
    surgery, layer_map = expand(source, position, out)
    found = run(out, len(layer_map))
    for dtype, expected in source.outputs.logits.items():
        assert torch.equal(found.logits[dtype], expected), f"logits differ in {dtype}"
    assert torch.equal(found.tokens, source.outputs.tokens)
    clones = not any("no true clones" in note for note in surgery.notes)
    for index, entry in enumerate(layer_map if clones else ()):
        assert found.layers[index] == source.outputs.layers[entry.source], (
            f"layer {index} is not built like its source layer {entry.source}"
        )
    change = check_learning(found.model, surgery, layer_map)
    assert 0 < change < LEARNING_BAR[position], f"one step changes the logits by {change:.2e}"
    return f"exact {change:.1e}"


def decoder_layers(model: Any, depth: int) -> torch.nn.ModuleList:
    """Return the text decoder's list of layers: the one that has `depth` and is not a tower's."""
    found = [
        module
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.ModuleList)
        and len(module) == depth
        and name.rpartition(".")[2] in ("layers", "h", "blocks", "layer")
        and not any(tower in name for tower in ("vision", "visual", "audio"))
    ]
    assert len(found) == 1
    return found[0]


def check_learning(model: Any, surgery: Surgery, layer_map: LayerMap) -> float:
    """Take one AdamW step of the new blocks; every neutral tensor must get a gradient."""
    layers = decoder_layers(model, len(layer_map))
    new = [index for index, entry in enumerate(layer_map) if entry.is_new]
    model.requires_grad_(False)
    for index in new:
        layers[index].requires_grad_(True)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    ids = tokens()
    result = model(input_ids=ids, use_cache=False).logits
    loss = torch.nn.functional.cross_entropy(result[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
    loss.backward()
    for index in new:
        values = set(surgery.neutral[layer_map[index].source].values())
        neutral = [p for p in layers[index].parameters() if _is_constant(p, values)]
        assert neutral, f"layer {index} has no neutral parameter"
        for parameter in neutral:
            assert parameter.grad is not None and parameter.grad.abs().sum() > 0, (
                f"no gradient in a neutral parameter of layer {index}"
            )
    torch.nn.utils.clip_grad_norm_(trained, 1.0)
    torch.optim.AdamW(trained, lr=1e-5).step()
    with torch.no_grad():
        change = (model(input_ids=ids, use_cache=False).logits - result).abs().mean() / result.abs().mean()
    return float(change)


def _is_constant(parameter: torch.Tensor, values: set[float]) -> bool:
    return any(bool((parameter == value).all()) for value in values)


def traits(layer: torch.nn.Module) -> dict[str, Any]:
    """Return the class of every module of a layer, and its plain attributes but its number."""
    found: dict[str, Any] = {}
    for name, module in layer.named_modules():
        found[name] = type(module).__name__
        for key, value in vars(module).items():
            if key.startswith("_") or key in ("layer_idx", "layer_id", "training", "layer_number"):
                continue
            if isinstance(value, (bool, int, float, str, type(None), tuple)):
                found[f"{name}.{key}"] = value
    return found
