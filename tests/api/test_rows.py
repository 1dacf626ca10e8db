"""Model types that the table does not have: rows inferred, given, proven, refused and unproven."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from checkpoints import edit_json
from family_check import run
from family_zoo import Zoo, make_checkpoint
from zoo import ZOO

import blockexpand
from blockexpand.api.rows import infer_folder
from blockexpand.errors import ArgumentError, ProofError, RecipeError, UnsupportedModelError
from blockexpand.models import families
from blockexpand.models.families.form import parse_form, render_form


def recipe_of(name: str) -> Zoo:
    return next(recipe for recipe in ZOO if recipe.name == name)


def forget(monkeypatch: pytest.MonkeyPatch, recipe: Zoo) -> None:
    """Take a model type out of the table."""
    for table in (families.FAMILIES, families.MULTIMODAL):
        if recipe.model_type in table:
            monkeypatch.delitem(table, recipe.model_type)  # type: ignore[arg-type]


@pytest.mark.parametrize("position", ["end", "interleaved"])
@pytest.mark.parametrize(
    "name",
    [
        *("llama_tied_biased", "phi", "gemma2", "olmo2", "smollm3_legacy", "gpt2_hub", "mpt"),
        *("mixtral", "qwen3_moe_step", "deepseek_v2", "gpt_oss", "qwen3_next", "bamba", "mamba2"),
        *("gemma3", "qwen3_5_moe_text", "minicpm3", "deepseek_v3", "lfm3"),
        "muse_glimmer_legacy",
    ],
)
def test_a_row_that_is_missing_is_inferred_and_proven(
    name: str, position: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = recipe_of(name)
    make_checkpoint(recipe, tmp_path / "source")
    forget(monkeypatch, recipe)
    made = blockexpand.expand(
        tmp_path / "source",
        tmp_path / "out",
        new_layers=2,
        position=position,
        dtype="source",
        verify_after="tensors",
    )
    assert "inferred and proven with transformers" in made.notes[0]
    source, out = run(tmp_path / "source", 6), run(tmp_path / "out", 8)
    assert all(torch.equal(source.logits[dtype], out.logits[dtype]) for dtype in source.logits)
    assert torch.equal(source.tokens, out.tokens)
    for index, entry in enumerate(made.plan.layer_map):
        assert out.layers[index] == source.layers[entry.source]


def test_a_list_of_some_layers_numbers_is_known_by_its_name_and_values(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = recipe_of("molmo2")
    make_checkpoint(recipe, tmp_path / "source")
    forget(monkeypatch, recipe)
    assert infer_folder(tmp_path / "source")["indices"] == ["rope_scaling_layers"]


@pytest.mark.parametrize(
    ("name", "position", "reason"),
    [
        ("diffllama", "end", "lambda_init is"),  # a constant of the layer's number
        ("diffllama", "interleaved", "computes something else"),
        ("gpt2_scaled_by_index", "end", "scaling is"),
        ("jamba", "interleaved", "of the same kind"),  # a period that no list can hold
    ],
)
def test_a_row_that_does_not_hold_is_refused_with_what_differed(
    name: str, position: str, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = recipe_of(name)
    make_checkpoint(recipe, tmp_path / "source")
    forget(monkeypatch, recipe)
    with pytest.raises(UnsupportedModelError, match=reason):
        blockexpand.expand(tmp_path / "source", tmp_path / "out", new_layers=2, position=position)
    assert not (tmp_path / "out").exists()


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rows") / "llama"
    make_checkpoint(recipe_of("llama"), folder)
    return folder


def write_row(path: Path, **changes: Any) -> str:
    row = {
        "model_type": "llama",
        "prefix": "model.layers.",
        "count": "num_hidden_layers",
        "branches": [{"outputs": ["self_attn.o_proj"]}, {"outputs": ["mlp.down_proj"]}],
    }
    path.write_text(yaml.safe_dump(row | changes))
    return str(path)


def test_a_row_of_the_users_own_is_proven(llama: Path, tmp_path: Path) -> None:
    row = write_row(tmp_path / "row.yaml")
    made = blockexpand.expand(
        llama, tmp_path / "out", new_layers=2, family=row, verify_after="logits"
    )
    assert "given and proven with transformers" in made.notes[0]
    manifest = json.loads((tmp_path / "out" / "block_expansion.json").read_text())
    assert manifest["family"]["branches"] == [
        [{"outputs": ["self_attn.o_proj"]}],
        [{"outputs": ["mlp.down_proj"]}],
    ]
    assert "given and proven" in manifest["family_proof"]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        # A second output that is not silenced.
        (
            {"branches": [{"outputs": ["mlp.down_proj"]}], "copied": ["self_attn.o_proj"]},
            "computes something else",
        ),
        # One that is silenced without need, so that neither could learn.
        (
            {
                "branches": [
                    {"outputs": ["self_attn.o_proj", "self_attn.v_proj"]},
                    {"outputs": ["mlp.down_proj"]},
                ]
            },
            "could never learn",
        ),
        # One that the row does not name at all.
        (
            {"branches": [{"outputs": ["mlp.down_proj"]}]},
            "unknown in a layer of a 'llama' model.*list it under 'copied'",
        ),
    ],
)
def test_a_wrong_row_is_refused(
    changes: dict[str, Any], reason: str, llama: Path, tmp_path: Path
) -> None:
    row = write_row(tmp_path / "row.yaml", **changes)
    with pytest.raises(UnsupportedModelError, match=reason):
        blockexpand.expand(llama, tmp_path / "out", new_layers=2, family=row)


ROW = """\
model_type: llama
prefix: model.layers.
count: num_hidden_layers
branches:
- outputs: [self_attn.o_proj]
- outputs:
  - mlp.down_proj
"""


@pytest.mark.parametrize(
    ("old", "new", "reasons"),
    [
        (ROW, "", ["1: empty"]),
        (ROW, "- a", ["1: the row: expected an object, found [a]"]),
        ("llama", "[", ["3: this is no YAML"]),
        ("llama", "3", ["1: model_type: expected a name, found '3'"]),
        ("layers.", "layers", ["2: prefix: expected what stands before a layer's number"]),
        ("count", "cuont", ["1: count: missing", "3: cuont: unknown key; did you mean count"]),
        ("branches:\n", "lists: layer_types\nbranches:\n", ["4: lists: expected a list of config"]),
        ("- outputs:", "- norms:", ["5: outputs: expected a list of tensors that end the branch"]),
        ("[self_attn.o_proj]", "[{a: b}]", ["5: outputs: expected one of tensors of a layer"]),
        ("- outputs: [", "- norm_value: low\n  outputs: [", ["5: norm_value: expected a number"]),
        ("model_type", "constants: {a: b}\nmodel_type", ["1: constants: a: expected a number"]),
        ("model_type", "derived: {a: 1}\nmodel_type", ["1: derived: a: expected one value"]),
    ],
)
def test_every_fault_of_a_row_names_its_file_and_line(
    old: str, new: str, reasons: list[str], tmp_path: Path
) -> None:
    row = tmp_path / "row.yaml"
    row.write_text(ROW.replace(old, new, 1))
    with pytest.raises(RecipeError) as raised:
        blockexpand.expand(tmp_path, tmp_path / "out", new_layers=2, family=str(row))
    for reason in reasons:
        assert f"{row}:{reason}" in str(raised.value)


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ("model.layers.", "h.", "2: no tensor is called h.0.…; there is e.g. "),
        ("num_hidden_layers", "n_layer", "3: config.json has no field 'n_layer' there"),
        ("branches", "config: text_config\nbranches", "4: config.json has no object 'text_config'"),
        ("mlp.down_proj", "mlp.dwon_proj", "7: no tensor of a layer is called 'mlp.dwon_proj'"),
    ],
)
def test_what_a_row_names_and_a_checkpoint_has_not_is_named_with_its_line(
    old: str, new: str, reason: str, llama: Path, tmp_path: Path
) -> None:
    row = tmp_path / "row.yaml"
    row.write_text(ROW.replace(old, new))
    with pytest.raises(RecipeError) as raised:
        blockexpand.expand(llama, tmp_path / "out", new_layers=2, family=str(row))
    assert f"{row}:{reason}" in str(raised.value)


def test_layers_that_change_the_function_cannot_prove_a_row(llama: Path, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModelError) as caught:
        blockexpand.expand(
            llama, tmp_path / "out", layers="0-2,1-3", family=write_row(tmp_path / "row.yaml")
        )
    line = str(caught.value)
    assert "change what the model computes, and a row is proven by layers that keep it" in line
    assert "--no-proof" in line and "--check" not in line


@pytest.fixture
def custom(tmp_path: Path, llama: Path) -> Path:
    """A checkpoint of a type that only its own code knows."""
    folder = tmp_path / "custom"
    folder.mkdir()
    for file in llama.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    edit_json(
        folder / "config.json",
        model_type="newformer",
        auto_map={"AutoModelForCausalLM": "modeling_new.New"},
    )
    (folder / "modeling_new.py").write_text("raise SystemExit('this must never run')\n")
    return folder


def test_a_model_that_only_its_own_code_knows_is_not_guessed(custom: Path, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModelError, match="own code is run only if --trust-remote"):
        blockexpand.expand(custom, tmp_path / "out", new_layers=2)
    assert not (tmp_path / "out").exists()


def test_a_row_that_nothing_can_prove_is_used_on_demand_and_called_unproven(
    custom: Path, llama: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    with pytest.raises(UnsupportedModelError, match="nothing was proven"):
        blockexpand.expand(custom, out, new_layers=2, family="llama")
    made = blockexpand.expand(
        custom, out, new_layers=2, family="llama", no_proof=True, verify_after="tensors"
    )
    assert "built like 'llama': NOT PROVEN to keep the function" in made.notes[0]
    card = (out / "README.md").read_text()
    assert "which is NOT PROVEN" in card and "computes exactly" not in card
    assert made.verification is not None and made.verification.keeps_function is None
    manifest = json.loads((out / "block_expansion.json").read_text())
    assert (manifest["family"], manifest["family_proof"]) == ("llama", "")
    # It is in fact a Llama: the same bytes come of it.
    blockexpand.expand(llama, tmp_path / "like", new_layers=2)
    for file in out.glob("*.safetensors"):
        assert file.read_bytes() == (tmp_path / "like" / file.name).read_bytes()


def test_verify_does_not_believe_a_row_that_an_output_states(llama: Path, tmp_path: Path) -> None:
    """An output made with a wrong row is as its manifest says, and computes something else."""
    row = write_row(
        tmp_path / "row.yaml",
        branches=[{"outputs": ["mlp.down_proj"]}],
        copied=["self_attn.o_proj"],
    )
    blockexpand.expand(llama, tmp_path / "out", new_layers=2, family=row, no_proof=True)
    verified = blockexpand.verify(llama, tmp_path / "out").verification
    assert verified.findings == () and verified.keeps_function is None
    assert any("only --logits tells" in note for note in verified.notes)
    with pytest.raises(ProofError, match="logits differ"):
        blockexpand.verify(llama, tmp_path / "out", logits=True)


@pytest.fixture
def kimi(tmp_path: Path) -> Path:
    """A checkpoint as Kimi K2 is released: a type of its own, and DeepSeek's class."""
    make_checkpoint(recipe_of("deepseek_v3"), tmp_path / "kimi")
    edit_json(
        tmp_path / "kimi" / "config.json",
        model_type="kimi_k2",
        auto_map={"AutoModelForCausalLM": "modeling_deepseek.DeepseekV3ForCausalLM"},
    )
    return tmp_path / "kimi"


def test_a_type_with_the_class_of_another_is_refused_with_that_ones_name(
    kimi: Path, tmp_path: Path
) -> None:
    with pytest.raises(UnsupportedModelError, match="--family deepseek_v3 proves it") as raised:
        blockexpand.expand(kimi, tmp_path / "out", new_layers=2)
    assert "names DeepseekV3ForCausalLM, the class of 'deepseek_v3'" in str(raised.value)
    assert "\n" not in str(raised.value)


def test_the_class_that_the_config_names_proves_its_own_row_only(
    kimi: Path, tmp_path: Path
) -> None:
    options: dict[str, Any] = {"new_layers": 2, "position": "interleaved", "dtype": "source"}
    made = blockexpand.expand(kimi, tmp_path / "out", family="deepseek_v3", check=True, **options)
    said = made.notes[0]
    assert "for DeepseekV3ForCausalLM, which config.json names; its custom code" in said
    for folder in (kimi, tmp_path / "out"):
        edit_json(folder / "config.json", model_type="deepseek_v3")
    source, out = run(kimi, 6), run(tmp_path / "out", 8)
    assert all(torch.equal(source.logits[dtype], out.logits[dtype]) for dtype in source.logits)
    edit_json(kimi / "config.json", model_type="kimi_k2")
    for other in ("glm4_moe", "deepseek_v2"):
        with pytest.raises(UnsupportedModelError, match=r"nothing was proven|does not hold"):
            blockexpand.expand(kimi, tmp_path / "other", family=other, **options)


def test_a_row_is_the_same_after_it_was_written_and_read(llama: Path) -> None:
    row = infer_folder(llama)
    assert row["branches"] == [
        [{"outputs": ["self_attn.o_proj"]}],
        [{"outputs": ["mlp.down_proj"]}],
    ]
    assert render_form(parse_form(yaml.safe_load(yaml.safe_dump(row)), "row")) == row


def test_no_family_of_that_name(tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match="is no family of the table"):
        blockexpand.expand(tmp_path, tmp_path / "out", new_layers=2, family="lama")
    with pytest.raises(RecipeError, match="cannot read"):
        blockexpand.expand(tmp_path, tmp_path / "out", new_layers=2, family="./lama.yaml")
