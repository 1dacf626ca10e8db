"""Quantised checkpoints of each format, expanded and unpacked, computed by transformers.

Source and output are loaded the same way, and their logits compared bit for bit. What transformers
computes otherwise than the format says is compared with the definition, element by element.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import quantized_zoo as zoo
import torch
from checkpoints import read_tensors
from safetensors.torch import load_file, save_file
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.utils import logging

import blockexpand
from blockexpand.errors import NoProofError
from blockexpand.training.settings import make_settings

torch.set_num_threads(1)

POSITIONS: Mapping[str, Sequence[int]] = {"end": (3, 3), "interleaved": (1, 3), "list": (1, 1, 2)}
MODES = ("keep", "new-blocks-full", "dequantize")


@dataclass(frozen=True, slots=True, kw_only=True)
class Format:
    """How a checkpoint is quantised, and the options with which transformers loads it."""

    base: str
    write: Callable[[Path], Path]
    options: Callable[[], dict[str, Any]] = dict
    is_exact: bool = True


def fp8(folder: Path, scale_dtype: torch.dtype | None = torch.float32) -> Path:
    tensors = zoo.quantize(zoo.read_tensors(folder), zoo.fp8_blocks(scale_dtype=scale_dtype))
    return zoo.write_quantized(folder, tensors, zoo.fp8_settings(), shards=3)


def fp8_fused(folder: Path) -> Path:
    tensors = zoo.quantize(zoo.read_tensors(folder), zoo.fp8_blocks())
    return zoo.write_quantized(folder, zoo.fp8_experts(tensors), zoo.fp8_settings(), shards=3)


def mxfp4(folder: Path) -> Path:
    tensors = zoo.mxfp4_experts(zoo.read_tensors(folder))
    return zoo.write_quantized(folder, tensors, zoo.MXFP4_SETTINGS, shards=2)


def mxfp4_options() -> dict[str, Any]:
    from transformers import Mxfp4Config

    return {"quantization_config": Mxfp4Config(dequantize=True)}


FORMATS = {
    "fp8-llama": Format(base="llama", write=fp8),
    "fp8-bf16-scales": Format(base="llama", write=lambda f: fp8(f, torch.bfloat16)),
    "fp8-e8m0-scales": Format(base="llama", write=lambda f: fp8(f, None)),
    "fp8-qwen3_moe": Format(base="qwen3_moe", write=fp8),
    # transformers takes a block that is not whole for a smaller one.
    "fp8-deepseek_v3": Format(base="deepseek_v3", write=fp8, is_exact=False),
    # transformers takes experts that are one tensor without their scales.
    "fp8-llama4_text": Format(base="llama4_text", write=fp8_fused, is_exact=False),
    "fp8-olmo2": Format(base="olmo2", write=fp8),
    "mxfp4-gpt_oss": Format(base="gpt_oss", write=mxfp4, options=mxfp4_options),
}


@pytest.fixture(scope="module", params=FORMATS)
def source(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Format, Path, torch.Tensor]:
    logging.set_verbosity_error()
    kind = FORMATS[request.param]
    folder = kind.write(zoo.make_base(tmp_path_factory.mktemp("quantized") / "source", kind.base))
    return kind, folder, zoo.logits(zoo.load(folder, **kind.options()))


def expand(source: Path, out: Path, position: str, mode: Any) -> blockexpand.Expansion:
    place: dict[str, Any] = {"position": position, "new_layers": 2}
    if position == "list":
        place = {"position": POSITIONS["list"]}
    return blockexpand.expand(source, out, quantized=mode, verify_after="tensors", **place)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("position", POSITIONS)
def test_the_logits_are_the_sources(
    source: tuple[Format, Path, torch.Tensor], position: str, mode: str, tmp_path: Path
) -> None:
    kind, folder, expected = source
    expand(folder, tmp_path / "out", position, mode)
    options = {} if mode == "dequantize" else kind.options()
    found = zoo.logits(zoo.load(tmp_path / "out", **options))
    if kind.is_exact or mode != "dequantize":
        assert torch.equal(found, expected)


def test_every_original_byte_stays(
    source: tuple[Format, Path, torch.Tensor], tmp_path: Path
) -> None:
    _, folder, _ = source
    before = {name: tensor[:3] for name, tensor in read_tensors(folder).items()}
    for mode in MODES[:2]:
        expand(folder, tmp_path / mode, "end", mode)
        after = {name: tensor[:3] for name, tensor in read_tensors(tmp_path / mode).items()}
        assert {name: after[name] for name in before} == before
    config = json.loads((tmp_path / "new-blocks-full" / "config.json").read_text())
    assert "model.layers.4" in json.dumps(config["quantization_config"])


def test_unpacked_values_are_those_of_the_definition(
    source: tuple[Format, Path, torch.Tensor], tmp_path: Path
) -> None:
    kind, folder, _ = source
    out = tmp_path / "out"
    blockexpand.expand(folder, out, new_layers=0, quantized="dequantize", verify_after="tensors")
    parts, found = zoo.read_tensors(folder), zoo.read_tensors(out)
    assert "quantization_config" not in json.loads((out / "config.json").read_text())
    is_mxfp4 = kind.base == "gpt_oss"
    ending = "_blocks" if is_mxfp4 else "_scale_inv"
    modules = [
        name.removesuffix(ending).removesuffix(".weight") for name in parts if name.endswith(ending)
    ]
    assert len(modules) >= 8
    for module in modules:
        if is_mxfp4:
            name, expected = module, zoo.mxfp4_values(parts, module)
        else:
            name = module if module in parts else f"{module}.weight"
            expected = zoo.fp8_values(parts, module)
        assert found[name].dtype == torch.bfloat16
        assert torch.equal(found[name], expected), name
    assert not any(name.endswith((ending, "_scales")) for name in found)


def test_new_blocks_stored_full_have_the_values_of_their_sources(
    source: tuple[Format, Path, torch.Tensor], tmp_path: Path
) -> None:
    _, folder, _ = source
    expand(folder, tmp_path / "full", "interleaved", "new-blocks-full")
    expand(folder, tmp_path / "all", "interleaved", "dequantize")
    full, unpacked = (zoo.read_tensors(tmp_path / name) for name in ("full", "all"))
    new = [name for name in full if name.startswith(("model.layers.2.", "model.layers.5."))]
    assert new and not any("scale" in name or "_blocks" in name for name in new)
    for name in new:
        assert torch.equal(full[name], unpacked[name]), name


def test_new_blocks_train_inside_a_frozen_base(
    source: tuple[Format, Path, torch.Tensor], tmp_path: Path
) -> None:
    kind, folder, _ = source
    out = tmp_path / "out"
    expand(folder, out, "interleaved", "new-blocks-full")
    model = zoo.load(out, **kind.options())
    trainable = set(blockexpand.freeze_original_layers(model, out))
    frozen = {n: p.clone() for n, p in model.named_parameters() if n not in trainable}
    ids = torch.randint(3, zoo.VOCABULARY, (2, 24), generator=torch.Generator().manual_seed(3))
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    touched: set[str] = set()
    for _ in range(2):
        optimizer.zero_grad()
        model(input_ids=ids, labels=ids).loss.backward()
        touched |= {
            n for n, p in model.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0
        }
        optimizer.step()
    unused = {n for n in trainable - touched if "rope" not in n and "expert" not in n}
    assert not unused, unused
    assert touched <= trainable
    after = dict(model.named_parameters())
    assert all(torch.equal(after[name], value) for name, value in frozen.items())


def test_verify_logits_loads_both_alike(
    source: tuple[Format, Path, torch.Tensor], tmp_path: Path
) -> None:
    kind, folder, _ = source
    for mode in MODES:
        expand(folder, tmp_path / mode, "interleaved", mode)
        if mode == "dequantize" and not kind.is_exact:
            with pytest.raises(NoProofError, match=r"not whole|in one tensor \(model\.layers\.0\."):
                blockexpand.verify(folder, tmp_path / mode, logits=True)
            continue
        _, proof = blockexpand.verify(folder, tmp_path / mode, logits=True)
        assert proof is not None and proof.tokens > 8


def test_check_proves_the_plan_unquantised(
    source: tuple[Format, Path, torch.Tensor], tmp_path: Path
) -> None:
    _, folder, _ = source
    notes = blockexpand.expand(folder, tmp_path / "out", position=(1, 3), check=True).notes
    assert any("logits of 48 tokens bit-identical" in note for note in notes), notes


# What would go wrong, seen to go wrong: each breaks one thing that is done right.
def damage(folder: Path, edit: Callable[[str, torch.Tensor], torch.Tensor]) -> Path:
    for file in folder.glob("*.safetensors"):
        tensors = {name: edit(name, t) for name, t in load_file(file).items()}
        save_file(tensors, file, metadata={"format": "pt"})
    return folder


@pytest.mark.parametrize("kind", ["copied-values", "e8m0-zeroed"])
def test_the_logits_would_show_a_wrong_zero(kind: str, tmp_path: Path) -> None:
    logging.set_verbosity_error()
    source = zoo.make_base(tmp_path / "source", "llama")
    fp8(source, None)
    expected = zoo.logits(zoo.load(source))
    out = tmp_path / "out"
    expand(source, out, "end", "keep")
    values = zoo.read_tensors(source)["model.layers.3.self_attn.o_proj.weight"]

    def edit(name: str, tensor: torch.Tensor) -> torch.Tensor:
        if name == "model.layers.5.self_attn.o_proj.weight":
            return values
        if name == "model.layers.5.self_attn.o_proj.weight_scale_inv" and kind == "e8m0-zeroed":
            # No zero but 2 ** -127: the weight is not zero, whatever its scales are.
            return torch.zeros_like(tensor.view(torch.uint8)).view(tensor.dtype)
        return tensor

    damage(out, edit)
    unpacked = zoo.load(out).model.layers[5].self_attn.o_proj.weight
    assert unpacked.abs().sum() > 0
    if kind == "copied-values":
        assert not torch.equal(zoo.logits(zoo.load(out)), expected)


def test_the_card_says_what_is_quantised(tmp_path: Path) -> None:
    source = fp8(zoo.make_base(tmp_path / "source", "llama"))
    cards = {}
    for mode in MODES:
        expand(source, tmp_path / mode, "end", mode)
        cards[mode] = (tmp_path / mode / "README.md").read_text()
        manifest = json.loads((tmp_path / mode / "block_expansion.json").read_text())
        assert manifest["quantized"] == {"method": "fp8", "mode": mode}
        assert f"--quantized {mode}" in cards[mode] or mode == "keep"
    assert "quantized (fp8) as in the source, those of the new blocks too" in cards["keep"]
    assert "train LoRA adapters" in cards["keep"]
    assert "the new blocks are not: they are stored in bfloat16" in cards["new-blocks-full"]
    blockexpand.expand(source, tmp_path / "flat", new_layers=0, quantized="dequantize")
    flat = (tmp_path / "flat" / "README.md").read_text()
    assert "dequantized" in flat and "untrained" not in flat


def test_refusals_say_what_to_do(tmp_path: Path) -> None:
    plain = zoo.make_base(tmp_path / "plain", "llama")
    with pytest.raises(blockexpand.RecipeError, match="the source is not quantized"):
        blockexpand.expand(plain, tmp_path / "out", new_layers=1, quantized="dequantize")
    source = fp8(plain)
    with pytest.raises(blockexpand.BlockExpandError, match="whole number from 1"):
        blockexpand.expand(source, tmp_path / "out", new_layers=0)
    recipe = tmp_path / "recipe.yml"
    recipe.write_text(
        f"merge_method: passthrough\nslices:\n- sources: [{{model: {source}, "
        "layer_range: [0, 4]}]\n"
    )
    with pytest.raises(blockexpand.UnsupportedModelError, match="--quantized dequantize"):
        blockexpand.merge(recipe, tmp_path / "out")
    for method in ("hqq", "torchao", "modelopt", "quanto", "nonesuch"):
        zoo.write_quantized(source, zoo.read_tensors(source), {"quant_method": method})
        with pytest.raises(blockexpand.UnsupportedModelError, match=f"{method}.*use the unquant"):
            blockexpand.expand(source, tmp_path / "out", new_layers=1)
    assert not (tmp_path / "out").exists()


def test_a_module_without_one_of_its_parts_is_refused(tmp_path: Path) -> None:
    source = fp8(zoo.make_base(tmp_path / "source", "llama"))
    tensors = zoo.read_tensors(source)
    del tensors["model.layers.1.mlp.up_proj.weight_scale_inv"]
    zoo.write_quantized(source, tensors, zoo.fp8_settings())
    with pytest.raises(blockexpand.CheckpointError, match=r"layers\.1\.mlp\.up_proj.*no scale"):
        blockexpand.expand(source, tmp_path / "out", new_layers=1)


def test_layers_may_differ_in_what_is_quantised(tmp_path: Path) -> None:
    source = zoo.make_base(tmp_path / "source", "llama")
    kept = ("model.layers.1.self_attn.o_proj", "model.layers.3.mlp.down_proj")
    tensors = zoo.quantize(
        zoo.read_tensors(source),
        zoo.fp8_blocks(),
        lambda name: zoo.is_linear(name) and not name.startswith(kept),
    )
    settings = zoo.fp8_settings(modules_to_not_convert=["lm_head", *kept])
    zoo.write_quantized(source, tensors, settings, shards=2)
    expected = zoo.logits(zoo.load(source))
    for mode in MODES:
        for position in POSITIONS:
            out = tmp_path / f"{mode}-{position}"
            expand(source, out, position, mode)
            assert torch.equal(zoo.logits(zoo.load(out)), expected), (mode, position)
    names = json.loads((tmp_path / "keep-list" / "config.json").read_text())
    assert names["quantization_config"]["modules_to_not_convert"] == [
        "lm_head",
        *(f"model.layers.{n}.self_attn.o_proj" for n in (1, 2, 3)),
        "model.layers.6.mlp.down_proj",
    ]


def test_trained_blocks_are_extracted_against_the_unpacked_base(tmp_path: Path) -> None:
    logging.set_verbosity_error()
    source = fp8(zoo.make_base(tmp_path / "source", "llama"))
    out = tmp_path / "out"
    expand(source, out, "interleaved", "new-blocks-full")
    model = zoo.load(out)
    blockexpand.freeze_original_layers(model, out)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.01)
    trained = tmp_path / "trained"
    # As train-config prints it: transformers would quantise the new blocks when it saves them.
    text = make_settings(out, "transformers").text
    assert "model._weight_conversions = get_model_conversion_mapping(model)" in text
    model.hf_quantizer = None
    model._weight_conversions = get_model_conversion_mapping(model)
    model.save_pretrained(trained)
    (trained / "block_expansion.json").write_bytes((out / "block_expansion.json").read_bytes())
    blockexpand.expand(source, tmp_path / "base", new_layers=0, quantized="dequantize")
    made = blockexpand.extract(trained, tmp_path / "adapter", base=tmp_path / "base")
    new = ("model.layers.2.", "model.layers.5.")
    assert all(name.startswith(new) for name in made.adapter.tensors)
    blockexpand.apply(tmp_path / "base", tmp_path / "adapter", out=tmp_path / "applied")
    assert torch.equal(zoo.logits(zoo.load(tmp_path / "applied")), zoo.logits(model))
