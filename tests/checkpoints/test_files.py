"""Which files are weights, and which come along: names as they are found on the Hub."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from blockexpand.checkpoints.files import (
    is_foreign_weights,
    is_hidden,
    list_files,
    split_side_files,
)
from blockexpand.errors import CheckpointError


@pytest.mark.parametrize(
    "name",
    [
        "pytorch_model.bin",
        "pytorch_model-00001-of-00002.bin",
        "pytorch_model.bin.index.json",
        "model.fp32-00001-of-00002.safetensors",
        "model.safetensors.index.fp32.json.index.json",
        "consolidated.safetensors",
        "consolidated.json",
        "consolidated.00.pth",
        "original/consolidated.00.pth",
        "original/params.json",
        "original/tokenizer.model",
        "ggml-model-q4_0.gguf",
        "MODEL.GGUF",
        "onnx/model.onnx",
        "onnx/model.onnx_data",
        "onnx/config.json",
        "tf_model.h5",
        "flax_model.msgpack",
        "rust_model.ot",
        "training_args.bin",
        "optimizer.pt",
        "rng_state_0.pth",
        "global_step100/mp_rank_00_model_states.pt",
        "global_step100/anything",
        "adapter_model.safetensors",
    ],
)
def test_other_weights_stay_behind(name: str) -> None:
    assert is_foreign_weights(name)


@pytest.mark.parametrize(
    "name",
    [
        "generation_config.json",
        "tokenizer.json",
        "tokenizer.model",
        "tokenizer_config.json",
        "special_tokens_map.json",
        "added_tokens.json",
        "vocab.json",
        "merges.txt",
        "chat_template.jinja",
        "additional_chat_templates/rag.jinja",
        "preprocessor_config.json",
        "processor_config.json",
        "modeling_own.py",
        "spk_dict.pt",
        "configuration_own.py",
        "LICENSE",
        "LICENSE.txt",
        "NOTICE",
        "USE_POLICY.md",
        "tekken.json",
        "tiktoken.model",
        "images/logo.png",
        "original_readme.md",
    ],
)
def test_everything_else_comes_along(name: str) -> None:
    assert not is_foreign_weights(name)
    assert not is_hidden(name)
    assert split_side_files([name], []) == ((name,), ())


def test_what_is_rewritten_or_hidden_is_neither() -> None:
    names = [
        "config.json",
        "README.md",
        "model.safetensors",
        "model.safetensors.index.json",
        "block_expansion.json",
        ".gitattributes",
        ".git/HEAD",
        ".cache/huggingface/x.json",
        "sub/.hidden/file",
        "model-00001-of-00001.safetensors",
    ]
    assert split_side_files(names, ["model-00001-of-00001.safetensors"]) == ((), ())


def test_a_file_below_with_a_name_that_is_rewritten_at_the_top_comes_along() -> None:
    assert split_side_files(["sub/config.json", "sub/README.md"], []) == (
        ("sub/README.md", "sub/config.json"),
        (),
    )


def test_both_lists_are_sorted() -> None:
    side, left = split_side_files(["b", "a", "d.bin", "c.bin"], [])
    assert (side, left) == (("a", "b"), ("c.bin", "d.bin"))


def make_socket(path: Path) -> None:
    import socket

    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(path))


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such files")
@pytest.mark.parametrize(("make", "name"), [(os.mkfifo, "a named pipe"), (make_socket, "a socket")])
def test_what_cannot_be_copied_is_named(
    make: Callable[[Path], object], name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "extra").mkdir()
    monkeypatch.chdir(tmp_path / "extra")  # a socket's path has to be short
    make(Path("odd"))
    with pytest.raises(CheckpointError, match=f"extra/odd is {name}, which cannot be copied; rem"):
        list_files(tmp_path)


@pytest.mark.skipif(os.name == "nt" or os.geteuid() != 0, reason="only root makes devices")
def test_a_device_is_named(tmp_path: Path) -> None:
    try:
        os.mknod(tmp_path / "null", 0o20666, os.makedev(1, 3))
    except OSError:
        pytest.skip("devices cannot be made here")
    with pytest.raises(CheckpointError, match="null is a device, which cannot be copied; remove"):
        list_files(tmp_path)
