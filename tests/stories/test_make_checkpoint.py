"""`scripts/make_checkpoint.py` makes what `transformers` makes: each shape loads without a gap."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import make_checkpoint
import pytest


def loading_gaps(folder: Path) -> dict[str, object]:
    """Load the checkpoint and return the keys that are missing, unexpected or misshapen."""
    from transformers import AutoModelForCausalLM

    _, info = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    return {key: value for key, value in info.items() if value}


def read_weights(folder: Path) -> dict[str, bytes]:
    """Return every tensor's bytes, read by `safetensors`."""
    import torch
    from safetensors import safe_open

    weights = {}
    for file in folder.glob("*.safetensors"):
        with safe_open(file, "pt") as shard:
            assert shard.metadata() == {"format": "pt"}
            for name in shard.keys():  # noqa: SIM118 - it is no dict
                weights[name] = bytes(shard.get_tensor(name).reshape(-1).view(torch.uint8).numpy())
    return weights


def test_the_tiny_checkpoint_is_complete(tiny_mistral: Path) -> None:
    assert loading_gaps(tiny_mistral) == {}
    assert {file.name for file in tiny_mistral.iterdir()} >= {
        "config.json",
        "generation_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "chat_template.jinja",
        "README.md",
        "LICENSE",
        "model.safetensors.index.json",
        "model-00003-of-00003.safetensors",
    }
    config = json.loads((tiny_mistral / "config.json").read_text())
    assert (config["model_type"], config["num_hidden_layers"]) == ("mistral", 4)


def test_no_two_tensors_are_equal(tiny_mistral: Path) -> None:
    weights = read_weights(tiny_mistral)
    assert len(weights) == 4 * 9 + 3
    assert len(set(weights.values())) == len(weights)


def test_the_tokenizer_reads_back_what_it_wrote(tiny_mistral: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_mistral)
    text = "Grant of Patent License: ½ €\n"
    ids = tokenizer(text).input_ids
    assert ids[0] == tokenizer.bos_token_id
    assert tokenizer.decode(ids, skip_special_tokens=True) == text
    assert len(ids) < len(text)
    chat = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hi"}], tokenize=False, add_generation_prompt=True
    )
    assert chat == "<s>User: Hi<|end_of_turn|>Assistant:"


@pytest.mark.parametrize("dtype", ["bfloat16", "float32", "float16"])
def test_streamed_weights_load_like_written_ones(
    make_tiny: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, dtype: str
) -> None:
    import torch

    written = make_tiny(dtype=dtype)
    monkeypatch.setattr(make_checkpoint, "STREAM_ABOVE_NBYTES", 0)
    streamed = make_tiny(dtype=dtype)
    assert loading_gaps(streamed) == {}
    weights = read_weights(streamed)
    assert len(set(weights.values())) == len(weights)
    index = "model.safetensors.index.json"
    assert json.loads((streamed / index).read_text()) == json.loads((written / index).read_text())
    values = torch.frombuffer(
        bytearray(weights["model.layers.1.mlp.down_proj.weight"]), dtype=getattr(torch, dtype)
    )
    assert values.float().std() == pytest.approx(32**-0.5, rel=0.1)
    norm = torch.frombuffer(bytearray(weights["model.norm.weight"]), dtype=getattr(torch, dtype))
    assert norm.float().mean() == pytest.approx(1, abs=0.2)


@pytest.mark.parametrize("shards", [1, 2, 4])
def test_the_number_of_shards_is_the_one_asked_for(
    make_tiny: Callable[..., Path], shards: int
) -> None:
    folder = make_tiny(shards=shards)
    assert len(list(folder.glob("*.safetensors"))) == shards
    assert (folder / "model.safetensors.index.json").exists() == (shards > 1)


def test_a_folder_with_files_is_refused(tmp_path: Path) -> None:
    (tmp_path / "keep").write_text("me")
    with pytest.raises(SystemExit, match="not empty"):
        make_checkpoint.make_checkpoint(tmp_path, shape="tiny")
    assert [file.name for file in tmp_path.iterdir()] == ["keep"]


def test_the_large_shapes_are_those_of_the_hub() -> None:
    """Parameter counts as the cards of openchat-3.5-0106, Qwen2.5-7B and Qwen3-8B-FP8 give."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    for name, count in {
        "mistral-7b": 7_241_748_480,
        "qwen2.5-7b": 7_615_616_512,
        "qwen3-8b-fp8": 8_190_735_360,
    }.items():
        shape = make_checkpoint.SHAPES[name]
        with torch.device("meta"):
            config = AutoConfig.for_model(shape.model_type, **shape.config)
            model = AutoModelForCausalLM.from_config(config)
        assert sum(tensor.numel() for tensor in model.state_dict().values()) == count


def test_an_fp8_checkpoint_loads_and_is_read_alike(tmp_path: Path) -> None:
    """transformers unpacks it on a CPU; blockexpand's unpacking gives the same values."""
    import torch
    from transformers import AutoModelForCausalLM

    import blockexpand

    small = {
        "hidden_size": 256,
        "intermediate_size": 384,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
    }
    row = make_checkpoint.SHAPES["qwen3-8b-fp8"]
    shape = make_checkpoint.Shape(
        model_type="qwen3", shards=2, fp8=True, config={**row.config, **small, "vocab_size": 1024}
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(make_checkpoint.SHAPES, "small", shape)
        make_checkpoint.make_checkpoint(tmp_path / "fp8", shape="small", layers=2)
    assert loading_gaps(tmp_path / "fp8") == {}
    weights = read_weights(tmp_path / "fp8")
    assert len(set(weights.values())) == len(weights) == 2 * (7 * 2 + 4) + 3
    blockexpand.expand(tmp_path / "fp8", tmp_path / "flat", new_layers=0, quantized="dequantize")
    one, other = (
        AutoModelForCausalLM.from_pretrained(tmp_path / name, dtype=torch.bfloat16).state_dict()
        for name in ("fp8", "flat")
    )
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)
    deviation = one["model.layers.1.mlp.down_proj.weight"].float().std()
    assert deviation == pytest.approx(256**-0.5, rel=0.2)
