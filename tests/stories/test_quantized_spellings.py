"""Quantised checkpoints as people release them: spellings that transformers itself does not write.

None of these loads on a CPU as it is. Every weight is compared with the format's definition, and
outputs are compared unpacked: each has to compute what the unpacked source does.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import quantized_zoo as zoo
import torch
from checkpoints import read_tensors
from safetensors.torch import save_file
from transformers.utils import logging

import blockexpand
from blockexpand.api.overview import show

torch.set_num_threads(1)

POSITIONS: Mapping[str, tuple[int, ...]] = {
    "end": (3, 3),
    "interleaved": (1, 3),
    "list": (0, 0, 2),
}
MODES = ("keep", "new-blocks-full", "dequantize")

STEPS = {"num_bits": 8, "type": "int", "symmetric": True, "group_size": None, "actorder": None}

Values = dict[str, torch.Tensor]
"""Weights by name as the format defines them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Spelling:
    """How modules are packed and named, and what stands beside them in every layer."""

    pack: Callable[[str, torch.Tensor, Values], zoo.Tensors]
    settings: dict[str, Any]
    base: str = "llama"
    plain: tuple[str, ...] = ()
    beside: tuple[str, ...] = ()
    files: dict[str, dict[str, Any]] = field(default_factory=dict)


def by_tensor(scale: str, static: str, shape: tuple[int, ...]) -> Any:
    """Pack in FP8 with one scale for a weight and one for its inputs."""

    def pack(module: str, weight: torch.Tensor, values: Values) -> zoo.Tensors:
        factor = weight.float().abs().max() / 448
        q = (weight.float() / factor).to(torch.float8_e4m3fn)
        values[f"{module}.weight"] = (q.float() * factor).to(torch.bfloat16)
        parts = {".weight": q, scale: factor.reshape(shape)}
        return parts | ({static: torch.full(shape, 0.02)} if static else {})

    return pack


def by_row(module: str, weight: torch.Tensor, values: Values) -> zoo.Tensors:
    """Pack in FP8 with a scale for every row, as FBGEMM does."""
    factor = weight.float().abs().amax(1, keepdim=True) / 448
    q = (weight.float() / factor).to(torch.float8_e4m3fn)
    values[f"{module}.weight"] = (q.float() * factor).to(torch.bfloat16)
    return {".weight": q, ".weight_scale": factor}


def w8a8(module: str, weight: torch.Tensor, values: Values) -> zoo.Tensors:
    """Pack in int8 with a scale for every row, rounded as compressed-tensors does."""
    factor = (weight.float().abs().amax(1, keepdim=True) / 127).to(torch.bfloat16)
    q = (weight.float() / factor.float()).round().clamp(-127, 127).to(torch.int8)
    values[f"{module}.weight"] = (q.float() * factor.float()).to(torch.bfloat16)
    return {".weight": q, ".weight_scale": factor}


def w4a16(order: bool) -> Any:
    """Pack in four bits by groups of 64 inputs; with `order` groups are not of neighbours."""

    def pack(module: str, weight: torch.Tensor, values: Values) -> zoo.Tensors:
        rows, cols = weight.shape
        index = torch.arange(cols) // 64
        if order:
            index = index[torch.randperm(cols, generator=torch.Generator().manual_seed(cols))]
        groups = range(cols // 64)
        largest = torch.stack([weight.float().abs()[:, index == g].amax(1) for g in groups], 1)
        factor = (largest / 7).to(torch.bfloat16)
        spread = factor.float()[:, index]
        q = (weight.float() / spread).round().clamp(-8, 7)
        values[f"{module}.weight"] = (q * spread).to(torch.bfloat16)
        codes = (q + 8).long().view(rows, cols // 8, 8)
        words = (codes << 4 * torch.arange(8)).sum(-1)
        parts = {
            ".weight_packed": words.to(torch.int32),
            ".weight_scale": factor,
            ".weight_shape": torch.tensor([rows, cols]),
        }
        return parts | ({".weight_g_idx": index.to(torch.int32)} if order else {})

    return pack


def w4a16_settings(order: str | None) -> dict[str, Any]:
    weights = STEPS | {"num_bits": 4, "strategy": "group", "group_size": 64, "actorder": order}
    return {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "ignore": ["lm_head"],
        "quantization_status": "compressed",
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights}},
    }


def blocks(module: str, weight: torch.Tensor, values: Values) -> zoo.Tensors:
    parts = zoo.fp8_blocks(scale_dtype=torch.bfloat16)(module, weight)
    values[f"{module}.weight"] = zoo.fp8_values(parts, "")
    return parts


def nf4(module: str, weight: torch.Tensor, values: Values) -> zoo.Tensors:
    parts = zoo.nf4(module, weight)
    values[f"{module}.weight"] = zoo.nf4_values(parts, "")
    return parts


NAMES = [f"model.layers.{n}.mlp.{p}_proj" for n in (0, 3) for p in ("gate", "up", "down")]
ATTENTION = [f"model.layers.{n}.self_attn.{p}_proj" for n in range(4) for p in "qkvo"]
DYNAMIC = ["model.layers.1.self_attn", "model.layers.3.mlp", "model.layers.0.mlp.down_proj"]
SPELLINGS = {
    # neuralmagic/…-FP8 by AutoFP8, with the scales of an FP8 cache
    "autofp8": Spelling(
        pack=by_tensor(".weight_scale", ".input_scale", ()),
        settings={
            "quant_method": "fp8",
            "activation_scheme": "static",
            "ignored_layers": ["lm_head"],
            "kv_cache_scheme": "static",
        },
        beside=("self_attn.k_scale", "self_attn.v_scale"),
    ),
    "autofp8-old-cache": Spelling(
        pack=by_tensor(".weight_scale", ".input_scale", (1,)),
        settings={
            "quant_method": "fp8",
            "activation_scheme": "static",
            "ignored_layers": ["lm_head"],
        },
        beside=("self_attn.kv_scale",),
    ),
    # mistralai/Ministral-3-…-2512
    "ministral": Spelling(
        pack=by_tensor(".weight_scale_inv", ".activation_scale", ()),
        settings={
            "quant_method": "fp8",
            "activation_scheme": "static",
            "dequantize": False,
            "modules_to_not_convert": ["model.vision_tower", "model.multi_modal_projector"],
            "weight_block_size": None,
        },
    ),
    # meta-llama/Llama-3.1-405B-FP8
    "fbgemm": Spelling(
        pack=by_row,
        settings={
            "quant_method": "fbgemm_fp8",
            "activation_scale_ub": 1200.0,
            "modules_to_not_convert": ["lm_head", *NAMES, *ATTENTION],
        },
        plain=(*NAMES, *ATTENTION),
    ),
    # Qwen/Qwen3-30B-A3B-Instruct-2507-FP8
    "qwen3-2507": Spelling(
        pack=blocks,
        base="qwen3_moe",
        settings=zoo.fp8_settings(
            modules_to_not_convert=[
                "lm_head",
                *(
                    f"model.layers.{n}.{name}"
                    for n in range(4)
                    for name in ("input_layernorm", "mlp.gate", "post_attention_layernorm")
                ),
            ]
        ),
    ),
    # RedHatAI/…-quantized.w8a8, with the names of one layer's attention left out
    "w8a8": Spelling(
        pack=w8a8,
        settings={
            "quant_method": "compressed-tensors",
            "format": "int-quantized",
            "global_compression_ratio": 1.5,
            "ignore": ["lm_head", *ATTENTION[4:8]],
            "kv_cache_scheme": None,
            "quantization_status": "frozen",
            "config_groups": {
                "group_0": {
                    "targets": ["Linear"],
                    "weights": {**STEPS, "strategy": "channel", "dynamic": False},
                    "input_activations": {**STEPS, "strategy": "token", "dynamic": True},
                    "output_activations": None,
                }
            },
        },
        plain=tuple(ATTENTION[4:8]),
    ),
    # RedHatAI/…-quantized.w4a16: inputs in the order of their weight, which is stored, or not
    "w4a16-group": Spelling(pack=w4a16(True), settings=w4a16_settings("group")),
    "w4a16-weight": Spelling(pack=w4a16(False), settings=w4a16_settings("weight")),
    # unsloth/…-unsloth-bnb-4bit
    "unsloth-dynamic": Spelling(
        pack=nf4,
        settings=zoo.nf4_settings(["embed_tokens", "lm_head", "router", *DYNAMIC])
        | {"_load_in_4bit": True, "llm_int8_threshold": 6.0},
        plain=tuple(DYNAMIC),
    ),
}


def write(folder: Path, spelling: Spelling) -> tuple[Path, Values]:
    """Return a checkpoint in a spelling, and its weights by the definition."""
    zoo.make_base(folder, spelling.base)
    values: Values = {}
    tensors = zoo.quantize(
        zoo.read_tensors(folder),
        lambda module, weight: spelling.pack(module, weight, values),
        lambda name: zoo.is_linear(name) and not name.startswith(spelling.plain or "?"),
    )
    for layer in range(4):
        for number, name in enumerate(spelling.beside):
            tensors[f"model.layers.{layer}.{name}"] = torch.tensor(0.1 + layer + number / 10)
    return zoo.write_quantized(folder, tensors, spelling.settings, shards=2), values


@pytest.fixture(scope="module", params=SPELLINGS)
def source(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Spelling, Path, Values, torch.Tensor]:
    logging.set_verbosity_error()
    spelling = SPELLINGS[request.param]
    work = tmp_path_factory.mktemp("spelling")
    folder, values = write(work / "source", spelling)
    flat = unpack(folder, work / "flat")
    found = zoo.read_tensors(flat)
    assert len(values) >= 6
    for name, expected in values.items():
        assert torch.equal(found[name], expected), name
    assert not any("scale" in name or "absmax" in name for name in found)
    return spelling, folder, values, zoo.logits(zoo.load(flat))


def unpack(folder: Path, out: Path) -> Path:
    blockexpand.expand(folder, out, new_layers=0, quantized="dequantize", verify_after="tensors")
    return out


@pytest.mark.parametrize("position", POSITIONS)
@pytest.mark.parametrize("mode", MODES)
def test_every_output_computes_what_the_source_does(
    mode: Any,
    position: str,
    source: tuple[Spelling, Path, Values, torch.Tensor],
    tmp_path: Path,
) -> None:
    spelling, folder, _, expected = source
    out = tmp_path / "out"
    blockexpand.expand(
        folder,
        out,
        position=POSITIONS[position],
        quantized=mode,
        verify_after="tensors",
        check=True,
    )
    assert blockexpand.verify(folder, out).ok
    flat = out if mode == "dequantize" else unpack(out, tmp_path / "flat")
    assert torch.equal(zoo.logits(zoo.load(flat)), expected)
    if mode == "dequantize":
        return
    # What stands beside modules is the source layer's, in new layers too.
    tensors = zoo.read_tensors(out)
    places = sorted([*range(4), *POSITIONS[position]])
    for name in spelling.beside:
        for layer, origin in enumerate(places):
            one = tensors[f"model.layers.{layer}.{name}"]
            other = zoo.read_tensors(folder)[f"model.layers.{origin}.{name}"]
            assert torch.equal(one, other)


def test_blocks_go_out_and_back(
    source: tuple[Spelling, Path, Values, torch.Tensor], tmp_path: Path
) -> None:
    _, folder, _, _ = source
    out = tmp_path / "out"
    blockexpand.expand(folder, out, position=(1, 3), quantized="new-blocks-full")
    made = blockexpand.extract(out, tmp_path / "blocks", base=folder)
    applied = blockexpand.apply(folder, made.out, out=tmp_path / "applied").out
    one, other = read_tensors(out), read_tensors(applied)
    assert {n: t[:3] for n, t in one.items()} == {n: t[:3] for n, t in other.items()}
    assert (applied / "config.json").read_bytes() == (out / "config.json").read_bytes()


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        # mlx-lm writes both, and no method into either
        ({"quantization": {"bits": 4}, "quantization_config": {"bits": 4}}, "that of MLX"),
        ({"quantization": {"group_size": 64, "bits": 4}}, "that of MLX"),
        *(
            ({"quantization_config": {"quant_method": method}}, f"quantized as '{method}'")
            for method in (
                *("torchao", "hqq", "eetq", "quanto", "aqlm", "vptq", "spqr", "fp_quant", "quark"),
                *("auto-round", "modelopt", "higgs", "bitnet", "gguf", "exl3", "sinq"),
            )
        ),
        ({}, r"has dtype F8_E4M3, and config\.json has no 'quantization_config'.*ModelOpt"),
        *(
            (
                {"quantization_config": {"quant_method": "fp8", "weight_block_size": size}},
                "neither null nor two lengths",
            )
            for size in ("x", [128], [128, None], [128.5, 128], [-1, 128], [0, 0])
        ),
    ],
)
def test_what_is_not_known_is_refused_in_one_line(
    edit: dict[str, Any], said: str, tmp_path: Path
) -> None:
    folder, _ = write(tmp_path / "source", SPELLINGS["qwen3-2507"])
    config = json.loads((folder / "config.json").read_text())
    del config["quantization_config"]
    (folder / "config.json").write_text(json.dumps(config | edit))
    with pytest.raises(blockexpand.BlockExpandError, match=said) as caught:
        blockexpand.expand(folder, tmp_path / "out", new_layers=1)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("mode", MODES[:2])
def test_an_output_saved_anew_is_known(
    mode: Any, source: tuple[Spelling, Path, Values, torch.Tensor], tmp_path: Path
) -> None:
    """In other files; then with a block that learnt."""
    _, folder, _, _ = source
    out = tmp_path / "out"
    blockexpand.expand(folder, out, position=(1, 3), quantized=mode)
    tensors = zoo.read_tensors(out)
    for file in out.glob("*.safetensors*"):
        file.unlink()
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
    found = blockexpand.verify(folder, out)
    assert found.ok and not found.verification.trained and not found.verification.active
    overview = show(out)
    assert overview.quantized and overview.closing and overview.trained == 0
    if mode == "keep":
        return
    name = "model.layers.5.self_attn.o_proj.weight"
    save_file(
        tensors | {name: tensors[name] + 0.5},
        out / "model.safetensors",
        metadata={"format": "pt"},
    )
    found = blockexpand.verify(folder, out)
    assert found.ok and found.verification.active == (5,)
    assert [finding.tensor for finding in found.verification.trained] == [name]
    assert show(out).trained == 1
