"""Tiny checkpoints that bring their own code, in the styles of those that were released.

The code is run here by importing it as a package, without the machinery of `transformers` for it.
"""

from __future__ import annotations

import importlib.util
import json
import shutil
import sys
import warnings
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

_HERE = Path(__file__).parent / "own_code"

_numbers = count()


@dataclass(frozen=True, kw_only=True)
class OwnCode:
    """`config` and `model` name classes as `auto_map` does; `fields` are those of config.json."""

    name: str
    config: str
    model: str
    fields: dict[str, Any]
    auto_classes: tuple[str, ...] = field(default=("AutoModelForCausalLM",))

    @property
    def json(self) -> dict[str, Any]:
        return {
            "architectures": [self.model.partition(".")[2]],
            "auto_map": {
                "AutoConfig": self.config,
                **dict.fromkeys(self.auto_classes, self.model),
            },
            **self.fields,
            "torch_dtype": "float32",
        }


_WIDTHS = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "vocab_size": 160,
}

OWN_CODE = {
    one.name: one
    for one in (
        OwnCode(
            name="internlm2",
            config="configuration_internlm2.InternLM2Config",
            model="modeling_internlm2.InternLM2ForCausalLM",
            fields={
                "model_type": "internlm2",
                **_WIDTHS,
                "num_key_value_heads": 2,
                "rope_scaling": {"type": "dynamic", "factor": 2.0},
                "tie_word_embeddings": False,
            },
            auto_classes=("AutoModel", "AutoModelForCausalLM"),
        ),
        OwnCode(
            name="baichuan",
            config="configuration_baichuan.BaichuanConfig",
            model="modeling_baichuan.BaichuanForCausalLM",
            fields={
                "model_type": "baichuan",
                **_WIDTHS,
                "model_max_length": 4096,
                "tie_word_embeddings": False,
                "z_loss_weight": 0,
            },
        ),
        OwnCode(
            name="minicpm",
            config="configuration_minicpm.MiniCPMConfig",
            model="modeling_minicpm.MiniCPMForCausalLM",
            fields={
                "model_type": "minicpm",
                **_WIDTHS,
                "num_key_value_heads": 2,
                "scale_emb": 12,
                "dim_model_base": 256,
                "scale_depth": 1.4,
                "tie_word_embeddings": False,
            },
        ),
        OwnCode(
            name="chatglm",
            config="configuration_chatglm.ChatGLMConfig",
            model="modeling_chatglm.ChatGLMForConditionalGeneration",
            fields={
                "model_type": "chatglm",
                "num_layers": 4,
                "padded_vocab_size": 160,
                "hidden_size": 64,
                "ffn_hidden_size": 96,
                "kv_channels": 8,
                "num_attention_heads": 8,
                "multi_query_attention": True,
                "multi_query_group_num": 2,
                "apply_query_key_layer_scaling": True,
                "add_qkv_bias": True,
                "tie_word_embeddings": False,
            },
            auto_classes=("AutoModel", "AutoModelForCausalLM", "AutoModelForSeq2SeqLM"),
        ),
        OwnCode(
            name="phi",
            config="configuration_mixformer.MixFormerConfig",
            model="modeling_mixformer.MixFormerForCausalLM",
            fields={
                "model_type": "mixformer-sequential",
                "n_embd": 64,
                "n_layer": 4,
                "n_head": 8,
                "n_inner": None,
                "vocab_size": 160,
                "tie_word_embeddings": False,
            },
        ),
    )
}


def make_own_code(name: str, folder: Path) -> None:
    """Make a checkpoint of random weights with the code that it needs beside it."""
    one = OWN_CODE[name]
    folder.mkdir()
    for file in sorted((_HERE / name).glob("*.py")):
        shutil.copyfile(file, folder / file.name)
    (folder / "config.json").write_text(json.dumps(one.json, indent=2) + "\n")
    torch.manual_seed(0)
    model = build(folder)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    tensors = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def build(folder: Path) -> Any:
    """Build the model of a checkpoint folder with the folder's own code; weights are random."""
    config = json.loads((folder / "config.json").read_text())
    package = f"own_code_{next(_numbers)}"
    spec = importlib.util.spec_from_file_location(
        package, folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    assert spec is not None
    sys.modules[package] = importlib.util.module_from_spec(spec)
    classes = config["auto_map"]
    fields = {key: value for key, value in config.items() if key not in ("auto_map", "model_type")}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of the fields of older releases
        made = _class(package, classes["AutoConfig"])(**fields)
    return _class(package, classes["AutoModelForCausalLM"])(made)


def _class(package: str, name: str) -> Any:
    module, _, member = name.partition(".")
    return getattr(importlib.import_module(f"{package}.{module}"), member)


def compute(folder: Path) -> torch.Tensor:
    """Return logits of a checkpoint, loaded by name: each tensor of it has to be in the model."""
    model = build(folder).float().eval()
    tensors: dict[str, torch.Tensor] = {}
    for file in sorted(folder.glob("*.safetensors")):
        tensors |= load_file(file)
    model.load_state_dict(tensors)
    ids = torch.arange(40)[None] * 37 % 150
    with torch.no_grad():
        logits: torch.Tensor = model(input_ids=ids).logits
    return logits
