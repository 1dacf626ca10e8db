"""Quantised models that see: files may call the decoder's layers otherwise than transformers does.

A list of modules that is right for the files alone would leave new unquantised layers to be built
quantised, without their scales. The models are asked with text.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import compressed_zoo
import pytest
import quantized_zoo as zoo
import torch
from family_zoo import auto_class, make_checkpoint
from safetensors.torch import save_file
from transformers import AutoConfig
from transformers.utils import logging
from zoo_multimodal import MULTIMODAL

import blockexpand

torch.set_num_threads(1)

RECIPES = {recipe.name: recipe for recipe in MULTIMODAL}
MODES = ("keep", "new-blocks-full", "dequantize")
TOWERS = ["model.vision_tower", "model.multi_modal_projector", "model.visual", "lm_head"]


def make(folder: Path, name: str) -> Path:
    """Make a model in bfloat16, in the spelling of files."""
    logging.set_verbosity_error()
    make_checkpoint(RECIPES[name], folder)
    tensors = zoo.read_tensors(folder)
    for file in folder.glob("*.safetensors*"):
        file.unlink()
    halves = {n: t.to(torch.bfloat16) if t.is_floating_point() else t for n, t in tensors.items()}
    save_file(halves, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def is_text(name: str) -> bool:
    """Tell whether a weight is a projection of the decoder."""
    return zoo.is_linear(name) and "vis" not in name


def logits(folder: Path) -> torch.Tensor:
    config = AutoConfig.from_pretrained(folder)
    model, report = auto_class(config).from_pretrained(
        folder, dtype=torch.bfloat16, output_loading_info=True, attn_implementation="eager"
    )
    assert not report["missing_keys"] and not report["unexpected_keys"], report
    ids = torch.randint(3, 80, (1, 24), generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        found: torch.Tensor = model.eval()(input_ids=ids).logits
    return found


@pytest.mark.parametrize("name", ["gemma3_hub", "qwen3_vl"])
def test_fp8(name: str, tmp_path: Path) -> None:
    source = make(tmp_path / "source", name)
    tensors = zoo.quantize(zoo.read_tensors(source), zoo.fp8_blocks(8), is_text)
    settings = zoo.fp8_settings(weight_block_size=[8, 8], modules_to_not_convert=TOWERS)
    zoo.write_quantized(source, tensors, settings, shards=2)
    expected = logits(source)
    modes: tuple[Any, ...] = MODES
    for mode in modes:
        out = tmp_path / mode
        blockexpand.expand(
            source, out, position=(1, 3), quantized=mode, verify_after="tensors", check=True
        )
        assert torch.equal(logits(out), expected), mode


@pytest.mark.parametrize("name", ["gemma3_hub", "qwen3_vl"])
def test_compressed_tensors_as_it_is(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Loaded without unpacking, so that the list decides which modules are built quantised."""
    source = make(tmp_path / "source", name)
    # The projections of the tower are called as those of the decoder.
    monkeypatch.setattr(
        zoo, "is_linear", lambda n, known=zoo.is_linear: known(n) and "vis" not in n
    )
    ignore = ("lm_head", *(f"re:.*{part}.*" for part in ("lm_head", "vision", "visual", "modal")))
    compressed_zoo.write_compressed(source, "FP8_DYNAMIC", ignore=ignore)
    expected = logits(source)
    modes: tuple[Any, ...] = MODES[:2]
    for mode in modes:
        out = tmp_path / mode
        blockexpand.expand(source, out, position=(1, 3), quantized=mode, verify_after="tensors")
        assert torch.equal(logits(out), expected), mode
    ignored = json.loads((tmp_path / MODES[1] / "config.json").read_text())["quantization_config"]
    assert r"re:^model\.language_model\.layers\.2\..*" in ignored["ignore"]
