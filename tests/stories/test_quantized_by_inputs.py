"""GPTQ and AWQ, packed here word by word, expanded and unpacked.

Their library is too heavy for a test; what it computes is the formula that is written out here.
What is kept quantised is unpacked afterwards, and has to compute what the unpacked source does.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import quantized_zoo as zoo
import torch
from transformers.utils import logging

import blockexpand

torch.set_num_threads(1)

GROUP = 64
AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
KINDS = ("gptq", "gptq_v2", "gptq-act-order", "gptq-8bit", "awq")


def quantize(
    weight: torch.Tensor, bits: int, order: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return integers [in, out], zero points and scales [groups, out], and the values [out, in]."""
    w = weight.float().t()
    groups = int(order.max()) + 1
    scale, zero = torch.empty(groups, w.shape[1]), torch.empty(groups, w.shape[1])
    for group in range(groups):
        part = w[order == group]
        low, high = part.amin(0).clamp(max=0), part.amax(0).clamp(min=0)
        scale[group] = ((high - low) / (2**bits - 1)).half().float()
        # Stored zero points of version 1 are one less, so 0 cannot be stored.
        zero[group] = (-low / scale[group]).round().clamp(1, 2**bits - 1)
    q = (w / scale[order] + zero[order]).round().clamp(0, 2**bits - 1)
    values = ((q - zero[order]) * scale[order]).half().t()
    return q.long(), zero.long(), scale.half(), values


def pack(values: torch.Tensor, bits: int, dim: int, places: tuple[int, ...]) -> torch.Tensor:
    """Pack integers into 32-bit words along a dimension; `places` tells each nibble's column."""
    count = 32 // bits
    if dim == 0:
        return pack(values.t(), bits, 1, places).t().contiguous()
    rows, cols = values.shape
    words = torch.zeros(rows, cols // count, dtype=torch.int64)
    for place, column in enumerate(places):
        words |= values[:, column::count] << bits * place
    return words.to(torch.int32)


def write(folder: Path, kind: str) -> tuple[Path, dict[str, torch.Tensor]]:
    """Return a quantised checkpoint, and the values of its modules by the formula."""
    bits = 8 if kind == "gptq-8bit" else 4
    plain = tuple(range(32 // bits))
    expected: dict[str, torch.Tensor] = {}
    generator = torch.Generator().manual_seed(4)

    def parts(module: str, weight: torch.Tensor) -> zoo.Tensors:
        order = torch.arange(weight.shape[1]) // GROUP
        if kind == "gptq-act-order":
            order = order[torch.randperm(len(order), generator=generator)]
        q, zero, scale, expected[module] = quantize(weight, bits, order)
        if kind == "awq":
            return {
                ".qweight": pack(q, bits, 1, AWQ_ORDER),
                ".qzeros": pack(zero, bits, 1, AWQ_ORDER),
                ".scales": scale,
            }
        stored = zero if kind == "gptq_v2" else zero - 1
        return {
            ".qweight": pack(q, bits, 0, plain),
            ".qzeros": pack(stored, bits, 1, plain),
            ".scales": scale,
            ".g_idx": order.to(torch.int32),
        }

    zoo.make_base(folder, "llama", torch.float16)
    tensors = zoo.quantize(zoo.read_tensors(folder), parts)
    settings: dict[str, Any] = {"quant_method": "awq" if kind == "awq" else "gptq", "bits": bits}
    settings["group_size"] = GROUP
    if kind == "awq":
        settings |= {"version": "gemm", "zero_point": True}
    else:
        settings |= {"sym": False, "desc_act": kind == "gptq-act-order"}
        settings["checkpoint_format"] = "gptq_v2" if kind == "gptq_v2" else "gptq"
    (folder / "quantize_config.json").write_text(json.dumps(settings, indent=2))
    return zoo.write_quantized(folder, tensors, settings, shards=2), expected


def unpack(source: Path, out: Path) -> Path:
    blockexpand.expand(source, out, new_layers=0, quantized="dequantize", verify_after="tensors")
    return out


@pytest.mark.parametrize("kind", KINDS)
def test_values_are_those_of_the_formula(kind: str, tmp_path: Path) -> None:
    source, expected = write(tmp_path / "source", kind)
    out = unpack(source, tmp_path / "out")
    found = zoo.read_tensors(out)
    assert len(expected) == 28
    for module, values in expected.items():
        assert torch.equal(found[f"{module}.weight"], values), module
    assert not (out / "quantize_config.json").exists()


@pytest.mark.parametrize("kind", KINDS)
def test_kept_and_full_blocks_add_nothing(kind: str, tmp_path: Path) -> None:
    logging.set_verbosity_error()
    source, _ = write(tmp_path / "source", kind)
    expected = zoo.logits(zoo.load(unpack(source, tmp_path / "flat"), torch.float16))
    for mode in ("keep", "new-blocks-full"):
        out = tmp_path / mode
        blockexpand.expand(source, out, position=(1, 3), quantized=mode, verify_after="tensors")
        found = zoo.load(unpack(out, tmp_path / f"{mode}-flat"), torch.float16)
        assert torch.equal(zoo.logits(found), expected), mode
        settings = json.loads((out / "config.json").read_text())["quantization_config"]
        repeated = json.loads((out / "quantize_config.json").read_text())
        assert settings == repeated
        new = [name for name in zoo.read_tensors(out) if name.startswith("model.layers.2.")]
        assert any(name.endswith(".qweight") for name in new) == (mode == "keep")
