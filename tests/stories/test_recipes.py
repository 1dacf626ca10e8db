"""Recipes from file to output, against tensors that the test computes itself with torch.

`long`: the same recipes through mergekit itself, where MERGEKIT_YAML names its program.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from checkpoints import edit_json, snapshot
from hub_server import HubServer

import blockexpand
from blockexpand.api.merging import plan_merge
from blockexpand.cli.app import main
from blockexpand.errors import (
    BlockExpandError,
    CheckpointError,
    InputError,
    OutputError,
    RecipeError,
    TrainingError,
    UnsupportedModelError,
)

BF16, F16, F32, F64 = "bfloat16", "float16", "float32", "float64"
Factor = Callable[[str], float]


class Wanted(NamedTuple):
    """A recipe, and what it must make: for each output layer (model, its layer, factor).

    `first` and `last` are the models of the embedding and of norm and head, `outside` their factor.
    `via` are the dtypes that the values pass through, None the one that is there.
    """

    text: str
    layers: list[tuple[str, int, Factor]]
    home: str = "a"
    first: str = "a"
    last: str = "a"
    outside: Factor = lambda name: 1.0
    via: tuple[str | None, str | None] = (BF16, None)


def same(name: str) -> float:
    return 1.0


def on(factor: float, *parts: str) -> Factor:
    """Scale tensors whose name has one of the parts."""
    return lambda name: factor if any(part in name for part in parts) else 1.0


def take(model: str, first: int, last: int, scale: str | None = None) -> str:
    text = f"- sources:\n  - model: {{{model}}}\n    layer_range: [{first}, {last}]\n"
    return text + (f"    parameters: {{{{scale: {scale}}}}}\n" if scale else "")


def recipe(*slices: str, dtype: str | None = BF16, more: str = "") -> str:
    said = f"dtype: {dtype}\n" if dtype else ""
    return f"slices:\n{''.join(slices)}merge_method: passthrough\n{said}{more}"


ZEROS = "[{{filter: o_proj, value: 0.0}}, {{filter: down_proj, value: 0.0}}, {{value: 1.0}}]"
SILENT = on(0.0, "o_proj", "down_proj")


def every(
    model: str, first: int, last: int, factor: Factor = same
) -> list[tuple[str, int, Factor]]:
    return [(model, number, factor) for number in range(first, last)]


def graded(model: str, first: int, *factors: float) -> list[tuple[str, int, Factor]]:
    return [(model, first + i, lambda name, f=f: f) for i, f in enumerate(factors)]


WANTED = {
    "seed": Wanted(
        recipe(take("a", 0, 4), take("a", 3, 4, ZEROS), take("a", 3, 4, ZEROS)),
        every("a", 0, 4) + 2 * every("a", 3, 4, SILENT),
    ),
    "up-scaling": Wanted(
        recipe(take("a", 0, 3), take("a", 1, 4)), every("a", 0, 3) + every("a", 1, 4)
    ),
    "two-models": Wanted(
        recipe(take("a", 0, 3), take("b", 1, 3)), every("a", 0, 3) + every("b", 1, 3), last="b"
    ),
    "empty-last-slice": Wanted(
        recipe(take("a", 0, 4), take("b", 3, 3)), every("a", 0, 4), last="b"
    ),
    "empty-first-slice": Wanted(
        recipe(take("b", 0, 0), take("a", 0, 4)), every("a", 0, 4), home="b", first="b"
    ),
    "empty-middle-slice": Wanted(
        recipe(take("a", 0, 2), take("b", 3, 3), take("a", 2, 4)), every("a", 0, 4)
    ),
    "anchors-and-merge-keys": Wanted(
        """\
const_tag: &one {a}
const_tag: &two {b}
const_tag: &half 0.5
const_tag: &scaled
  parameters:
    scale: [{{filter: o_proj, value: *half}}, {{value: 1.0}}]
slices:
- sources: [&base {{model: *one, layer_range: [0, 2]}}]
- sources:
  - model: *two
    layer_range: [1, 3]
    <<: *scaled
- sources: [{{<<: [*scaled, *base], layer_range: [2, 4]}}]
merge_method: passthrough
dtype: &dtype bfloat16
out_dtype: *dtype
""",
        every("a", 0, 2)
        + every("b", 1, 3, on(0.5, "o_proj"))
        + every("a", 2, 4, on(0.5, "o_proj")),
        via=(BF16, BF16),
    ),
    "base-model": Wanted(
        recipe(take("a", 0, 3), take("b", 1, 3), more="base_model: {b}\n"),
        every("a", 0, 3) + every("b", 1, 3),
        home="b",
        last="b",
    ),
    "pruned": Wanted(
        recipe(take("a", 0, 1), take("a", 3, 4), dtype=None),
        every("a", 0, 1) + every("a", 3, 4),
        via=(None, None),
    ),
    "reordered": Wanted(
        recipe(take("a", 3, 4), *[take("a", 0, 1)] * 3, take("a", 1, 2), dtype=None),
        every("a", 3, 4) + 3 * every("a", 0, 1) + every("a", 1, 2),
        via=(None, None),
    ),
    "halved": Wanted(
        recipe(take("a", 0, 4, "0.5")),
        every("a", 0, 4, lambda name: 0.5),
        outside=lambda name: 0.5,
    ),
    "negated": Wanted(
        recipe(take("a", 0, 4, "-1"), dtype=None),
        every("a", 0, 4, lambda name: -1.0),
        outside=lambda name: -1.0,
        via=(None, None),
    ),
    "thousandth": Wanted(
        recipe(take("a", 0, 4, "[{{filter: mlp, value: 1e-3}}]")),
        every("a", 0, 4, on(1e-3, "mlp")),
    ),
    "gradient": Wanted(
        recipe(take("a", 0, 3, "[0.5, 1, 3]"), take("a", 2, 4, "[0.1, 0.7]")),
        graded("a", 0, 0.5, 1.0, 3.0) + graded("a", 2, 0.1, 0.7),
        outside=lambda name: 0.5 if "embed" in name else 0.1,
    ),
    "float32": Wanted(
        recipe(take("wide", 0, 3, "0.3"), dtype=None),
        every("wide", 0, 3, lambda name: 0.3),
        *("wide", "wide", "wide"),
        outside=lambda name: 0.3,
        via=(None, None),
    ),
    "scaled-in-float32": Wanted(
        recipe(take("a", 0, 4, "0.3"), dtype=F32, more="out_dtype: bfloat16\n"),
        every("a", 0, 4, lambda name: 0.3),
        outside=lambda name: 0.3,
        via=(F32, BF16),
    ),
    "rounded-twice": Wanted(
        recipe(take("wide", 0, 3), dtype=F16, more="out_dtype: bfloat16\n"),
        every("wide", 0, 3),
        *("wide", "wide", "wide"),
        via=(F16, BF16),
    ),
    "mixed-dtypes": Wanted(
        recipe(take("a", 0, 3), take("wide", 1, 2, "0.7"), dtype=None),
        every("a", 0, 3) + every("wide", 1, 2, lambda name: 0.7),
        last="wide",
        outside=lambda name: 1.0 if "embed" in name else 0.7,
        via=(None, None),
    ),
    "double": Wanted(
        recipe(take("a", 0, 2, "0.3"), dtype=F64),
        every("a", 0, 2, lambda name: 0.3),
        outside=lambda name: 0.3,
        via=(F64, None),
    ),
    "precedence": Wanted(
        recipe(
            take("a", 0, 2, "{{filter: q_proj, value: 2}}")
            + "  parameters: {{scale: [{{filter: self_attn, value: 3}}]}}\n",
            take("a", 2, 4),
            more="parameters:\n  scale: [{{filter: attn, value: 4}}, {{filter: head, value: 5}}]\n",
        ),
        every("a", 0, 2, lambda n: 2.0 if "q_proj" in n else 3.0 if "self_attn" in n else 1.0)
        + every("a", 2, 4, on(4.0, "attn")),
        outside=on(5.0, "head"),
    ),
    "filters-see-the-source's-number": Wanted(
        recipe(take("a", 2, 4, "{{filter: layers.3., value: 2}}"), dtype=None),
        [("a", 2, same), ("a", 3, lambda name: 2.0)],
        via=(None, None),
    ),
    "models": Wanted(
        "models: [{{model: {a}, parameters: {{scale: [1, 0.25]}}}}]\n"
        "merge_method: passthrough\ndtype: bfloat16\n",
        graded("a", 0, 1.0, 0.75, 0.5, 0.25),
    ),
    "modules": Wanted(
        "modules: {{default: {{models: [{{model: {a}}}], parameters: {{scale: 2}}}}}}\n"
        "merge_method: passthrough\nparameters: {{scale: 7}}\n",
        every("a", 0, 4, lambda name: 2.0),
        outside=lambda name: 2.0,
        via=(None, None),
    ),
    "tied": Wanted(
        recipe(take("tied", 0, 3), take("tied", 1, 3), dtype=None),
        every("tied", 0, 3) + every("tied", 1, 3),
        *("tied", "tied", "tied"),
        via=(None, None),
    ),
}


def make_model(
    folder: Path, seed: int, layers: int, dtype: str = BF16, *, tied: bool = False
) -> Path:
    """Write a random Mistral model in two shards."""
    import torch
    from safetensors.torch import save_file

    generator = torch.Generator().manual_seed(seed)
    shapes = {"model.embed_tokens.weight": (32, 16), "model.norm.weight": (16,)}
    if not tied:
        shapes["lm_head.weight"] = (32, 16)
    for number in range(layers):
        prefix = f"model.layers.{number}."
        shapes |= {
            f"{prefix}{norm}.weight": (16,)
            for norm in ("input_layernorm", "post_attention_layernorm")
        }
        shapes |= {f"{prefix}self_attn.{x}_proj.weight": (16, 16) for x in "qo"}
        shapes |= {f"{prefix}self_attn.{x}_proj.weight": (8, 16) for x in "kv"}
        shapes |= {f"{prefix}mlp.{x}_proj.weight": (24, 16) for x in ("gate", "up")}
        shapes |= {f"{prefix}mlp.down_proj.weight": (16, 24)}
    folder.mkdir(parents=True)
    tensors = {
        name: torch.randn(shape, generator=generator).to(getattr(torch, dtype))
        for name, shape in shapes.items()
    }
    names = sorted(tensors)
    weight_map = {}
    for number, part in enumerate((names[: len(names) // 2], names[len(names) // 2 :]), 1):
        file = f"model-{number:05d}-of-00002.safetensors"
        save_file({name: tensors[name] for name in part}, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(part, file)
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    config = {
        "architectures": ["MistralForCausalLM"],
        "model_type": "mistral",
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 32,
        "tie_word_embeddings": tied,
        "torch_dtype": dtype,
    }
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    (folder / "generation_config.json").write_text(json.dumps({"seed": seed}))
    (folder / "tokenizer_config.json").write_text(json.dumps({"seed": seed}))
    return folder


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    return {
        "a": make_model(root / "a", 1, 4),
        "b": make_model(root / "b", 2, 3),
        "wide": make_model(root / "wide", 3, 3, F32),
        "tied": make_model(root / "tied", 4, 3, tied=True),
    }


def load(folder: Path) -> dict[str, Any]:
    from safetensors import safe_open

    tensors: dict[str, Any] = {}
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, "pt") as shard:
            for name in shard.keys():  # noqa: SIM118 - it is no dict
                assert name not in tensors
                tensors[name] = shard.get_tensor(name)
    return tensors


def expect(wanted: Wanted, models: dict[str, Path]) -> dict[str, Any]:
    """Compute the output's tensors."""
    import torch

    sources = {name: load(folder) for name, folder in models.items()}

    def make(tensor: Any, factor: float) -> Any:
        math, out = wanted.via
        tensor = tensor.to(getattr(torch, math)) if math else tensor
        tensor = tensor if factor == 1 else tensor * factor
        return tensor.to(getattr(torch, out)) if out else tensor

    merged = {}
    for name, tensor in sources[wanted.first].items():
        if "embed" in name:
            merged[name] = make(tensor, wanted.outside(name))
    for name, tensor in sources[wanted.last].items():
        if name in ("model.norm.weight", "lm_head.weight"):
            merged[name] = make(tensor, wanted.outside(name))
    for index, (model, number, factor) in enumerate(wanted.layers):
        for name, tensor in sources[model].items():
            if name.startswith(f"model.layers.{number}."):
                suffix = name.removeprefix(f"model.layers.{number}.")
                merged[f"model.layers.{index}.{suffix}"] = make(tensor, factor(suffix))
    return merged


def differences(found: dict[str, Any], expected: dict[str, Any]) -> list[str]:
    """Compare names, dtypes, shapes and bytes; zeros by value, and ours must be +0."""
    import torch

    result = [f"only in one: {name}" for name in found.keys() ^ expected.keys()]
    for name in found.keys() & expected.keys():
        a, b = found[name], expected[name]
        if (a.dtype, a.shape) != (b.dtype, b.shape):
            result.append(f"{name}: {a.dtype} {a.shape}, expected {b.dtype} {b.shape}")
        elif not b.any():
            if a.reshape(-1).view(torch.uint8).any():
                result.append(f"{name}: not +0")
        elif not torch.equal(a.reshape(-1).view(torch.uint8), b.reshape(-1).view(torch.uint8)):
            result.append(f"{name}: other bytes")
    return result


def write_recipe(folder: Path, text: str, models: dict[str, Path]) -> Path:
    path = folder / "recipe.yml"
    path.write_text(text.format(**models))
    return path


@pytest.mark.parametrize("name", WANTED)
def test_a_recipe_makes_what_it_says(name: str, models: dict[str, Path], tmp_path: Path) -> None:
    wanted = WANTED[name]
    before = {folder: snapshot(folder) for folder in models.values()}
    out = tmp_path / "out"
    result = blockexpand.merge(
        write_recipe(tmp_path, wanted.text, models), out, verify_after="tensors"
    )
    assert differences(load(out), expect(wanted, models)) == []
    assert result.verification is not None and result.verification.findings == ()
    home = json.loads((models[wanted.home] / "config.json").read_text())
    config = json.loads((out / "config.json").read_text())
    dtype = wanted.via[1] or wanted.via[0] or home["torch_dtype"]
    assert config == home | {"num_hidden_layers": len(wanted.layers), "torch_dtype": dtype}
    assert json.loads((out / "generation_config.json").read_text()) == {
        "seed": json.loads((models[wanted.home] / "generation_config.json").read_text())["seed"]
    }
    assert {folder: snapshot(folder) for folder in models.values()} == before
    manifest = json.loads((out / "block_expansion.json").read_text())
    assert manifest["keeps_function"] == (name in ("seed", "empty-middle-slice"))
    assert manifest["new_layers"] == ([4, 5] if name == "seed" else [])
    assert blockexpand.verify(models[wanted.home], out)[0].findings == ()


@pytest.mark.long
@pytest.mark.parametrize("name", WANTED)
def test_mergekit_makes_the_same(name: str, models: dict[str, Path], tmp_path: Path) -> None:
    program = os.environ.get("MERGEKIT_YAML")
    if not program:
        pytest.skip("MERGEKIT_YAML does not name mergekit-yaml")
    path = write_recipe(tmp_path, WANTED[name].text, models)
    theirs, ours = tmp_path / "theirs", tmp_path / "ours"
    subprocess.run(
        [program, str(path), str(theirs), "--no-copy-tokenizer"],
        env=os.environ | {"HF_HUB_OFFLINE": "1"},
        check=True,
        capture_output=True,
    )
    blockexpand.merge(path, ours)
    assert differences(load(ours), load(theirs)) == []
    layers = [
        json.loads((d / "config.json").read_text())["num_hidden_layers"] for d in (ours, theirs)
    ]
    assert layers[0] == layers[1]


@pytest.mark.parametrize("position", ["end", "interleaved", "start", "1,3,3"])
@pytest.mark.parametrize("dtype", ["bfloat16", "source", "float16"])
def test_the_cards_own_recipe_makes_the_same_files(
    position: str, dtype: str, models: dict[str, Path], tmp_path: Path
) -> None:
    first, again = tmp_path / "first", tmp_path / "again"
    count = None if position[0].isdigit() else 2
    blockexpand.expand(models["a"], first, new_layers=count, position=position, dtype=dtype)
    card = (first / "README.md").read_text()
    text = re.search(r"```yaml\n(.*?)```", card, re.DOTALL)
    assert text is not None
    (tmp_path / "card.yml").write_text(text[1])
    # The card names no path: the reader says where the model is.
    blockexpand.merge(tmp_path / "card.yml", again, src=models["a"])
    names = {path.name for path in first.iterdir()}
    assert names == {path.name for path in again.iterdir()}
    for name in names - {"README.md", "block_expansion.json"}:
        assert (first / name).read_bytes() == (again / name).read_bytes(), name
    manifests = [json.loads((d / "block_expansion.json").read_text()) for d in (first, again)]
    for manifest in manifests:
        manifest["zeroed"].sort()
    for field in ("new_layers", "layer_map", "layers", "original_layers", "zeroed", "layer_prefix"):
        assert manifests[0][field] == manifests[1][field]
    assert manifests[1]["keeps_function"] is True


@pytest.mark.parametrize("family", ["deepseek_v3", "qwen2_5_vl", "mllama", "gpt2", "mixtral"])
@pytest.mark.parametrize("position", ["end", "start"])
def test_the_cards_own_recipe_in_other_families(family: str, position: str, tmp_path: Path) -> None:
    """Experts, layers stored past the end, vision towers with the decoder's names, tied heads."""
    from family_zoo import make_checkpoint
    from zoo import ZOO

    zoo = next(recipe for recipe in ZOO if recipe.name == family)
    make_checkpoint(zoo, tmp_path / "source")
    first, again = tmp_path / "first", tmp_path / "again"
    try:
        blockexpand.expand(tmp_path / "source", first, new_layers=1, position=position)
    except UnsupportedModelError:
        assert (family, position) == ("deepseek_v3", "start")
        return
    text = re.search(r"```yaml\n(.*?)```", (first / "README.md").read_text(), re.DOTALL)
    assert text is not None
    (tmp_path / "card.yml").write_text(text[1])
    blockexpand.merge(tmp_path / "card.yml", again, src=tmp_path / "source")
    for path in first.iterdir():
        if path.name not in ("README.md", "block_expansion.json"):
            assert path.read_bytes() == (again / path.name).read_bytes(), path.name


def test_a_seed_recipe_is_an_expansion(models: dict[str, Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = blockexpand.merge(
        write_recipe(tmp_path, WANTED["seed"].text, models),
        out,
        check=True,
        verify_after="logits",
    )
    assert result.proof is not None
    assert any("bit-identical" in note for note in result.notes)
    manifest = json.loads((out / "block_expansion.json").read_text())
    assert sorted(manifest["zeroed"]) == ["mlp.down_proj.weight", "self_attn.o_proj.weight"]
    assert "does not compute" not in (out / "README.md").read_text()
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(out)
    trainable = blockexpand.freeze_original_layers(model, out)
    assert {name.split(".")[2] for name in trainable} == {"4", "5"}


@pytest.mark.parametrize(
    "scale",
    [
        "[{{filter: o_proj, value: 0}}]",  # one branch goes on
        "[{{filter: o_proj, value: 0}}, {{filter: down_proj, value: 1e-9}}]",
        "[{{filter: o_proj, value: 0}}, {{filter: down_proj, value: 0}}, {{value: 2}}]",
    ],
)
def test_what_is_nearly_an_expansion_is_none(
    scale: str, models: dict[str, Path], tmp_path: Path
) -> None:
    text = recipe(take("a", 0, 4), take("a", 3, 4, scale))
    plan, _ = plan_merge(write_recipe(tmp_path, text, models), tmp_path / "out")
    assert not plan.keeps_function
    assert plan.new_layers == ()


def test_a_model_as_it_is_keeps_its_function(models: dict[str, Path], tmp_path: Path) -> None:
    text = "models: [{{model: {a}}}]\nmerge_method: passthrough\n"
    plan, _ = plan_merge(write_recipe(tmp_path, text, models), tmp_path / "out")
    assert plan.keeps_function
    assert [file.identical_to for file in plan.files] == [
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
    ]


def test_what_changes_the_function_says_so_everywhere(
    models: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_recipe(tmp_path, WANTED["two-models"].text, models)
    out = tmp_path / "out"
    assert main(["--recipe", str(path), "--out", str(out)]) == 0
    shown = capsys.readouterr().out
    assert "changes what the model computes" in shown
    assert f"from 1-2 of {models['b']}" in shown
    card = (out / "README.md").read_text()
    assert "**It does not compute what its source computes**" in card
    assert "| 3–4 | 1–2 of `b` |" in card and str(models["b"]) not in card
    recipe = path.read_text().strip()
    for name, folder in models.items():
        recipe = recipe.replace(str(folder), name)
    assert recipe in card
    with pytest.raises(RecipeError, match="leave --logits out"):
        blockexpand.verify(models["a"], out, logits=True)
    for proof in ({"check": True}, {"verify_after": "logits"}):
        with pytest.raises(RecipeError, match="changes what the model computes"):
            blockexpand.merge(path, tmp_path / "other", **proof)  # type: ignore[arg-type]
    assert not (tmp_path / "other").exists()
    from transformers import AutoModelForCausalLM

    with pytest.raises(TrainingError, match="no new layer"):
        blockexpand.freeze_original_layers(AutoModelForCausalLM.from_pretrained(out), out)


def test_verify_finds_a_changed_byte_of_a_scaled_tensor(
    models: dict[str, Path], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    blockexpand.merge(write_recipe(tmp_path, WANTED["gradient"].text, models), out)
    file = out / "model-00001-of-00003.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    (finding,) = blockexpand.verify(models["a"], out)[0].findings
    assert finding.file == file.name and finding.tensor is not None


def test_verify_with_the_wrong_model_finds_differences(
    models: dict[str, Path], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    blockexpand.merge(write_recipe(tmp_path, WANTED["seed"].text, models), out)
    other = make_model(tmp_path / "other", 9, 4)
    assert blockexpand.verify(other, out)[0].findings


def test_src_says_where_the_only_model_is(
    models: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = WANTED["seed"].text.format(a="openchat/openchat-3.5-0106")
    (tmp_path / "seed.yml").write_text(text)
    out = tmp_path / "out"
    arguments = ["--recipe", str(tmp_path / "seed.yml"), "--out", str(out)]
    assert main([*arguments, "--src", str(models["a"]), "--verify", "tensors"]) == 0
    assert differences(load(out), expect(WANTED["seed"], models)) == []
    assert main(["verify", str(models["a"]), str(out)]) == 0
    two = write_recipe(tmp_path, WANTED["two-models"].text, models)
    capsys.readouterr()
    assert main(["--recipe", str(two), "--out", str(tmp_path / "x"), "--src", "y"]) == 2
    assert "has 2 models" in capsys.readouterr().err


@pytest.mark.parametrize(
    "options",
    [
        ["--new-layers", "2"],
        ["--position", "end"],
        ["--dtype", "bfloat16"],
        ["--revision", "main"],
    ],
)
def test_a_recipe_stands_alone(options: list[str], tmp_path: Path) -> None:
    assert main(["--recipe", "r.yml", "--out", str(tmp_path / "out"), *options]) == 2


def test_the_dry_run_and_json(
    models: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_recipe(tmp_path, WANTED["gradient"].text, models)
    out = tmp_path / "out"
    assert main(["--recipe", str(path), "--out", str(out), "--dry-run", "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["layer_map"] == [0, 1, 2, 2, 3]
    assert plan["keeps_function"] is False
    assert sum(file["scaled"] for file in plan["files"]) > 0
    assert not out.exists()


def test_models_whose_files_have_the_same_names_are_not_mixed_up(
    models: dict[str, Path], tmp_path: Path
) -> None:
    plan, _ = plan_merge(
        write_recipe(tmp_path, WANTED["two-models"].text, models), tmp_path / "out"
    )
    paths = {plan.path(file.name) for file in plan.source_files}
    assert paths == {
        models[model] / f"model-{number:05d}-of-00002.safetensors"
        for model in "ab"
        for number in (1, 2)
    }


def test_one_model_under_two_names(models: dict[str, Path], tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(models["a"])
    text = recipe(take("a", 0, 4), take("b", 3, 4, ZEROS))
    path = write_recipe(tmp_path, text, {"a": models["a"], "b": link})
    out = tmp_path / "out"
    assert blockexpand.merge(path, out).plan.new_layers == (4,)
    assert blockexpand.verify(models["a"], out)[0].findings == ()


@pytest.mark.parametrize(
    ("file", "layers", "keeps_function"),
    [
        ("seed-openchat.yml", [*range(32), 31, 31, 31, 31], True),
        ("solar-depth-upscaling.yml", [*range(24), *range(8, 32)], False),
    ],
)
def test_the_example_recipes(
    file: str, layers: list[int], keeps_function: bool, tmp_path: Path
) -> None:
    path = Path(__file__).resolve().parents[2] / "scripts" / "recipes" / file
    model = make_model(tmp_path / "model", 1, 32)
    plan, _ = plan_merge(path, tmp_path / "out", src=model)
    assert [entry.source for entry in plan.layer_map] == layers
    assert plan.keeps_function == keeps_function
    assert plan.new_layers == ((32, 33, 34, 35) if keeps_function else ())
    if not keeps_function:
        assert "NOT preserve the function" in path.read_text()


def test_models_of_the_hub(
    models: dict[str, Path],
    tmp_path: Path,
    hub: HubServer,
    hub_cache: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    commits = {name: hub.add_repo(f"org/{name}", models[name]) for name in "ab"}
    names = {"a": "org/a", "b": f"org/b@{commits['b']}"}
    path = tmp_path / "recipe.yml"
    path.write_text(WANTED["two-models"].text.format(**names))
    out = tmp_path / "out"
    assert main(["--recipe", str(path), "--out", str(out), "--dry-run"]) == 0
    assert f"from 1-2 of org/b@{commits['b']}" in capsys.readouterr().out
    cached = {p.name for p in hub_cache.rglob("*.safetensors")}
    assert cached == set()
    blockexpand.merge(path, out, verify_after="tensors")
    assert differences(load(out), expect(WANTED["two-models"], models)) == []
    manifest = json.loads((out / "block_expansion.json").read_text())
    assert manifest["source"]["commit"] == commits["a"]
    assert manifest["models"][names["b"]]["commit"] == commits["b"]
    assert "base_model:\n- org/a\n- org/b\n" in (out / "README.md").read_text()
    assert main(["verify", "org/a", str(out)]) == 0
    assert main(["verify", str(models["a"]), str(out)]) == 0


def test_a_fault_of_a_recipe_downloads_no_weights(
    models: dict[str, Path], tmp_path: Path, hub: HubServer, hub_cache: Path
) -> None:
    hub.add_repo("org/a", models["a"])
    path = tmp_path / "recipe.yml"
    path.write_text(recipe(take("a", 0, 9)).format(a="org/a"))
    with pytest.raises(RecipeError, match="has the layers 0 to 3"):
        blockexpand.merge(path, tmp_path / "out")
    assert not list(hub_cache.rglob("*.safetensors"))


def test_shards_are_repacked(models: dict[str, Path], tmp_path: Path) -> None:
    path = write_recipe(tmp_path, WANTED["two-models"].text, models)
    out = tmp_path / "out"
    blockexpand.merge(path, out, max_shard_size="5kB", verify_after="tensors")
    assert differences(load(out), expect(WANTED["two-models"], models)) == []
    assert len(list(out.glob("*.safetensors"))) > 4


def faulty(text: str, models: dict[str, Path], folder: Path) -> str:
    with pytest.raises(BlockExpandError) as caught:
        blockexpand.merge(write_recipe(folder, text, models), folder / "out")
    assert not (folder / "out").exists()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_ranges_beyond_the_models_are_reported_together(
    models: dict[str, Path], tmp_path: Path
) -> None:
    message = faulty(recipe(take("a", 0, 5), take("b", 2, 9)), models, tmp_path)
    recipe_file = tmp_path / "recipe.yml"
    assert message == (
        f"{recipe_file}:4: layer_range: {models['a']} has the layers 0 to 3; expected at most "
        f"[0, 4], found [0, 5]; {recipe_file}:7: layer_range: {models['b']} has the layers 0 to "
        "2; expected at most [0, 3], found [2, 9]"
    )


def test_models_that_do_not_fit_together(models: dict[str, Path], tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(models["b"], other)
    edit_json(other / "config.json", model_type="llama")
    text = recipe(take("a", 0, 1), take("b", 0, 1))
    message = faulty(text, models | {"b": other}, tmp_path)
    assert "models of different families cannot be joined" in message
    message = faulty(recipe(take("a", 0, 1), take("tied", 0, 1)), models, tmp_path)
    assert "tensor 'lm_head.weight' does not fit the config" in message


def test_a_config_that_differs_is_told(models: dict[str, Path], tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(models["b"], other)
    edit_json(other / "config.json", rope_theta=1e6)
    text = recipe(take("a", 0, 1), take("b", 0, 1))
    plan, _ = plan_merge(write_recipe(tmp_path, text, models | {"b": other}), tmp_path / "out")
    assert any("rope_theta" in note for note in plan.notes)


def test_each_layer_keeps_its_own_kind(models: dict[str, Path], tmp_path: Path) -> None:
    full, sliding = "full_attention", "sliding_attention"
    kinds = {"a": [full, sliding, full, full], "b": [sliding, sliding, full]}
    folders = {}
    for name, listed in kinds.items():
        folders[name] = tmp_path / name
        shutil.copytree(models[name], folders[name])
        edit_json(folders[name] / "config.json", layer_types=listed, model_type="qwen2")
    text = recipe(take("b", 0, 3), take("a", 1, 4), more="base_model: {a}\n")
    plan, _ = plan_merge(write_recipe(tmp_path, text, folders), tmp_path / "out")
    config = json.loads(next(d.data for d in plan.documents if d.name == "config.json"))
    assert config["layer_types"] == [sliding, sliding, full, sliding, full, full]
    assert config["num_hidden_layers"] == 6


def with_tokens(folder: Path, model: Path, tokens: list[str], added: tuple[str, ...] = ()) -> Path:
    """Copy a model and give it a tokenizer with these tokens, numbered in order."""
    shutil.copytree(model, folder)
    document = {
        "model": {"type": "WordLevel", "vocab": {word: i for i, word in enumerate(tokens)}},
        "added_tokens": [{"id": len(tokens) + i, "content": word} for i, word in enumerate(added)],
    }
    (folder / "tokenizer.json").write_text(json.dumps(document))
    return folder


WORDS = [f"w{number}" for number in range(32)]


def test_the_tokenizer_comes_from_its_source(models: dict[str, Path], tmp_path: Path) -> None:
    folders = {name: with_tokens(tmp_path / name, models[name], WORDS) for name in "ab"}
    text = recipe(take("a", 0, 4), more="tokenizer_source: {b}\n")
    out = tmp_path / "out"
    path = write_recipe(tmp_path, text, folders)
    blockexpand.merge(path, out, verify_after="tensors")
    for name, model in (("tokenizer_config.json", "b"), ("generation_config.json", "a")):
        assert (out / name).read_bytes() == (folders[model] / name).read_bytes()
    assert blockexpand.verify(folders["a"], out)[0].findings == ()


def test_the_seed_recipe_with_its_tokenizer_is_an_expansion(
    models: dict[str, Path], tmp_path: Path
) -> None:
    folder = with_tokens(tmp_path / "a", models["a"], WORDS[:30], ("x", "y"))
    text = WANTED["seed"].text + "tokenizer_source: base\n"
    plan, _ = plan_merge(write_recipe(tmp_path, text, {"a": folder}), tmp_path / "out")
    assert plan.new_layers == (4, 5)


@pytest.mark.parametrize("scale", [None, "0.3"])
def test_rows_without_a_token_are_cut(
    scale: str | None, models: dict[str, Path], tmp_path: Path
) -> None:
    """As mergekit does, which makes the vocabulary that of the tokenizer."""
    folder = with_tokens(tmp_path / "a", models["a"], WORDS[:20], ("x",))
    out = tmp_path / "out"
    text = recipe(take("a", 0, 4, scale), dtype=None, more="tokenizer_source: {a}\n")
    path = write_recipe(tmp_path, text, {"a": folder})
    result = blockexpand.merge(path, out, verify_after="tensors")
    expected = load(folder)
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        expected[name] = expected[name][:21].clone()
    if scale:
        expected = {name: tensor * 0.3 for name, tensor in expected.items()}
    assert differences(load(out), expected) == []
    assert json.loads((out / "config.json").read_text())["vocab_size"] == 21
    assert not result.plan.keeps_function
    assert any("cut to the 21 rows" in note for note in result.notes)


@pytest.mark.parametrize(
    ("tokens", "words"),
    [
        ([WORDS[1], WORDS[0], *WORDS[2:]], "token 'w1' is number 0"),
        ([*WORDS[:31], "new"], "token 'new' is number 31"),
        ([*WORDS, "new"], "token 'new' is number 32"),
    ],
)
def test_rows_are_never_moved(
    tokens: list[str], words: str, models: dict[str, Path], tmp_path: Path
) -> None:
    folders = {
        "a": with_tokens(tmp_path / "a", models["a"], WORDS),
        "b": with_tokens(tmp_path / "b", models["b"], tokens),
    }
    text = recipe(take("a", 0, 4), more="tokenizer_source: {b}\n")
    message = faulty(text, folders, tmp_path)
    assert words in message and "would have to be moved" in message


def test_tokenizers_that_cannot_be_compared_are_refused(
    models: dict[str, Path], tmp_path: Path
) -> None:
    text = recipe(take("a", 0, 4), more="tokenizer_source: {b}\n")
    assert "cannot be told without a tokenizer.json" in faulty(text, models, tmp_path)


def test_more_tokens_than_rows_are_refused(models: dict[str, Path], tmp_path: Path) -> None:
    folder = with_tokens(tmp_path / "a", models["a"], WORDS, ("new",))
    text = recipe(take("a", 0, 4), more="tokenizer_source: {a}\n")
    assert "expected at least 33 rows, found 32" in faulty(text, {"a": folder}, tmp_path)


def test_numbers_with_gaps_are_refused(models: dict[str, Path], tmp_path: Path) -> None:
    folder = with_tokens(tmp_path / "a", models["a"], WORDS[:9])
    edit_json(folder / "tokenizer.json", added_tokens=[{"id": 12, "content": "x"}])
    text = recipe(take("a", 0, 4), more="tokenizer_source: {a}\n")
    assert "not numbered without gaps" in faulty(text, {"a": folder}, tmp_path)


@pytest.mark.parametrize(
    "fields",
    [
        {"model": None},
        {"model": {"vocab": {}}},
        {"model": {"vocab": 5}, "added_tokens": [{"id": 0, "content": "x"}]},
        {"added_tokens": 5},
    ],
)
def test_no_row_is_cut_for_a_tokenizer_of_an_unknown_form(
    fields: dict[str, Any], models: dict[str, Path], tmp_path: Path
) -> None:
    folder = with_tokens(tmp_path / "a", models["a"], WORDS)
    edit_json(folder / "tokenizer.json", **fields)
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"added_tokens_decoder": {"9" * 5000: {"content": "x"}}})
    )
    text = recipe(take("a", 0, 4), dtype=None, more="tokenizer_source: {a}\n")
    out = tmp_path / "out"
    blockexpand.merge(write_recipe(tmp_path, text, {"a": folder}), out)
    assert differences(load(out), load(folder)) == []


def test_an_output_inside_of_any_model_is_refused(models: dict[str, Path], tmp_path: Path) -> None:
    path = write_recipe(tmp_path, WANTED["two-models"].text, models)
    for model in "ab":
        with pytest.raises(OutputError, match="may not lie inside each other"):
            blockexpand.merge(path, models[model] / "out")


@pytest.mark.parametrize("make", [lambda path: path.mkdir(), lambda path: None])
def test_no_recipe_there(make: Callable[[Path], object], tmp_path: Path) -> None:
    make(tmp_path / "r.yml")
    with pytest.raises(InputError, match="expected a mergekit recipe"):
        blockexpand.merge(tmp_path / "r.yml", tmp_path / "out")


def test_a_missing_model_is_named(tmp_path: Path) -> None:
    path = write_recipe(tmp_path, recipe(take("a", 0, 1)), {"a": tmp_path / "none"})
    with pytest.raises(CheckpointError, match="none: no such folder"):
        blockexpand.merge(path, tmp_path / "out")


def test_a_value_that_scaling_makes_infinite_is_refused(
    models: dict[str, Path], tmp_path: Path
) -> None:
    message = faulty(recipe(take("wide", 0, 3, "1e9"), dtype=F16), models, tmp_path)
    assert re.search(r"tensor '.+': .+ is too large for scaling it by 1e\+09 in F16", message)


def test_a_run_is_gone_on_with_after_it_was_cut(models: dict[str, Path], tmp_path: Path) -> None:
    from blockexpand.progress import Progress

    def cut(nbytes: int) -> None:
        raise KeyboardInterrupt

    path = write_recipe(tmp_path, WANTED["two-models"].text, models)
    out = tmp_path / "out"
    silent = Progress(begin=lambda what, nbytes: None, advance=cut)
    with pytest.raises(KeyboardInterrupt):
        blockexpand.merge(path, out, progress=silent)
    assert not out.exists()
    blockexpand.merge(path, out, verify_after="tensors")
    assert differences(load(out), expect(WANTED["two-models"], models)) == []
    assert [path.name for path in leftovers(tmp_path)] == []


def leftovers(folder: Path) -> Iterator[Path]:
    return (path for path in folder.iterdir() if "blockexpand" in path.name)
