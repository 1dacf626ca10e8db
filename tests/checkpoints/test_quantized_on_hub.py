"""Quantised repositories of the Hub: what a plan sees besides headers comes by range requests.

The real client against a Hub on this machine; what is made is compared with the same folder's.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import quantized_zoo as zoo
import torch
from hub_server import HubServer, read_folder

import blockexpand
from blockexpand.api.expansion import preview_expansion

REPO = "org/quantized"


def blob(path: Path) -> str:
    """Match the requests for a file's bytes, which the Hub sends elsewhere."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def made(folder: Path) -> dict[str, bytes]:
    """Return what does not name the source."""
    return {n: d for n, d in read_folder(folder).items() if not n.startswith(("README", "block_"))}


@pytest.fixture
def nf4(tmp_path: Path) -> Path:
    """A llama in bitsandbytes' four bits, layer 1's o_proj left out as dynamic quants do."""
    source = zoo.make_base(tmp_path / "nf4", "llama")
    plain = "model.layers.1.self_attn.o_proj"
    tensors = zoo.quantize(
        zoo.read_tensors(source),
        zoo.nf4,
        lambda name: zoo.is_linear(name) and not name.startswith(plain),
    )
    return zoo.write_quantized(source, tensors, zoo.nf4_settings(["lm_head", plain]), shards=2)


@pytest.mark.parametrize("mode", ["keep", "new-blocks-full", "dequantize"])
def test_four_bit_shapes_come_from_the_hub(
    mode: Any, nf4: Path, hub: HubServer, hub_cache: Path, tmp_path: Path
) -> None:
    hub.add_repo(REPO, nf4)
    options: dict[str, Any] = {"position": (1, 3), "quantized": mode}
    preview = preview_expansion(REPO, tmp_path / "out", **options)
    local = preview_expansion(nf4, tmp_path / "local", **options)
    assert [file.header for file in preview.plan.files] == [f.header for f in local.plan.files]
    # Headers and states, and no weight.
    assert not list(hub_cache.rglob("*.safetensors"))
    sent = sum(hub.sent(blob(path)) for path in nf4.glob("*.safetensors"))
    assert 27 * 64 < sent < 40_000 < sum(path.stat().st_size for path in nf4.glob("*.safetensors"))
    blockexpand.expand(REPO, tmp_path / "out", **options)
    blockexpand.expand(nf4, tmp_path / "local", **options)
    assert made(tmp_path / "out") == made(tmp_path / "local")


def test_unpacked_values_are_those_of_the_definition(nf4: Path, tmp_path: Path) -> None:
    blockexpand.expand(nf4, tmp_path / "out", new_layers=0, quantized="dequantize")
    parts, found = zoo.read_tensors(nf4), zoo.read_tensors(tmp_path / "out")
    modules = [name.removesuffix(".weight.absmax") for name in parts if name.endswith("absmax")]
    assert len(modules) == 4 * 7 - 1
    for module in modules:
        assert torch.equal(found[f"{module}.weight"], zoo.nf4_values(parts, module)), module


@pytest.mark.parametrize("way", ["stream", "whole"])
def test_files_that_repeat_the_config_are_edited(
    way: str, hub: HubServer, hub_cache: Path, tmp_path: Path
) -> None:
    source = zoo.make_base(tmp_path / "source", "llama")
    plain = tuple(f"model.layers.2.self_attn.{p}_proj" for p in "qkvo")
    tensors = zoo.quantize(
        zoo.read_tensors(source),
        zoo.fp8_blocks(),
        lambda name: zoo.is_linear(name) and not name.startswith(plain),
    )
    settings = zoo.fp8_settings(modules_to_not_convert=["lm_head", *plain])
    zoo.write_quantized(source, tensors, settings, shards=2)
    (source / "quant_config.json").write_text(json.dumps(settings, indent=1))
    hub.add_repo(REPO, source)
    out = tmp_path / "out"
    blockexpand.expand(REPO, out, position=(0, 2), stream=way == "stream")
    repeated = json.loads((out / "quant_config.json").read_text())
    stated = json.loads((out / "config.json").read_text())["quantization_config"]
    assert repeated == stated
    assert f"model.layers.4.{plain[0].partition('2.')[2]}" in repeated["modules_to_not_convert"]
    assert plain[0] not in repeated["modules_to_not_convert"]
