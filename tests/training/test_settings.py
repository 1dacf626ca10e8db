"""Settings for trainers: each is applied to a real model, by the trainer's own code where it is
installed, else by its rule as its documentation and source have it, restated here.
"""

from __future__ import annotations

import dataclasses
import json
import re
import shlex
import sys
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from checkpoints import copy_tree, edit_json
from family_zoo import make_checkpoint as make_family
from older import is_older
from transformers import AutoModelForCausalLM, TrainingArguments
from zoo_dense import DENSE
from zoo_mixture import MIXTURE
from zoo_multimodal import MULTIMODAL

from blockexpand import expand
from blockexpand.cli.app import main
from blockexpand.errors import CheckpointError, TrainingError
from blockexpand.models.loading import load_model
from blockexpand.training.settings import FRAMEWORKS, make_settings

# PEFT still asks transformers by an old name.
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated")

# 12 layers and more: layer 1 must not be taken for 10 or 11.
PLACES: dict[str, tuple[str, int | None, set[int]]] = {
    "end": ("end", 2, {12, 13}),
    "start": ("start", 2, {0, 1}),
    "interleaved": ("interleaved", 4, {3, 7, 11, 15}),
    "uneven": ("0,5", None, {1, 7}),
}


@pytest.fixture(scope="module")
def expansions(
    make_tiny: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    source = make_tiny(layers=12, shards=1)
    folder = tmp_path_factory.mktemp("expansions")
    for name, (position, new, _) in PLACES.items():
        expand(source, folder / name, new_layers=new, position=position)
    return {name: folder / name for name in PLACES}


@pytest.fixture(scope="module")
def families(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return a function that makes an expansion by one layer at the end, of a family by name."""
    recipes = {recipe.name: recipe for recipe in (*DENSE, *MIXTURE, *MULTIMODAL)}
    folder = tmp_path_factory.mktemp("families")

    def make(name: str) -> Path:
        if not (folder / name).exists():
            make_family(recipes[name], folder / f"{name}-source")
            expand(folder / f"{name}-source", folder / name, new_layers=1, dtype="source")
        return folder / name

    return make


def load(folder: Path) -> Any:
    return load_model(folder, "float32")[0]


def layers_of(names: Iterable[str], path: str = "model.layers") -> set[int]:
    numbers = set()
    for name in names:
        assert name.startswith(f"{path}."), name
        numbers.add(int(name.removeprefix(f"{path}.").partition(".")[0]))
    return numbers


def trainable(model: torch.nn.Module) -> set[str]:
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def check(model: Any, place: str) -> None:
    """All of the new layers' 9 parameters are trainable and nothing else."""
    new = PLACES[place][2]
    assert layers_of(trainable(model)) == new
    assert len(trainable(model)) == 9 * len(new)


# LLaMA-Factory


def apply_llamafactory(model: Any, settings: dict[str, Any]) -> None:
    """Source: llamafactory/model/adapter.py, freeze tuning with freeze_trainable_modules 'all'."""
    layers, count = model.config.num_hidden_layers, settings["freeze_trainable_layers"]
    if settings["use_llama_pro"]:
        assert layers % count == 0
        stride = layers // count
        numbers = range(stride - 1, layers, stride)
    else:
        numbers = range(layers - count, layers) if count > 0 else range(-count)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(any(f".{number}." in name for number in numbers))


@pytest.mark.parametrize("place", ["end", "start", "interleaved"])
def test_llamafactory(place: str, expansions: dict[str, Path]) -> None:
    settings = yaml.safe_load(make_settings(expansions[place], "llamafactory").text)
    assert settings["finetuning_type"] == "freeze"
    assert settings["freeze_trainable_modules"] == "all"
    model = load(expansions[place])
    apply_llamafactory(model, settings)
    check(model, place)


def test_llamafactory_at_the_end_has_no_llama_pro(expansions: dict[str, Path]) -> None:
    settings = make_settings(expansions["end"], "llamafactory").settings
    assert (settings["use_llama_pro"], settings["freeze_trainable_layers"]) == (False, 2)
    settings = make_settings(expansions["interleaved"], "llamafactory").settings
    assert (settings["use_llama_pro"], settings["freeze_trainable_layers"]) == (True, 4)


@pytest.mark.parametrize("place", ["end", "start", "interleaved"])
def test_llamafactory_itself(
    place: str, expansions: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Its releases ask for an older transformers, which its freezing does not depend on.
    monkeypatch.setenv("DISABLE_VERSION_CHECK", "1")
    adapter = import_framework("llamafactory.model.adapter")
    hparams = import_framework("llamafactory.hparams.finetuning_args")
    settings = make_settings(expansions[place], "llamafactory").settings
    known = {field.name for field in dataclasses.fields(hparams.FinetuningArguments)}
    arguments = hparams.FinetuningArguments(**{k: v for k, v in settings.items() if k in known})
    model = load(expansions[place])
    adapter._setup_freeze_tuning(model, arguments, True, cast_trainable_params_to_fp32=False)
    check(model, place)


def test_llamafactory_refuses_uneven_groups(expansions: dict[str, Path]) -> None:
    with pytest.raises(TrainingError, match=r"cannot express the new layers 1, 7 of 14.*uneven"):
        make_settings(expansions["uneven"], "llamafactory")


def test_llamafactory_takes_an_expert_for_a_layer_of_its_number(
    families: Callable[[str], Path], tmp_path: Path
) -> None:
    expand(families("mixtral"), tmp_path / "out", new_layers=1, position="start", dtype="source")
    notes = make_settings(tmp_path / "out", "llamafactory").notes
    assert any("'.N.' anywhere in a name, so that modules numbered 0" in note for note in notes)
    # The new layer is the last of 7, and no layer has 7 experts.
    assert not any("'.N.'" in n for n in make_settings(families("mixtral"), "llamafactory").notes)


# axolotl


@pytest.mark.parametrize("place", PLACES)
def test_axolotl(place: str, expansions: dict[str, Path]) -> None:
    """Source: axolotl/utils/freeze.py, which escapes dots itself and matches from the start."""
    patterns = yaml.safe_load(make_settings(expansions[place], "axolotl").text)
    model = load(expansions[place])
    compiled = [
        re.compile(re.sub(r"\.(?!\+)", r"\\.", pattern))
        for pattern in patterns["unfrozen_parameters"]
    ]
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(any(pattern.match(name) for pattern in compiled))
    check(model, place)


@pytest.mark.parametrize("place", PLACES)
def test_axolotl_itself(place: str, expansions: dict[str, Path]) -> None:
    freeze = import_framework("axolotl.utils.freeze")
    settings = make_settings(expansions[place], "axolotl").settings
    model = load(expansions[place])
    freeze.freeze_layers_except(model, settings["unfrozen_parameters"])
    check(model, place)


def test_axolotls_pattern_is_the_documented_one(expansions: dict[str, Path]) -> None:
    settings = make_settings(expansions["end"], "axolotl").settings
    assert settings["unfrozen_parameters"] == ["^model.layers.(12|13)."]
    assert settings["gradient_checkpointing_kwargs"] == {"use_reentrant": False}


# ms-swift


@pytest.mark.parametrize("place", PLACES)
def test_ms_swift(place: str, expansions: dict[str, Path]) -> None:
    """Source: ms-swift's command-line parameters; names are trainable by their beginning."""
    arguments = swift_arguments(make_settings(expansions[place], "ms-swift").text)
    assert arguments["--tuner_type"] == ["full"]
    assert arguments["--freeze_parameters_ratio"] == ["1"]
    model = load(expansions[place])
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.startswith(tuple(arguments["--trainable_parameters"])))
    check(model, place)


def swift_arguments(text: str) -> dict[str, list[str]]:
    command = "\n".join(line for line in text.splitlines() if not line.startswith("#"))
    words = shlex.split(command.replace("\\\n", " "))
    assert words[:2] == ["swift", "sft"]
    arguments: dict[str, list[str]] = {}
    for word in words[2:]:
        if word.startswith("--"):
            values = arguments[word] = []
        else:
            values.append(word)
    return arguments


@pytest.mark.parametrize("place", PLACES)
def test_ms_swift_itself(place: str, expansions: dict[str, Path]) -> None:
    swift = import_framework("swift.utils.transformers_utils")
    settings = make_settings(expansions[place], "ms-swift").settings
    model = load(expansions[place])
    swift.freeze_parameters(model, settings["freeze_parameters_ratio"], [])
    swift.activate_parameters(model, settings["trainable_parameters"])
    check(model, place)


def test_ms_swifts_own_tuner_cannot_express_uneven_groups(expansions: dict[str, Path]) -> None:
    note = "llamapro cannot express the new layers 1, 7"
    assert note in make_settings(expansions["uneven"], "ms-swift").text
    assert "cannot express" not in make_settings(expansions["interleaved"], "ms-swift").text


# PEFT


def run_peft(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Run the printed program; return its model."""
    pytest.importorskip("peft")
    text = make_settings(folder, "peft").text
    monkeypatch.setattr("peft.PeftModel.print_trainable_parameters", lambda model: None)
    program: dict[str, Any] = {}
    exec(text.replace('dtype="auto"', "dtype='float32'"), program)
    return program["model"]


@pytest.mark.parametrize("place", PLACES)
def test_peft(place: str, expansions: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    model = run_peft(expansions[place], monkeypatch)
    names = {name for name, _ in model.named_parameters() if "lora_" in name}
    new = PLACES[place][2]
    assert layers_of(names, "base_model.model.model.layers") == new
    # Seven linear modules a layer, each with an A and a B.
    assert len(names) == 7 * 2 * len(new)
    assert trainable(model) == names


@pytest.mark.parametrize("name", ["gemma2", "olmo2", "gemma3", "mixtral", "deepseek_v2", "afmoe"])
def test_peft_reaches_every_branch_of_the_new_block(
    name: str, families: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Behind a closing norm that lets nothing through, an adapter alone would never learn."""
    model = run_peft(families(name), monkeypatch)
    adapters = {name: p for name, p in model.named_parameters() if "lora_" in name}
    assert trainable(model) >= set(adapters)
    assert {int(re.findall(r"layers\.(\d+)\.", name)[-1]) for name in adapters} == {6}
    assert not any("vision" in name for name in adapters)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    ids = torch.arange(5, 25).reshape(1, 20)
    for _ in range(3):
        optimizer.zero_grad()
        model(input_ids=ids).logits.square().mean().backward()
        optimizer.step()
    moved = {
        re.sub(r"\.lora_B\..*|\.base_layer.*", "", name.split(".6.")[1])
        for name, parameter in adapters.items()
        if "lora_B" in name and parameter.abs().max() > 0
    }
    assert any("attn" in path for path in moved), moved
    assert any("mlp" in path for path in moved), moved


def test_peft_does_not_know_mambas_output(tmp_path: Path) -> None:
    from zoo_recurrent import RECURRENT

    (recipe,) = [recipe for recipe in RECURRENT if recipe.name == "mamba"]
    make_family(recipe, tmp_path / "source")
    expand(tmp_path / "source", tmp_path / "out", new_layers=1)
    with pytest.raises(TrainingError, match="no LoRA for 'out_proj' of 'mamba'"):
        make_settings(tmp_path / "out", "peft")


# transformers


@pytest.mark.parametrize("fields", [{"hidden_size": ["a"]}, {"model_type": None}])
def test_a_config_that_transformers_refuses_is_one_line(
    fields: dict[str, Any], expansions: dict[str, Path], tmp_path: Path
) -> None:
    out = copy_tree(expansions["interleaved"], tmp_path / "out")
    edit_json(out / "config.json", **fields)
    with pytest.raises(TrainingError, match=r"cannot build the model from its config: [^\n]+$"):
        make_settings(out, "peft")


def test_transformers(expansions: dict[str, Path]) -> None:
    settings = make_settings(expansions["uneven"], "transformers")
    known = {field.name for field in dataclasses.fields(TrainingArguments)}
    assert set(settings.settings) <= known
    program: dict[str, Any] = {}
    exec(settings.text[: settings.text.index("arguments = ")], program)
    check(program["model"], "uneven")
    assert isinstance(program["model"], AutoModelForCausalLM._model_mapping[_config_class(program)])
    check(program["model"], "uneven")
    compile(settings.text, "settings", "exec")


@pytest.mark.skipif(is_older("transformers", (5,)), reason="what is printed is for transformers 5")
@pytest.mark.parametrize("name", ["mistral", "qwen3_moe", "gemma2", "gpt_oss"])
def test_what_is_printed_trains_norms_too_and_saves_what_extract_reads(
    name: str,
    expansions: dict[str, Path],
    families: Callable[[str], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In bare bfloat16 a norm's weight near 1 would not move at all."""
    out = expansions["interleaved"] if name == "mistral" else families(name)
    text = make_settings(out, "transformers").text
    rows = [{"input_ids": list(range(5, 25)), "labels": list(range(5, 25))} for _ in range(8)]
    program: dict[str, Any] = {"rows": rows}
    monkeypatch.chdir(tmp_path)
    short = (
        "    max_steps=3, use_cpu=True, per_device_train_batch_size=2, report_to='none',\n"
        "    disable_tqdm=True, save_strategy='no',\n    output_dir="
    )
    assert "train_dataset=..." in text
    exec(
        text.replace("train_dataset=...", "train_dataset=rows").replace("    output_dir=", short),
        program,
    )
    model = program["model"]
    before = {key: value for key, value in load(out).named_parameters()}
    new = set(json.loads((out / "block_expansion.json").read_text())["new_layers"])
    norms = 0
    for key, parameter in model.named_parameters():
        layer = re.search(r"layers\.(\d+)\.", key)
        if layer and int(layer[1]) in new:
            assert parameter.dtype == torch.float32
            if parameter.ndim == 1 and "norm" in key:
                norms += 1
                moved = parameter != before[key].to(torch.float32)
                assert moved.float().mean() > 0.9 or "post_" in key, key
        else:
            assert torch.equal(parameter, before[key]), key
    assert norms
    assert (tmp_path / "trained" / "block_expansion.json").is_file()


def _config_class(program: dict[str, Any]) -> type:
    return type(program["model"].config)


# all


def test_a_multimodal_models_decoder_alone_is_trained(families: Callable[[str], Path]) -> None:
    """Its path differs between versions of transformers; both spellings are given."""
    out = families("gemma3")
    model = load(out)
    expected = {name for name, _ in model.named_parameters() if "language_model.layers.6." in name}
    patterns = make_settings(out, "axolotl").settings["unfrozen_parameters"]
    assert "^language_model.model.layers.(6)." in patterns
    compiled = [re.compile(pattern.replace(".", r"\.")) for pattern in patterns]
    names = [name for name, _ in model.named_parameters()]
    assert {n for n in names if any(pattern.match(n) for pattern in compiled)} == expected
    starts = tuple(make_settings(out, "ms-swift").settings["trainable_parameters"])
    assert {name for name in names if name.startswith(starts)} == expected
    assert make_settings(out, "llamafactory").settings["freeze_vision_tower"] is True
    assert "AutoModelForImageTextToText" in make_settings(out, "transformers").text


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_a_closing_norm_of_minus_one_wants_no_weight_decay(
    framework: str, families: Callable[[str], Path], expansions: dict[str, Path]
) -> None:
    gemma = make_settings(families("gemma2"), framework)
    assert any(
        note.startswith("weight_decay 0: the new blocks' post_attention_layernorm.weight")
        for note in gemma.notes
    )
    assert gemma.settings.get("weight_decay", 0.0) == 0.0
    plain = make_settings(expansions["end"], framework)
    assert "weight_decay 0:" not in plain.text
    assert plain.settings.get("weight_decay", 0.1) == 0.1


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_the_place_is_named(framework: str, expansions: dict[str, Path]) -> None:
    text = make_settings(expansions["end"], framework).text
    assert "# new layers 12, 13 of 14, counted from 0: at the end; in LLaMA Pro (table 5)" in text


def test_no_expansion(tiny_mistral: Path) -> None:
    with pytest.raises(CheckpointError, match="no block_expansion"):
        make_settings(tiny_mistral, "axolotl")
    with pytest.raises(TrainingError, match="framework 'unsloth' is unknown; expected one of"):
        make_settings(tiny_mistral, "unsloth")


def test_the_command_line(expansions: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    out = str(expansions["interleaved"])
    assert main(["train-config", out, "--framework", "axolotl"]) == 0
    assert yaml.safe_load(capsys.readouterr().out)["base_model"] == out
    assert main(["train-config", out, "--framework", "axolotl", "--json"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert content["new_layers"] == [3, 7, 11, 15]
    assert content["settings"]["unfrozen_parameters"] == ["^model.layers.(3|7|11|15)."]
    uneven = str(expansions["uneven"])
    assert main(["train-config", uneven, "--framework", "llamafactory"]) == 3
    assert capsys.readouterr().err.count("\n") == 1
    assert main(["train-config", uneven, "--framework", "unsloth"]) == 2


def test_the_help_says_what_the_paper_found(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train-config", "--help"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "interleaved) trained better" in shown and "table 5" in shown


def import_framework(module: str) -> Any:
    """Import a trainer's own code, which warns of much, or skip where it is not installed."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pytest.importorskip(module, exc_type=ImportError)
    return sys.modules[module]
