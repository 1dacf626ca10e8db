"""What mergekit reads in a recipe, and every way for one to be wrong, with its line."""

from __future__ import annotations

from pathlib import Path

import pytest

from blockexpand.errors import RecipeError
from blockexpand.planning.mergekit.parsing import parse_recipe
from blockexpand.planning.mergekit.recipe import MergeRecipe, find_factor, layer_position

SEED = """\
slices:
  - sources:
    - model: openchat/openchat-3.5-0106
      layer_range: [0, 32]
  - sources:
    - model: openchat/openchat-3.5-0106
      layer_range: [31, 32]
      parameters:
        scale:
          - filter: o_proj
            value: 0.0
          - filter: down_proj
            value: 0.0
          - value: 1.0
merge_method: passthrough
dtype: bfloat16
"""
HEAD = "slices:\n- sources: [{model: a, layer_range: [0, 3]}]\nmerge_method: passthrough\n"


def parse(text: str) -> MergeRecipe:
    return parse_recipe(text.encode(), "recipe.yml")


def faults(text: str | bytes) -> list[str]:
    """Return what is said of a faulty recipe, a fault each."""
    data = text if isinstance(text, bytes) else text.encode()
    with pytest.raises(RecipeError) as caught:
        parse_recipe(data, "recipe.yml")
    message = str(caught.value)
    assert "\n" not in message
    return message.split("; recipe.yml:")


def test_the_seed_recipe() -> None:
    recipe = parse(SEED)
    assert [(part.model, part.first, part.last) for part in recipe.slices] == [
        ("openchat/openchat-3.5-0106", 0, 32),
        ("openchat/openchat-3.5-0106", 31, 32),
    ]
    assert recipe.dtype == "bfloat16"
    assert (recipe.out_dtype, recipe.base_model, recipe.tokenizer_source) == (None, None, None)
    assert recipe.models == ("openchat/openchat-3.5-0106",)
    assert recipe.text == SEED
    first, last = recipe.slices
    assert find_factor(first.scales, "model.layers.31.mlp.down_proj.weight", 1.0) == 1.0
    assert find_factor(last.scales, "model.layers.31.mlp.down_proj.weight", 1.0) == 0.0
    assert find_factor(last.scales, "model.layers.31.self_attn.o_proj.weight", 1.0) == 0.0
    assert find_factor(last.scales, "model.layers.31.mlp.up_proj.weight", 1.0) == 1.0


def test_the_config_is_of_the_base_model_and_every_model_is_named_once() -> None:
    recipe = parse(
        "slices:\n"
        "- sources: [{model: a, layer_range: [0, 2]}]\n"
        "- sources: [{model: b@v1, layer_range: [0, 2]}]\n"
        "merge_method: passthrough\nbase_model: c\ntokenizer_source: base\nout_dtype: float16\n"
    )
    assert recipe.models == ("c", "a", "b@v1")
    assert recipe.base == recipe.tokenizer_source == "c"
    assert recipe.out_dtype == "float16"


@pytest.mark.parametrize(
    "text",
    [
        "models: [{model: a}]\nmerge_method: passthrough\n",
        "modules: {default: {models: [{model: a}]}}\nmerge_method: passthrough\n",
        "models: [{model: a}]\nslices:\nbase_model: a\nmerge_method: passthrough\n",
    ],
)
def test_all_layers_of_one_model(text: str) -> None:
    (part,) = parse(text).slices
    assert (part.model, part.first, part.last) == ("a", None, None)


def test_the_spelled_out_form_of_a_model() -> None:
    recipe = parse(
        "slices:\n- sources:\n  - model:\n      model: {path: /a b/c, revision: null}\n"
        "      lora: null\n      override_architecture: null\n    layer_range: [0, 1]\n"
        "- sources: [{model: {model: {path: o/n, revision: v2}}, layer_range: [0, 1]}]\n"
        "merge_method: passthrough\n"
    )
    assert recipe.models == ("/a b/c", "o/n@v2")


@pytest.mark.parametrize(
    ("name", "spelled"),
    [("float32", "float32"), ("float16", "torch.float16"), (None, "null"), ("float64", "float64")],
)
def test_dtypes(name: str | None, spelled: str) -> None:
    assert parse(f"{HEAD}dtype: {spelled}\n").dtype == name


@pytest.mark.parametrize(
    ("scale", "t", "factor"),
    [
        ("0.5", 0.3, 0.5),
        ("-1", 0.3, -1.0),
        ("1e-3", 0.3, 0.001),  # text to YAML 1.1
        ("'2'", 0.3, 2.0),
        ("[0, 1]", 0.25, 0.25),
        ("[0, 0.25, 1]", 0.5, 0.25),
        ("[0, 0.25, 1]", 0.75, 0.625),
        ("[7]", 0.75, 7.0),
        ("{filter: q_proj, value: 3}", 0.0, 3.0),
        ("{filter: k_proj, value: 3}", 0.0, 1.0),
        ("[{filter: layers.3., value: 3}, {value: 4}]", 0.0, 4.0),
        ("[{filter: 'layers.2.', value: [1, 3]}, {value: 4}]", 0.5, 2.0),
        ("[{filter: '*', value: 3}, {value: 4}]", 0.0, 3.0),
        ("[{value: 4}, {filter: q_proj, value: 3}]", 0.0, 4.0),
        ("[{filter: null, value: 4}]", 0.0, 4.0),
    ],
)
def test_scales(scale: str, t: float, factor: float) -> None:
    (part,) = parse(f"{HEAD}parameters: {{scale: {scale}}}\n").slices
    assert find_factor(part.scales, "model.layers.2.self_attn.q_proj.weight", t) == factor


def test_the_innermost_setting_that_holds_counts() -> None:
    (part,) = parse(
        "modules:\n  default:\n    slices:\n"
        "    - sources:\n"
        "      - {model: a, layer_range: [0, 1], parameters: {scale: {filter: x, value: 2}}}\n"
        "      parameters: {scale: [{filter: x, value: 9}, {filter: y, value: 3}]}\n"
        "    parameters: {scale: {filter: z, value: 4}}\n"
        "merge_method: passthrough\nparameters: {scale: 5}\n"
    ).slices
    factors = {name: find_factor(part.scales, name, 0.0) for name in ("x", "y", "z", "q")}
    assert factors == {"x": 2.0, "y": 3.0, "z": 4.0, "q": 5.0}


def test_positions_of_layers_in_a_slice() -> None:
    assert [layer_position(index, 5) for index in range(5)] == [0.0, 0.25, 0.5, 0.75, 1.0]
    assert layer_position(0, 1) == 1.0


def test_all_faults_at_once_in_the_order_of_their_lines() -> None:
    found = faults(
        "slices:\n"
        "- sources:\n"
        "  - model: a\n"
        "    layer_range: x\n"
        "    layerrange: [0, 1]\n"
        "- sources: [{model: b}]\n"
        "merge_method: passthrough\n"
        "dtyp: float16\n"
        "dtype: int8\n"
    )
    assert found == [
        "recipe.yml:4: layer_range: expected two whole numbers [first, last), found 'x'",
        "5: layerrange: unknown key; did you mean layer_range?",
        "6: layer_range is missing; expected two whole numbers [first, last)",
        "8: dtyp: unknown key; did you mean dtype?",
        "9: dtype: 'int8' is no dtype for weights; expected bfloat16, float16, float32, float64",
    ]


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("", 1, "is empty"),
        ("# nothing\n", 1, "is empty"),
        ("- a\n", 1, "expected a mergekit recipe"),
        ("slices: [\n", 2, "no YAML"),
        ("a: 1\n---\nb: 2\n", 2, "another document"),
        (b"a: \xff\n", 1, "UTF-8"),
        (b"\na: \x00\n", None, "no YAML"),
        ("merge_method: passthrough\n", 1, "expected one of slices, models and modules"),
        (HEAD + "models: [{model: a}]\n", 1, "found slices, models"),
        ("slices:\n- sources: [{model: a, layer_range: [0, 1]}]\n", 1, "merge_method is missing"),
        (HEAD + "merge_method: passthrough\n", 4, "stands twice"),
        (HEAD + "parameters: {weight: 1}\n", 4, "weight: unknown key"),
        (HEAD + "parameters: {scal: 1}\n", 4, "did you mean scale?"),
        (HEAD + "parameters: 3\n", 4, "expected an object"),
        (HEAD + "parameters: {scale: big}\n", 4, "expected a number"),
        (HEAD + "parameters: {scale: true}\n", 4, "expected a number"),
        (HEAD + "parameters: {scale: .nan}\n", 4, "expected a number"),
        (HEAD + "parameters: {scale: 1e999}\n", 4, "expected a number"),
        (HEAD + "parameters: {scale: []}\n", 4, "expected a number"),
        (HEAD + "parameters: {scale: [1, [2]]}\n", 4, "expected a number"),
        (HEAD + "parameters: {scale: [{filter: a, value: 1}, 2]}\n", 4, "expected an object"),
        (HEAD + "parameters: {scale: {filter: a}}\n", 4, "value is missing"),
        (HEAD + "parameters: {scale: {filter: [a], value: 1}}\n", 4, "part of tensor names"),
        (HEAD + "parameters: {scale: {filtr: a, value: 1}}\n", 4, "did you mean filter?"),
        (HEAD + "chat_template: auto\n", 4, "chat_template"),
        (HEAD + "tokenizer_source: union\n", 4, "union"),
        (HEAD + "tokenizer: {source: union}\n", 4, "union"),
        (HEAD + "tokenizer: {tokens: {}}\n", 4, "token embeddings"),
        (HEAD + "tokenizer: {source: a, pad_to_multiple_of: 8}\n", 4, "not resized"),
        (HEAD + "tokenizer: {source: a}\ntokenizer_source: a\n", 4, "found both"),
        (HEAD + "base_model: a+b\n", 4, "LoRA"),
        (HEAD + "base_model: {model: a, lora: b}\n", 4, "LoRA"),
        (HEAD + "base_model: {model: {pth: a}}\n", 4, "did you mean path?"),
        (HEAD + "base_model: 3\n", 4, "a folder or a Hub repository"),
        (HEAD + "dtype: bfloat\n", 4, "did you mean bfloat16?"),
        (HEAD + "<<: {dtpye: float16}\n", 4, "did you mean dtype?"),
        (HEAD + "<<: {dtype: float16}\n<<: {dtype: float32}\n", 5, "<<: stands twice"),
        (HEAD + "<<: 3\n", 4, "<<: expected an object"),
        (HEAD + "x: &x {<<: *x}\n<<: *x\n", 4, "merged into itself"),
        (HEAD + "dtpye: &x float16\n", 4, "did you mean dtype?"),
        (HEAD + "dtype: &x float16\ndtype: &y float32\n", 5, "stands twice"),
        (HEAD + "const: 3\n", 4, "const: unknown key"),
        (HEAD + "const: &x float16\nother: *x\n", 5, "other: unknown key"),
        (HEAD + "? [a]\n: b\n", 4, "expected a name"),
        (HEAD.replace("[0, 3]", "[3, 2]"), 2, "expected 0 <= first <= last"),
        (HEAD.replace("[0, 3]", "[-1, 3]"), 2, "expected 0 <= first <= last"),
        (HEAD.replace("[0, 3]", "[0, 3, 4]"), 2, "expected two whole numbers"),
        (HEAD.replace("[0, 3]", "[0, 3.5]"), 2, "expected two whole numbers"),
        (HEAD.replace("[0, 3]", "[0, 99999999999]"), 2, "expected two whole numbers"),
        (HEAD.replace("model: a, ", ""), 2, "model is missing"),
        (HEAD.replace("model: a, ", "model: a, density: 1, "), 2, "density: unknown key"),
        (HEAD.replace("}]", "}, {model: b, layer_range: [0, 3]}]"), 2, "passthrough takes one"),
        ("slices: []\nmerge_method: passthrough\n", 1, "expected a list of slices"),
        ("slices: [3]\nmerge_method: passthrough\n", 1, "expected an object"),
        ("slices: [{sources: {}}]\nmerge_method: passthrough\n", 1, "a list of one source"),
        ("slices: [{source: []}]\nmerge_method: passthrough\n", 1, "did you mean sources?"),
        ("models: [{model: a}, {model: b}]\nmerge_method: passthrough\n", 1, "takes one"),
        ("models: [{model: a}]\nbase_model: b\nmerge_method: passthrough\n", 1, "takes one"),
        ("modules: {text: {}}\nmerge_method: passthrough\n", 1, "expected one, default"),
        ("slices: &a [*a]\nmerge_method: passthrough\n", 1, "expected an object"),
    ],
)
def test_each_fault_has_its_line(text: str | bytes, line: int | None, words: str) -> None:
    first = faults(text)[0]
    assert first.startswith(f"recipe.yml:{line}: " if line else "recipe.yml: "), first
    assert words in first


@pytest.mark.parametrize(
    "method", ["slerp", "ties", "linear", "dare_ties", "task_arithmetic", "della", "model_stock"]
)
def test_other_methods_are_refused_by_name(method: str) -> None:
    (fault,) = faults(HEAD.replace("passthrough", method))
    assert fault.startswith(f"recipe.yml:3: merge_method: {method} ")


def test_a_mistyped_method() -> None:
    (fault,) = faults(HEAD.replace("passthrough", "passthru"))
    assert fault.endswith("found 'passthru'; did you mean passthrough?")


def test_no_tag_builds_anything(tmp_path: Path) -> None:
    victim = tmp_path / "made"
    for tag in ("!!python/object/apply:os.mkdir", "!!python/name:os.system"):
        found = faults(f"{HEAD}base_model: {tag} ['{victim}']\n")
        assert found[0].startswith("recipe.yml:4: base_model: expected a folder")
    assert not victim.exists()


def test_a_bomb_of_aliases_is_only_nodes() -> None:
    lines = ["a0: &a0 [x, x]"] + [
        f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 30)
    ]
    assert "merge_method is missing" in faults("\n".join(lines) + "\n")[0]
    lines = ["a0: &a0 {x: 1}"] + [
        f"a{i}: &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * 9)}]}}" for i in range(1, 30)
    ]
    assert any("x: unknown key" in fault for fault in faults("\n".join([*lines, "<<: *a29"])))


def test_a_huge_recipe_is_refused() -> None:
    assert "expected at most" in faults(b"#" * (1 << 21))[0]
