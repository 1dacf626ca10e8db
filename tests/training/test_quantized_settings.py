"""Training an expansion of a quantised source: what is refused, and what the scripts load."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import quantized_zoo as zoo
import torch
from older import is_older

import blockexpand
from blockexpand.errors import TrainingError
from blockexpand.training.settings import FRAMEWORKS, make_settings


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Expansions of an FP8 model, by mode."""
    folder = tmp_path_factory.mktemp("training")
    source = zoo.make_base(folder / "source", "llama")
    tensors = zoo.quantize(zoo.read_tensors(source), zoo.fp8_blocks())
    zoo.write_quantized(source, tensors, zoo.fp8_settings())
    modes: tuple[Any, ...] = ("keep", "new-blocks-full", "dequantize")
    for mode in modes:
        blockexpand.expand(source, folder / mode, position=(1, 3), quantized=mode)
    return {mode: folder / mode for mode in modes}


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_quantised_blocks_train_by_lora_alone(framework: str, made: dict[str, Path]) -> None:
    if framework == "peft":
        assert make_settings(made["keep"], framework).notes
        return
    with pytest.raises(TrainingError, match=r"--framework peft.* --quantized new-blocks-full"):
        make_settings(made["keep"], framework)


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_settings_of_full_blocks_say_what_stays_quantised(
    framework: str, made: dict[str, Path]
) -> None:
    notes = make_settings(made["new-blocks-full"], framework).notes
    assert any("stay quantized (fp8), frozen" in note for note in notes)
    notes = make_settings(made["dequantize"], framework).notes
    assert not any("quantized" in note for note in notes)


@pytest.mark.skipif(is_older("transformers", (4, 56)), reason="this one loads no FP8 by blocks")
def test_float8_parameters_are_not_trained(made: dict[str, Path]) -> None:
    model = zoo.load(made["keep"])
    parameter = model.model.layers[2].self_attn.o_proj.weight
    parameter.data = parameter.data.to(torch.float8_e4m3fn)
    assert parameter.is_floating_point() and parameter.requires_grad
    with pytest.raises(TrainingError, match="new-blocks-full"):
        blockexpand.freeze_original_layers(model, made["keep"])


@pytest.mark.parametrize(
    ("method", "line"),
    [
        ("compressed-tensors", "quantization_config=CompressedTensorsConfig(dequantize=True)"),
        ("mxfp4", "quantization_config=Mxfp4Config(dequantize=True)"),
        ("bitsandbytes", "model.is_quantized = False"),
    ],
)
@pytest.mark.parametrize("framework", ["transformers", "trl"])
def test_scripts_load_each_method_so_that_it_trains(
    framework: str, method: str, line: str, made: dict[str, Path], tmp_path: Path
) -> None:
    folder = tmp_path / "out"
    folder.mkdir()
    for file in made["new-blocks-full"].iterdir():
        text = file.read_bytes()
        if file.name == "block_expansion.json":
            text = text.replace(b'"fp8"', f'"{method}"'.encode())
        (folder / file.name).write_bytes(text)
    text = make_settings(folder, framework).text
    assert line in text
    compile(text, "script", "exec")


def test_what_passes_no_gradient_is_refused(made: dict[str, Path], tmp_path: Path) -> None:
    for file in made["new-blocks-full"].iterdir():
        text = file.read_bytes()
        if file.name == "block_expansion.json":
            text = text.replace(b'"fp8"', b'"fbgemm_fp8"')
        (tmp_path / file.name).write_bytes(text)
    with pytest.raises(TrainingError, match="--quantized dequantize to train it"):
        make_settings(tmp_path, "transformers")


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_lora_of_a_kept_expansion_trains_its_new_layers(made: dict[str, Path]) -> None:
    peft = pytest.importorskip("peft")
    settings = dict(make_settings(made["keep"], "peft").settings)
    model = peft.get_peft_model(zoo.load(made["keep"]), peft.LoraConfig(**settings))
    trainable = blockexpand.freeze_original_layers(model, made["keep"])
    assert trainable and all(".layers.2." in n or ".layers.5." in n for n in trainable)
    ids = torch.randint(3, zoo.VOCABULARY, (2, 24), generator=torch.Generator().manual_seed(3))
    before = model(input_ids=ids).logits
    plain = zoo.load(made["keep"])(input_ids=ids).logits
    assert torch.equal(before, plain)
    model(input_ids=ids, labels=ids).loss.backward()
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())
