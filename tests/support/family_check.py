"""Expand one checkpoint of the zoo at one position, and prove the result with transformers."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from family_zoo import TOKENS, Zoo, auto_class

import blockexpand
from blockexpand import Expansion
from blockexpand.errors import UnsupportedModelError

# Buffers of old checkpoints, and the layer for multi-token prediction after 6, 8 or 9 layers.
UNUSED = re.compile(r"\.attn\.bias$|inv_freq$|^model\.layers\.[689]\.")
# Experts that see images only, and the test's tokens are text.
BLIND = ".vision_moe."
# Threads only wait for each other on tensors as small as these.
torch.set_num_threads(1)

POSITIONS = ("end", "interleaved", "start", "list")
# The change of the logits by one step, relative to their mean size. At the start of a model the
# stream is the bare embeddings, so that the same step weighs more.
LEARNING_BAR = {"end": 1e-3, "interleaved": 1e-3, "start": 1e-2, "list": 2e-3}


@dataclass(frozen=True, slots=True, kw_only=True)
class Outputs:
    """What a checkpoint computes: logits by dtype, and tokens generated with the cache.

    `layers` says what transformers built for each layer, `lenders` of which layer's keys and
    values it uses, `model` is loaded in float32.
    """

    logits: dict[torch.dtype, torch.Tensor]
    tokens: torch.Tensor
    layers: tuple[dict[str, Any], ...]
    lenders: tuple[int, ...]
    model: Any


def layer_map_at(layers: int, position: str) -> tuple[tuple[int, bool], ...]:
    """Write down, for each output layer, its source and whether it is new."""
    clones = {
        "end": {layers - 1: 2},
        "interleaved": {layers // 2 - 1: 1, layers - 1: 1},
        "list": {1: 2, layers - 2: 1},
    }
    if position == "start":
        return ((0, True), (0, True), *((index, False) for index in range(layers)))
    entries: list[tuple[int, bool]] = []
    for index in range(layers):
        entries += [(index, False)] + [(index, True)] * clones[position].get(index, 0)
    return tuple(entries)


def expand(recipe: Zoo, folder: Path, position: str, out: Path) -> Expansion:
    if position == "list":
        return blockexpand.expand(folder, out, position=[1, 1, recipe.depth - 2], dtype="source")
    return blockexpand.expand(folder, out, position=position, new_layers=2, dtype="source")


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
    unexpected = [key for key in info["unexpected_keys"] if not UNUSED.search(key)]
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
        lenders=key_lenders(decoder_layers(model, depth)),
        model=model,
    )


def tokens() -> torch.Tensor:
    return torch.randint(3, 90, (2, TOKENS), generator=torch.Generator().manual_seed(1))


def check_position(
    recipe: Zoo, source: Outputs, folder: Path, position: str, out: Path
) -> float | None:
    """Expand at one position and assert that the result is the same function and can learn.

    Returns the relative change of the logits by one step, or None where a refusal is expected.
    """
    if position in recipe.refused:
        with pytest.raises(UnsupportedModelError, match=recipe.refused[position]):
            expand(recipe, folder, position, out)
        assert not out.exists()
        return None
    notes = expand(recipe, folder, position, out).notes
    layer_map = layer_map_at(recipe.depth, position)
    found = run(out, len(layer_map))
    for dtype, expected in source.logits.items():
        assert torch.equal(found.logits[dtype], expected), f"{position}: {dtype} logits differ"
    assert torch.equal(found.tokens, source.tokens)
    if not any("no true clones" in note for note in notes):
        for index, (origin, _) in enumerate(layer_map):
            assert found.layers[index] == source.layers[origin], (
                f"{position}: layer {index} is not built like its source layer {origin}"
            )
    for index, (origin, _) in enumerate(layer_map):
        lender, expected_lender = found.lenders[index], source.lenders[origin]
        own = lender == index and expected_lender == origin
        assert own or layer_map[lender] == (expected_lender, False), (
            f"{position}: layer {index} uses the keys and values of layer {lender}"
        )
    change = check_learning(source.model, found.model, layer_map)
    assert 0 < change < LEARNING_BAR[position], f"{position}: a step changes {change:.2e}"
    return change


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


def check_learning(source: Any, model: Any, layer_map: Sequence[tuple[int, bool]]) -> float:
    """Take one AdamW step of the new blocks; every neutral tensor must get a gradient.

    A parameter is neutral if it differs from the one that it was cloned from.
    """
    originals = decoder_layers(source, 1 + max(origin for origin, _ in layer_map))
    layers = decoder_layers(model, len(layer_map))
    model.requires_grad_(False)
    neutral: dict[str, Any] = {}
    for index, (origin, is_new) in enumerate(layer_map):
        if not is_new:
            continue
        cloned = dict(originals[origin].named_parameters())
        layers[index].requires_grad_(True)
        for name, parameter in layers[index].named_parameters():
            if not torch.equal(parameter, cloned[name]):
                neutral[f"{index}.{name}"] = parameter
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    ids = tokens()
    result = model(input_ids=ids, use_cache=False).logits
    torch.nn.functional.cross_entropy(result[:, :-1].flatten(0, 1), ids[:, 1:].flatten()).backward()
    assert neutral
    for name, parameter in neutral.items():
        if BLIND in name:
            continue
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, f"no gradient: {name}"
    torch.nn.utils.clip_grad_norm_(trained, 1.0)
    torch.optim.AdamW(trained, lr=1e-5).step()
    with torch.no_grad():
        changed = model(input_ids=ids, use_cache=False).logits
    before = result.detach()
    return float((changed - before).abs().mean() / before.abs().mean())


def key_lenders(layers: torch.nn.ModuleList) -> tuple[int, ...]:
    """Return for each layer the one whose keys and values it uses: its own number, or another's."""
    lenders: list[int] = []
    stored: dict[str, int] = {}
    for index, layer in enumerate(layers):
        attention = getattr(layer, "self_attn", None)
        shares = getattr(attention, "is_kv_shared_layer", False)
        kind = getattr(attention, "layer_type", None) or str(getattr(attention, "use_rope", ""))
        lenders.append(stored[kind] if shares else index)
        if getattr(attention, "store_full_length_kv", False):
            stored[kind] = index
    return tuple(lenders)


# Traits of a place, not of a layer: its number, and whether later layers use its keys and values.
OF_THE_PLACE = ("layer_idx", "layer_id", "layer_number", "training", "store_full_length_kv")


def traits(layer: torch.nn.Module) -> dict[str, Any]:
    """Return the class of every module of a layer, and its plain attributes but its number."""
    found: dict[str, Any] = {}
    for name, module in layer.named_modules():
        found[name] = type(module).__name__
        for key, value in vars(module).items():
            if key.startswith("_") or key in OF_THE_PLACE:
                continue
            if isinstance(value, float):  # what a float32 tensor is multiplied by
                found[f"{name}.{key}"] = float(torch.tensor(value, dtype=torch.float32))
            elif isinstance(value, (bool, int, str, type(None), tuple)):
                found[f"{name}.{key}"] = value
    return found
