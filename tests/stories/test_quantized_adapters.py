"""Blocks trained in a quantised base, taken out and put on that base again, byte for byte.

What trainers save of the base is not what it was: stored parts, unpacked weights, or weights that
were quantised anew. Each is made here by transformers itself.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import quantized_zoo as zoo
import torch
from checkpoints import read_tensors
from safetensors import safe_open
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.utils import logging

import blockexpand
from blockexpand.errors import BlockExpandError, UnsupportedModelError
from blockexpand.training.settings import make_settings

torch.set_num_threads(1)


def fp8(folder: Path) -> Path:
    tensors = zoo.quantize(zoo.read_tensors(folder), zoo.fp8_blocks())
    return zoo.write_quantized(folder, tensors, zoo.fp8_settings(), shards=3)


def mxfp4(folder: Path) -> Path:
    tensors = zoo.mxfp4_experts(zoo.read_tensors(folder))
    return zoo.write_quantized(folder, tensors, zoo.MXFP4_SETTINGS, shards=2)


def load(folder: Path, **options: Any) -> Any:
    if json.loads((folder / "config.json").read_text())["model_type"] == "gpt_oss":
        from transformers import Mxfp4Config

        options["quantization_config"] = Mxfp4Config(dequantize=True)
    return zoo.load(folder, **options)


BASES: dict[str, tuple[str, Callable[[Path], Path]]] = {
    "llama": ("llama", fp8),
    "qwen3_moe": ("qwen3_moe", fp8),
    "deepseek_v3": ("deepseek_v3", fp8),
    "olmo2": ("olmo2", fp8),
    "gpt_oss": ("gpt_oss", mxfp4),
}


def make(folder: Path, kind: str, position: str = "interleaved") -> tuple[Path, Path]:
    """Make a quantised base and its expansion with two unquantised blocks."""
    logging.set_verbosity_error()
    base, write = BASES[kind]
    source = write(zoo.make_base(folder / "source", base))
    out = folder / "expanded"
    blockexpand.expand(
        source, out, position=position, new_layers=2, quantized="new-blocks-full", dtype="source"
    )
    return source, out


def train(expanded: Path, out: Path) -> Path:
    """Change every byte pair of the new blocks where it lies, and nothing else of the folder."""
    shutil.copytree(expanded, out)
    new = json.loads((out / "block_expansion.json").read_text())["new_layers"]
    starts = tuple(f"model.layers.{layer}." for layer in new)
    for file in out.glob("*.safetensors"):
        data = bytearray(file.read_bytes())
        header_nbytes = int.from_bytes(data[:8], "little")
        header = json.loads(data[8 : 8 + header_nbytes])
        for name, entry in header.items():
            if name.startswith(starts):
                begin, end = (8 + header_nbytes + offset for offset in entry["data_offsets"])
                values = torch.frombuffer(data, dtype=torch.bfloat16)[begin // 2 : end // 2]
                values.add_(0.01 + 0.001 * (begin % 7))
        file.write_bytes(data)
    return out


def weights(folder: Path) -> dict[str, bytes]:
    return {
        path.name: path.read_bytes()
        for path in sorted(folder.iterdir())
        if path.name not in ("README.md", "block_expansion.json")
    }


@pytest.mark.parametrize("position", ["end", "interleaved"])
@pytest.mark.parametrize("kind", BASES)
def test_trained_blocks_go_back_on_the_quantised_base(
    kind: str, position: str, tmp_path: Path
) -> None:
    source, expanded = make(tmp_path, kind, position)
    before = weights(source)
    trained = train(expanded, tmp_path / "trained")
    made = blockexpand.extract(trained, tmp_path / "blocks", base=source)
    new = set(json.loads((expanded / "block_expansion.json").read_text())["new_layers"])
    assert {int(name.split(".")[2]) for name in made.adapter.tensors} == new
    assert {tensor.spec.dtype for tensor in made.adapter.tensors.values()} == {"BF16"}
    applied = blockexpand.apply(source, made.out, out=tmp_path / "applied").out
    assert weights(applied) == weights(trained)
    assert weights(source) == before
    found = blockexpand.verify(source, applied)
    assert found.ok and found.verification.trained
    # Without what was learnt it is the expansion, and computes what the base computes.
    neutral = blockexpand.apply(source, made.out, out=tmp_path / "neutral", scale=0).out
    assert weights(neutral).keys() == weights(expanded).keys()
    assert (neutral / "config.json").read_bytes() == (expanded / "config.json").read_bytes()
    if kind != "deepseek_v3":
        assert torch.equal(zoo.logits(load(neutral)), zoo.logits(load(source)))


@pytest.mark.parametrize("kind", ["llama", "qwen3_moe", "gpt_oss"])
def test_what_transformers_saves_gives_the_same_blocks(kind: str, tmp_path: Path) -> None:
    source, expanded = make(tmp_path, kind)
    trained = train(expanded, tmp_path / "trained")
    expected = blockexpand.extract(trained, tmp_path / "expected", base=source)
    model = load(trained)
    # As train-config prints it.
    text = make_settings(expanded, "transformers").text
    assert "model._weight_conversions = get_model_conversion_mapping(model)" in text
    model.hf_quantizer = None
    model._weight_conversions = get_model_conversion_mapping(model)
    model.save_pretrained(tmp_path / "saved")
    saved = read_tensors(tmp_path / "saved")
    assert not any(name.endswith(("scale_inv", "_blocks")) for name in saved)
    shutil.copy(expanded / "block_expansion.json", tmp_path / "saved")
    made = blockexpand.extract(tmp_path / "saved", tmp_path / "blocks", base=source)
    assert made.adapter.tensors == expected.adapter.tensors
    found = blockexpand.apply(source, made.out, out=tmp_path / "applied").out
    # Of the new blocks' file the header may be padded otherwise.
    one, other = read_tensors(found), read_tensors(trained)
    assert {n: t[:3] for n, t in one.items()} == {n: t[:3] for n, t in other.items()}
    assert (found / "config.json").read_bytes() == (trained / "config.json").read_bytes()
    assert torch.equal(zoo.logits(load(found)), zoo.logits(model))


def test_a_wider_copy_of_what_was_loaded_is_known(tmp_path: Path) -> None:
    """Trainers keep weights in float32: those loaded in bfloat16, and those loaded in float32."""
    source, expanded = make(tmp_path, "llama")
    trained = train(expanded, tmp_path / "trained")
    for name, dtype in (("narrow", torch.bfloat16), ("wide", torch.float32)):
        model = load(trained, dtype=dtype).to(torch.float32)
        model.hf_quantizer = None
        model._weight_conversions = get_model_conversion_mapping(model)
        model.save_pretrained(tmp_path / name)
        shutil.copy(expanded / "block_expansion.json", tmp_path / name)
        made = blockexpand.extract(tmp_path / name, tmp_path / f"{name}-blocks", base=source)
        assert {tensor.spec.dtype for tensor in made.adapter.tensors.values()} == {"F32"}


@pytest.mark.parametrize("kind", ["llama", "gpt_oss"])
def test_what_was_quantised_anew_is_refused(kind: str, tmp_path: Path) -> None:
    source, expanded = make(tmp_path, kind)
    load(expanded).save_pretrained(tmp_path / "saved")
    shutil.copy(expanded / "block_expansion.json", tmp_path / "saved")
    with pytest.raises(UnsupportedModelError, match="quantized anew, the new blocks too"):
        blockexpand.extract(tmp_path / "saved", tmp_path / "blocks", base=source)
    assert not (tmp_path / "blocks").exists()


def test_other_values_where_the_base_is_quantised_are_refused(tmp_path: Path) -> None:
    source, expanded = make(tmp_path, "llama")
    model = load(expanded)
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight[0, 0] += 1
    model.hf_quantizer = None
    model._weight_conversions = get_model_conversion_mapping(model)
    model.save_pretrained(tmp_path / "saved")
    shutil.copy(expanded / "block_expansion.json", tmp_path / "saved")
    for with_changed in (False, True):
        with pytest.raises(UnsupportedModelError, match=r"'model\.layers\.0\.mlp\.up_proj"):
            blockexpand.extract(
                tmp_path / "saved", tmp_path / "out", base=source, with_changed=with_changed
            )


def test_quantised_new_blocks_are_no_adapter(tmp_path: Path) -> None:
    source, _ = make(tmp_path, "llama")
    out = tmp_path / "kept"
    blockexpand.expand(source, out, position=(1, 3), quantized="keep")
    with pytest.raises(UnsupportedModelError, match="of a new block was saved as F8_E4M3"):
        blockexpand.extract(out, tmp_path / "blocks", base=source)


def test_another_base_of_the_same_shape_is_refused(tmp_path: Path) -> None:
    source, expanded = make(tmp_path, "llama")
    trained = train(expanded, tmp_path / "trained")
    made = blockexpand.extract(trained, tmp_path / "blocks", base=source)
    blockexpand.expand(source, tmp_path / "flat", new_layers=0, quantized="dequantize")
    with pytest.raises(BlockExpandError, match="another base"):
        blockexpand.apply(tmp_path / "flat", made.out, out=tmp_path / "applied")
    file = next(source.glob("model-00001*.safetensors"))
    with safe_open(file, "pt") as shard:
        name = next(n for n in shard.keys() if n.endswith("scale_inv"))  # noqa: SIM118
    data = bytearray(file.read_bytes())
    header_nbytes = int.from_bytes(data[:8], "little")
    offset = json.loads(data[8 : 8 + header_nbytes])[name]["data_offsets"][0]
    data[8 + header_nbytes + offset] ^= 1
    file.write_bytes(data)
    with pytest.raises(BlockExpandError, match="other values"):
        blockexpand.apply(source, made.out, out=tmp_path / "applied")


@pytest.mark.parametrize("kind", ["llama", "gpt_oss"])
def test_blocks_are_attached_to_a_quantised_base_in_memory(kind: str, tmp_path: Path) -> None:
    source, expanded = make(tmp_path, kind)
    trained = train(expanded, tmp_path / "trained")
    made = blockexpand.extract(trained, tmp_path / "blocks", base=source)
    model = load(source)
    before = zoo.logits(model)
    blockexpand.attach(model, made.out)
    assert torch.equal(zoo.logits(model), zoo.logits(load(trained)))
    blockexpand.detach(model)
    assert torch.equal(zoo.logits(model), before)
