"""What mergekit 0.1.5 makes of the recipe that this tool replaces, written down by hand.

The recipe: `slices` [0, 4] and twice [3, 4] with `o_proj` and `down_proj` scaled by 0, passthrough,
bfloat16. `scripts/compare_with_mergekit.py` compares with mergekit itself.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import blockexpand

KEPT = [
    "input_layernorm.weight",
    "mlp.gate_proj.weight",
    "mlp.up_proj.weight",
    "post_attention_layernorm.weight",
    "self_attn.k_proj.weight",
    "self_attn.q_proj.weight",
    "self_attn.v_proj.weight",
]
ZEROED = ["mlp.down_proj.weight", "self_attn.o_proj.weight"]
# Output layer: the source layer that mergekit reads.
READ_FROM = {0: 0, 1: 1, 2: 2, 3: 3, 4: 3, 5: 3}
NEW = (4, 5)


def read_tensors(folder: Path) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    """Return dtype, shape and bytes of every tensor, as `safetensors` reads them."""
    import torch
    from safetensors import safe_open

    tensors = {}
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, "pt") as shard:
            for name in shard.keys():  # noqa: SIM118 - it is no dict
                assert name not in tensors
                part = shard.get_slice(name)
                raw = shard.get_tensor(name).reshape(-1).view(torch.uint8).numpy().tobytes()
                tensors[name] = (part.get_dtype(), tuple(part.get_shape()), raw)
    return tensors


def expect(source: Path) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    """Return the tensors that mergekit writes, with +0 where its `x * 0.0` may leave -0."""
    import torch
    from safetensors.torch import load_file

    read = {}
    for file in source.glob("*.safetensors"):
        read |= load_file(file)
    merged = {name: read[name] for name in ("model.embed_tokens.weight", "model.norm.weight")}
    merged["lm_head.weight"] = read["lm_head.weight"]
    for layer, origin in READ_FROM.items():
        for suffix in KEPT + ZEROED:
            tensor = read[f"model.layers.{origin}.{suffix}"]
            if layer in NEW and suffix in ZEROED:
                tensor = torch.zeros(tensor.shape)
            merged[f"model.layers.{layer}.{suffix}"] = tensor
    return {
        name: (
            "BF16",
            tuple(tensor.shape),
            tensor.to(torch.bfloat16).reshape(-1).view(torch.uint8).numpy().tobytes(),
        )
        for name, tensor in merged.items()
    }


@pytest.mark.parametrize("source", ["tiny_mistral", "tiny_mistral_single", "tiny_mistral_f32"])
def test_position_end_makes_what_mergekit_makes(
    source: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    folder = request.getfixturevalue(source)
    blockexpand.expand(folder, tmp_path / "out", new_layers=2, position="end")
    assert read_tensors(tmp_path / "out") == expect(folder)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["num_hidden_layers"] == 6
