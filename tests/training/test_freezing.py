"""Freezing: which parameters stay trainable is judged by the modules of the model itself."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    MistralConfig,
    MistralForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
)

from blockexpand import freeze_original_layers
from blockexpand.errors import CheckpointError, TrainingError

# PEFT still asks transformers by an old name.
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated")

SIZES: dict[str, Any] = {
    "vocab_size": 32,
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 8,
}


def manifest(
    new: Iterable[int] = (1, 3), *, layers: int = 4, prefix: str = "model.layers.", **more: Any
) -> dict[str, Any]:
    """A manifest as it stands in a file: each new layer is a clone of the one before it."""
    new = tuple(new)
    sources, source = [], -1
    for layer in range(layers):
        source += layer not in new
        sources.append(max(source, 0))
    return {
        "original_layers": layers - len(new),
        "layers": layers,
        "layer_map": sources,
        "new_layers": list(new),
        "layer_prefix": prefix,
        "zeroed": [],
        "set": {},
        "source": {"model_type": "mistral"},
    } | more


def mistral() -> MistralForCausalLM:
    return MistralForCausalLM(MistralConfig(**SIZES))


def of_layers(layers: Any, new: Iterable[int] = (1, 3)) -> set[int]:
    return {id(parameter) for layer in new for parameter in layers[layer].parameters()}


def trainable(model: torch.nn.Module) -> set[int]:
    return {id(parameter) for parameter in model.parameters() if parameter.requires_grad}


def test_only_the_new_blocks_are_trainable_and_their_names_are_returned() -> None:
    model = mistral()
    names = freeze_original_layers(model, manifest())
    assert trainable(model) == of_layers(model.model.layers)
    by_name = dict(model.named_parameters())
    assert {id(by_name[name]) for name in names} == trainable(model)
    assert len(names) == 2 * 9


def test_layers_that_were_frozen_before_are_trainable_after() -> None:
    model = mistral().requires_grad_(False)
    freeze_original_layers(model, manifest())
    assert trainable(model) == of_layers(model.model.layers)


def test_layer_1_is_not_layer_10() -> None:
    model = MistralForCausalLM(MistralConfig(**SIZES | {"num_hidden_layers": 12}))
    freeze_original_layers(model, manifest([1], layers=12))
    assert trainable(model) == of_layers(model.model.layers, [1])


def test_the_model_without_a_head() -> None:
    model = mistral().model
    freeze_original_layers(model, manifest())
    assert trainable(model) == of_layers(model.layers)


def test_experts_in_one_tensor_are_found_by_their_layer() -> None:
    model = MixtralForCausalLM(MixtralConfig(**SIZES, num_local_experts=4))
    freeze_original_layers(model, manifest(source={"model_type": "mixtral"}))
    assert trainable(model) == of_layers(model.model.layers)
    assert any(parameter.ndim == 3 for parameter in model.model.layers[3].parameters())


class Experts(torch.nn.Module):
    """A layer with numbered experts, as models outside of transformers 5 have them."""

    def __init__(self) -> None:
        super().__init__()
        self.experts = torch.nn.ModuleList(torch.nn.Linear(2, 2) for _ in range(4))


class Tower(torch.nn.Module):
    def __init__(self, layer: type[torch.nn.Module]) -> None:
        super().__init__()
        self.layers = torch.nn.ModuleList(layer() for _ in range(4))


class Whole(torch.nn.Module):
    """A decoder under `model.`, and a vision tower whose path ends like the decoder's."""

    def __init__(self) -> None:
        super().__init__()
        self.vision_model = torch.nn.Module()
        self.vision_model.model = Tower(Experts)
        self.model = Tower(Experts)


def test_a_towers_layer_and_an_expert_of_the_same_number_are_left_alone() -> None:
    model = Whole()
    freeze_original_layers(model, manifest())
    assert trainable(model) == of_layers(model.model.layers)


@pytest.mark.parametrize(
    "on_disk", ["model.language_model.layers.", "language_model.model.layers."]
)
def test_a_multimodal_models_decoder_is_found_wherever_its_files_have_it(on_disk: str) -> None:
    vision = {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 4,
        "num_attention_heads": 2,
        "image_size": 8,
        "patch_size": 4,
    }
    config = Gemma3Config(text_config=SIZES, vision_config=vision, mm_tokens_per_image=4)
    model = Gemma3ForConditionalGeneration(config)
    freeze_original_layers(model, manifest(prefix=on_disk, source={"model_type": "gemma3"}))
    assert trainable(model) == of_layers(model.model.language_model.layers)


class Wrapper(torch.nn.Module):
    """What DistributedDataParallel does to names; it needs processes of its own."""

    def __init__(self, module: torch.nn.Module) -> None:
        super().__init__()
        self.module = module


def test_wrapped_models() -> None:
    model = mistral()
    for wrapped in (
        Wrapper(model),
        torch.compile(model, backend="eager"),
        Wrapper(torch.compile(model, backend="eager")),
    ):
        model.requires_grad_(True)
        names = freeze_original_layers(wrapped, manifest())
        assert trainable(model) == of_layers(model.model.layers)
        assert set(names) <= {name for name, _ in wrapped.named_parameters()}


def test_a_compiled_layer() -> None:
    model = mistral()
    expected = of_layers(model.model.layers)
    model.model.layers[3] = torch.compile(model.model.layers[3], backend="eager")
    freeze_original_layers(model, manifest())
    assert trainable(model) == expected


def lora(**options: Any) -> Any:
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=2, target_modules=["q_proj"], **options)
    return peft.get_peft_model(mistral(), config)


def test_adapters_of_a_peft_model() -> None:
    model = lora(modules_to_save=["embed_tokens", "lm_head", "model.layers.3.input_layernorm"])
    names = freeze_original_layers(model, manifest())
    start = "base_model.model.model.layers."
    assert sorted(names) == [
        f"{start}1.self_attn.q_proj.lora_A.default.weight",
        f"{start}1.self_attn.q_proj.lora_B.default.weight",
        f"{start}3.input_layernorm.modules_to_save.default.weight",
        f"{start}3.self_attn.q_proj.lora_A.default.weight",
        f"{start}3.self_attn.q_proj.lora_B.default.weight",
    ]
    assert {name for name, p in model.named_parameters() if p.requires_grad} == set(names)
    assert freeze_original_layers(model, manifest()) == names


def test_adapters_of_a_wrapped_peft_model() -> None:
    model = Wrapper(torch.compile(lora(), backend="eager"))
    names = freeze_original_layers(model, manifest())
    assert len(names) == 4
    assert all(name.startswith("module._orig_mod.base_model.model.") for name in names)


def test_adapters_injected_without_a_wrapper() -> None:
    model = mistral()
    peft = pytest.importorskip("peft")
    model.add_adapter(peft.LoraConfig(r=2, target_modules=["q_proj"]))
    assert len(freeze_original_layers(model, manifest())) == 4
    assert len(trainable(model)) == 4


def test_a_whole_block_that_peft_saves() -> None:
    model = lora(
        modules_to_save=["model.layers.3"], layers_to_transform=[0], layers_pattern="layers"
    )
    names = freeze_original_layers(model, manifest())
    start = "base_model.model.model.layers.3.modules_to_save.default."
    assert len(names) == 9 and all(name.startswith(start) for name in names)


def test_adapters_beside_the_new_blocks_are_an_error_and_nothing_changes() -> None:
    model = lora(layers_to_transform=[0, 2], layers_pattern="layers")
    before = trainable(model)
    with pytest.raises(TrainingError, match=r"new layers 1, 3; .*layers_to_transform=\[1, 3\]"):
        freeze_original_layers(model, manifest())
    assert trainable(model) == before


def test_a_model_of_another_depth() -> None:
    model = mistral()
    with pytest.raises(TrainingError, match=r"4 layers model\.layers\.<i>, to 3; .* says 6; load"):
        freeze_original_layers(model, manifest(layers=6))
    assert len(trainable(model)) == len(list(model.parameters()))


def test_a_model_without_the_decoder() -> None:
    model = torch.nn.ModuleDict({"blocks": Tower(Experts)})
    with pytest.raises(TrainingError, match=r"no layer under model\.layers\., .*it has blocks\."):
        freeze_original_layers(model, manifest())


def test_quantized_blocks() -> None:
    model = Whole()
    weight = model.model.layers[3].experts[0]
    weight.weight = torch.nn.Parameter(torch.zeros(2, 2, dtype=torch.uint8), requires_grad=False)
    with pytest.raises(TrainingError, match=r"layers\.3\.experts\.0\.weight' is quantized"):
        freeze_original_layers(model, manifest())


def test_a_merge_without_new_blocks() -> None:
    with pytest.raises(TrainingError, match="no new layer to train"):
        freeze_original_layers(mistral(), manifest([]))


def test_a_merge_of_two_models_of_which_the_second_is_deeper() -> None:
    model = mistral()
    stated = manifest([3]) | {"layer_map": [0, 1, 30, 30], "layer_models": [0, 0, 1, 1]}
    freeze_original_layers(model, stated)
    assert trainable(model) == of_layers(model.model.layers, [3])


def test_the_manifest_as_a_folder_a_file_and_content(tmp_path: Path) -> None:
    (tmp_path / "block_expansion.json").write_text(json.dumps(manifest()))
    for place in (tmp_path, str(tmp_path), tmp_path / "block_expansion.json"):
        assert len(freeze_original_layers(mistral(), place)) == 18


def test_no_manifest(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no block_expansion\.json in it; .*copy it"):
        freeze_original_layers(mistral(), tmp_path)
    with pytest.raises(CheckpointError, match="no such file or folder"):
        freeze_original_layers(mistral(), tmp_path / "absent")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("original_layers", "2"),
        ("original_layers", True),
        ("layer_map", [0, 0, 1, 2]),
        ("layer_map", {}),
        ("layer_map", []),
        ("layer_models", [0]),
        ("layers", 5),
        ("new_layers", [4]),
        ("new_layers", None),
        ("layer_prefix", "model.layers"),
        ("zeroed", "o_proj"),
        ("set", {"norm": "-1"}),
    ],
)
def test_a_damaged_manifest_names_the_field(field: str, value: object) -> None:
    with pytest.raises(CheckpointError, match=f"field '{field}': expected .*, found "):
        freeze_original_layers(mistral(), manifest() | {field: value})
