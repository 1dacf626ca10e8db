"""Checkpoints that compressed-tensors and bitsandbytes quantised, expanded and unpacked.

Both libraries quantise and load here; without them nothing is tested, since no other reading of
their formats is the standard.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import compressed_zoo
import pytest
import quantized_zoo as zoo
import torch
from transformers.utils import logging

import blockexpand

torch.set_num_threads(1)

MODES = ("keep", "new-blocks-full", "dequantize")
BITSANDBYTES = {
    "nf4": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"},
    "nf4-nested": {
        "load_in_4bit": True,
        "bnb_4bit_quant_type": "nf4",
        "bnb_4bit_use_double_quant": True,
    },
    "fp4": {"load_in_4bit": True, "bnb_4bit_quant_type": "fp4"},
    "int8": {"load_in_8bit": True},
}


def expand(source: Path, out: Path, mode: Any) -> Path:
    blockexpand.expand(
        source, out, new_layers=2, position="interleaved", quantized=mode, verify_after="tensors"
    )
    return out


def load_unpacked(folder: Path) -> Any:
    from transformers import CompressedTensorsConfig

    return zoo.load(folder, quantization_config=CompressedTensorsConfig(dequantize=True))


@pytest.mark.parametrize("base", ["llama", "qwen3_moe", "olmo2"])
@pytest.mark.parametrize("preset", compressed_zoo.PRESETS)
def test_compressed_tensors(preset: str, base: str, tmp_path: Path) -> None:
    pytest.importorskip("compressed_tensors")
    if base != "llama" and preset not in ("W4A16", "FP8_DYNAMIC"):
        pytest.skip("one family shows the scheme")
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


@pytest.mark.parametrize("kind", BITSANDBYTES)
def test_bitsandbytes(kind: str, tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    logging.set_verbosity_error()
    base = zoo.make_base(tmp_path / "base", "llama")
    source = compressed_zoo.write_bitsandbytes(base, tmp_path / "source", **BITSANDBYTES[kind])
    expected = zoo.logits(zoo.load(source))
    for mode in MODES[:2]:
        found = zoo.logits(zoo.load(expand(source, tmp_path / mode, mode)))
        assert torch.equal(found, expected), mode
    # Not the model that was run: on a CPU bitsandbytes packs weights otherwise for that.
    unpacked = zoo.load(source).dequantize()
    found = zoo.load(expand(source, tmp_path / "dequantize", "dequantize"))
    state = dict(unpacked.named_parameters())
    for name, parameter in zoo.load(
        Path(
            blockexpand.expand(source, tmp_path / "flat", new_layers=0, quantized="dequantize").out
        )
    ).named_parameters():
        assert torch.equal(parameter, state[name].to(parameter.dtype)), name
    if kind != "fp4":
        assert torch.equal(zoo.logits(found), zoo.logits(unpacked))


def test_gradients_that_quantised_activations_would_stop_are_refused(tmp_path: Path) -> None:
    pytest.importorskip("compressed_tensors")
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
