"""Expand, unpack and train what bitsandbytes quantised; run in an environment that has it.

    python bitsandbytes_check.py KIND FOLDER

A process of its own: bitsandbytes writes to stderr when it is imported, and PEFT imports it.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import compressed_zoo
import quantized_zoo as zoo
import torch
from transformers.utils import logging

import blockexpand
from blockexpand.training.settings import make_settings

KINDS = {
    "nf4": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"},
    "nf4-nested": {
        "load_in_4bit": True,
        "bnb_4bit_quant_type": "nf4",
        "bnb_4bit_use_double_quant": True,
    },
    # As Unsloth's dynamic quants: some modules of some layers are left out by name.
    "nf4-dynamic": {
        "load_in_4bit": True,
        "bnb_4bit_quant_type": "nf4",
        "llm_int8_skip_modules": [
            *("lm_head", "model.layers.1.mlp", "model.layers.3.self_attn.o_proj"),
        ],
    },
    "fp4": {"load_in_4bit": True, "bnb_4bit_quant_type": "fp4"},
    "int8": {"load_in_8bit": True},
}
POSITIONS: dict[str, Any] = {"end": (3, 3), "interleaved": (1, 3), "list": (0, 0, 2)}


def expand(source: Path, out: Path, position: str, mode: Any) -> Path:
    blockexpand.expand(
        source,
        out,
        position=POSITIONS[position],
        quantized=mode,
        verify_after="tensors",
        check=True,
    )
    return out


def check_kind(kind: str, folder: Path) -> None:
    """Compare logits, or every weight, of each mode at each position."""
    base = zoo.make_base(folder / "base", "llama")
    source = compressed_zoo.write_bitsandbytes(base, folder / "source", **KINDS[kind])
    expected = zoo.logits(zoo.load(source))
    for position in POSITIONS:
        for mode in ("keep", "new-blocks-full"):
            out = expand(source, folder / f"{mode}-{position}", position, mode)
            assert torch.equal(zoo.logits(zoo.load(out)), expected), (mode, position)
            assert blockexpand.verify(source, out, logits=True)[1] is not None
    # Not the model that was run: on a CPU bitsandbytes packs weights otherwise for that.
    unpacked = zoo.load(source).dequantize()
    flat = folder / "flat"
    blockexpand.expand(source, flat, new_layers=0, quantized="dequantize")
    state = dict(unpacked.named_parameters())
    for name, parameter in zoo.load(flat).named_parameters():
        assert torch.equal(parameter, state[name].to(parameter.dtype)), name
    if kind != "fp4":
        found = zoo.load(expand(source, folder / "dequantize", "interleaved", "dequantize"))
        assert torch.equal(zoo.logits(found), zoo.logits(unpacked))
    check_training(source, folder / "new-blocks-full-interleaved", folder)


def check_training(source: Path, expanded: Path, folder: Path) -> None:
    """Train new blocks, save them as `train-config` prints it, and put them on the source again."""
    model = zoo.load(expanded)
    trainable = blockexpand.freeze_original_layers(model, expanded)
    ids = torch.randint(3, zoo.VOCABULARY, (2, 24), generator=torch.Generator().manual_seed(3))
    model(input_ids=ids, labels=ids).loss.backward()
    parameters = dict(model.named_parameters())
    assert all(parameters[name].grad is not None for name in trainable)
    assert all(p.grad is None for name, p in parameters.items() if name not in trainable)
    # Saved without having computed anything: on a CPU that changes the scales of the originals.
    model = zoo.load(expanded)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name in trainable:
                parameter.add_(0.01)
    text = make_settings(expanded, "transformers").text
    for line in ("model.is_quantized = False", "model._weight_conversions = []"):
        assert line in text
        exec(line, {"model": model})
    model.save_pretrained(folder / "trained")
    shutil.copy(expanded / "block_expansion.json", folder / "trained")
    made = blockexpand.extract(folder / "trained", folder / "blocks", base=source)
    new = json.loads((expanded / "block_expansion.json").read_text())["new_layers"]
    assert {int(name.split(".")[2]) for name in made.adapter.tensors} == set(new)
    applied = blockexpand.apply(source, made.out, out=folder / "applied").out
    assert torch.equal(zoo.logits(zoo.load(applied)), zoo.logits(model))
    neutral = blockexpand.apply(source, made.out, out=folder / "neutral", scale=0).out
    assert (neutral / "config.json").read_bytes() == (expanded / "config.json").read_bytes()
    loaded = zoo.load(source)
    before = zoo.logits(loaded)
    blockexpand.attach(loaded, made.out)
    assert torch.equal(zoo.logits(loaded), zoo.logits(model))
    blockexpand.detach(loaded)
    assert torch.equal(zoo.logits(loaded), before)


def main() -> None:
    """Check the kind of the command line in its folder."""
    torch.set_num_threads(1)
    logging.set_verbosity_error()
    check_kind(sys.argv[1], Path(sys.argv[2]))


if __name__ == "__main__":
    main()
