"""Checkpoints that compressed-tensors quantised, expanded and unpacked.

The library quantises and loads here: no other reading of its format is the standard.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import compressed_zoo
import pytest
import quantized_zoo as zoo
import torch
from safetensors.torch import save_file
from transformers.utils import logging

import blockexpand

torch.set_num_threads(1)

# transformers says that a config's own options go before those that it is loaded with.
pytestmark = pytest.mark.filterwarnings("ignore:You passed `quantization_config`:UserWarning")

MODES = ("keep", "new-blocks-full", "dequantize")


def expand(source: Path, out: Path, mode: Any) -> Path:
    blockexpand.expand(
        source, out, new_layers=2, position="interleaved", quantized=mode, verify_after="tensors"
    )
    return out


def load_unpacked(folder: Path) -> Any:
    from transformers import CompressedTensorsConfig

    return zoo.load(folder, quantization_config=CompressedTensorsConfig(dequantize=True))


@pytest.mark.parametrize(
    ("preset", "base"),
    [
        *((preset, "llama") for preset in compressed_zoo.PRESETS),
        *((preset, base) for preset in ("W4A16", "FP8_DYNAMIC") for base in ("qwen3_moe", "olmo2")),
    ],
)
def test_compressed_tensors(preset: str, base: str, tmp_path: Path) -> None:
    logging.set_verbosity_error()
    source = compressed_zoo.write_compressed(zoo.make_base(tmp_path / "source", base), preset)
    expected = zoo.logits(load_unpacked(source))
    for mode in MODES:
        if mode == "new-blocks-full" and (base, preset) == ("qwen3_moe", "W4A16"):
            with pytest.raises(blockexpand.UnsupportedModelError, match="packed experts"):
                expand(source, tmp_path / mode, mode)
            continue
        out = expand(source, tmp_path / mode, mode)
        model = zoo.load(out) if mode == "dequantize" else load_unpacked(out)
        assert torch.equal(zoo.logits(model), expected), mode


def test_gradients_that_quantised_activations_would_stop_are_refused(tmp_path: Path) -> None:
    logging.set_verbosity_error()
    base = zoo.make_base(tmp_path / "source", "llama")
    source = compressed_zoo.write_compressed(base, "FP8_DYNAMIC")
    out = expand(source, tmp_path / "out", "new-blocks-full")
    with pytest.raises(blockexpand.TrainingError, match=r"dequantize=True"):
        blockexpand.freeze_original_layers(zoo.load(out), out)
    model = load_unpacked(out)
    trainable = blockexpand.freeze_original_layers(model, out)
    ids = torch.randint(3, zoo.VOCABULARY, (2, 24), generator=torch.Generator().manual_seed(3))
    model(input_ids=ids, labels=ids).loss.backward()
    unpacked = expand(source, tmp_path / "unpacked", "dequantize")
    reference = zoo.load(unpacked)
    blockexpand.freeze_original_layers(reference, unpacked)
    reference(input_ids=ids, labels=ids).loss.backward()
    expected = dict(reference.named_parameters())
    for name, parameter in model.named_parameters():
        if name in trainable:
            assert torch.equal(parameter.grad, expected[name].grad), name


def test_experts_that_are_one_by_one_only_quantised(tmp_path: Path) -> None:
    """Llama 4 as it is released in FP8 (Maverick): unpacked, transformers would not know them."""
    logging.set_verbosity_error()
    source = zoo.make_base(tmp_path / "source", "llama4_text")
    tensors: zoo.Tensors = {}
    for name, tensor in zoo.read_tensors(source).items():
        experts, found, kind = name.partition(".experts.")
        if not found:
            tensors[name] = tensor
            continue
        for number, expert in enumerate(tensor):
            parts = expert.t().chunk(2) if kind == "gate_up_proj" else (expert.t(),)
            names = ("gate_proj", "up_proj") if len(parts) == 2 else ("down_proj",)
            for part, own in zip(parts, names, strict=True):
                tensors[f"{experts}.experts.{number}.{own}.weight"] = part.contiguous()
    for file in source.glob("*.safetensors*"):
        file.unlink()
    save_file(tensors, source / "model.safetensors", metadata={"format": "pt"})
    plain = [
        f"model.layers.{layer}.{module}"
        for layer in range(zoo.LAYERS)
        for module in ("feed_forward.router", *(f"self_attn.{p}_proj" for p in "qkvo"))
    ]
    compressed_zoo.write_compressed(source, "FP8_DYNAMIC", ignore=("lm_head", *plain))
    expected = zoo.logits(load_unpacked(source))
    for mode in MODES[:2]:
        out = expand(source, tmp_path / mode, mode)
        assert torch.equal(zoo.logits(load_unpacked(out)), expected), mode
    with pytest.raises(blockexpand.UnsupportedModelError, match=r"one by one.* --quantized keep"):
        expand(source, tmp_path / "out", "dequantize")
