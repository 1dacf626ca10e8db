"""`--layers`: every layer map without a recipe file, and what becomes of the function."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import compare_with_mergekit as mergekit
import pytest
from checkpoints import PARTS, mistral_tensors, read_tensors, write_checkpoint

import blockexpand
from blockexpand.cli.app import main
from blockexpand.errors import RecipeError
from blockexpand.models.layer_map import LayerEntry, parse_layers, spell_layers


def old(*numbers: int) -> list[LayerEntry]:
    return [LayerEntry(source=number) for number in numbers]


def new(*numbers: int) -> list[LayerEntry]:
    return [LayerEntry(source=number, is_new=True) for number in numbers]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0", old(0)),
        ("0-3", old(0, 1, 2, 3)),
        ("0-2,1-3", old(0, 1, 2, 1, 2, 3)),
        ("0-1,1*", [*old(0, 1), *new(1)]),
        ("0-1,1*3", [*old(0, 1), *new(1, 1, 1)]),
        ("0*,0,1*2,1", [*new(0), *old(0), *new(1, 1), *old(1)]),
        (" 0 - 1", None),
        ("3,1,2", old(3, 1, 2)),
        ("2,2,2", old(2, 2, 2)),
    ],
)
def test_a_list_of_layers_is_read_and_spelt_again(
    text: str, expected: list[LayerEntry] | None
) -> None:
    if expected is None:
        with pytest.raises(RecipeError):
            parse_layers(text)
        return
    assert parse_layers(text) == tuple(expected)
    assert parse_layers(spell_layers(tuple(expected))) == tuple(expected)


@pytest.mark.parametrize(
    "text", ["", ",", "a", "3-1", "1*0", "0-3*", "0-3*2", "*2", "1**2", "-1", "1-", "0-99999", "１"]
)
def test_nonsense_is_refused_with_what_is_expected(text: str) -> None:
    with pytest.raises(RecipeError, match="expected"):
        parse_layers(text)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    tensors = mistral_tensors(6)
    names = list(tensors)
    shards = [{n: tensors[n] for n in names[:20]}, {n: tensors[n] for n in names[20:]}]
    write_checkpoint(tmp_path / "model", shards)
    return tmp_path


def weights(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in out.glob("model*")}


@pytest.mark.parametrize(
    ("layers", "same"),
    [
        ("0-5,5*4", ["--new-layers", "4"]),
        ("0*2,0-5", ["--new-layers", "2", "--position", "start"]),
        ("0-2,2*,3-5,5*", ["--new-layers", "2", "--position", "interleaved"]),
        ("0-1,1*2,2-5", ["--position", "1,1"]),
    ],
)
def test_a_map_that_a_position_can_say_makes_the_same(
    layers: str, same: list[str], folder: Path
) -> None:
    assert main(["--src", "model", "--out", "one", "--layers", layers, "-q"]) == 0
    assert main(["--src", "model", "--out", "two", *same, "-q"]) == 0
    assert weights(folder / "one") == weights(folder / "two")
    assert main(["verify", "model", "one", "-q"]) == 0
    manifest = json.loads((folder / "one" / "block_expansion.json").read_text())
    assert manifest["position"] == f"layers {layers}"


@pytest.mark.parametrize("layers", ["0-3,2-5", "0-1,4-5", "5,4,3,2,1,0", "0-5,0-5", "2"])
def test_repeated_and_dropped_layers_are_what_a_recipe_makes(layers: str, folder: Path) -> None:
    """The recipes are those of mergekit, whose tensors the tests of recipes compare."""
    slices = []
    for word in layers.split(","):
        first, _, last = word.partition("-")
        numbers = f"[{first}, {int(last or first) + 1}]"
        slices.append(f"  - sources: [{{model: model, layer_range: {numbers}}}]\n")
    (folder / "r.yml").write_text(
        "merge_method: passthrough\ndtype: bfloat16\nslices:\n" + "".join(slices)
    )
    assert main(["--src", "model", "--out", "one", "--layers", layers, "-q"]) == 0
    assert main(["merge", "r.yml", "--out", "two", "-q"]) == 0
    one, two = read_tensors(folder / "one"), read_tensors(folder / "two")
    assert {n: t[:3] for n, t in one.items()} == {n: t[:3] for n, t in two.items()}
    assert (folder / "one/config.json").read_bytes() == (folder / "two/config.json").read_bytes()
    assert main(["verify", "model", "one", "-q"]) == 0


def test_new_blocks_beside_repeated_layers_are_zeroed(folder: Path) -> None:
    assert main(["--src", "model", "--out", "out", "--layers", "0-3,2-5,5*2", "-q"]) == 0
    source, made = read_tensors(folder / "model"), read_tensors(folder / "out")
    origins = [0, 1, 2, 3, 2, 3, 4, 5, 5, 5]
    for layer, origin in enumerate(origins):
        for part in PARTS:
            data = made[f"model.layers.{layer}.{part}.weight"].data
            zeroed = layer >= 8 and part in ("self_attn.o_proj", "mlp.down_proj")
            expected = source[f"model.layers.{origin}.{part}.weight"].data
            assert data == (bytes(len(expected)) if zeroed else expected)
    assert main(["verify", "model", "out", "-q"]) == 0


def test_the_run_says_whether_the_function_is_kept(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for layers, kept in (("0-5,5*", True), ("0-3,2-5", False)):
        for option in (["--dry-run"], []):
            words = ["--src", "model", "--layers", layers, *option]
            out = "kept" if kept else "changed"
            assert main([*words, "--out", out]) == 0
            said = capsys.readouterr().out
            assert ("it computes exactly what its source computes" in said) == kept
            assert ("does NOT compute what its source computes" in said) != kept
        assert (
            main(["--src", "model", "--layers", layers, "--out", "x", "--dry-run", "--json"]) == 0
        )
        assert json.loads(capsys.readouterr().out)["keeps_function"] is kept
    card = (folder / "changed" / "README.md").read_text()
    assert "**It does not compute what its source computes**" in card


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--layers", "0-6"], "layer 6: the model has layers 0 to 5"),
        (["--layers", "0-3,2-5", "--check"], "nothing for --check to prove"),
        (["--layers", "0-3,2-5", "--verify", "logits"], "nothing for --verify logits to prove"),
        (["--layers", "0-5,5*", "--new-layers", "1"], "--new-layers does not go with --layers"),
        (["--layers", "0-5,5*", "--position", "end"], "--position does not go with --layers"),
        (["--layers", "0..5"], "expected a layer (7), a range (0-31)"),
    ],
)
def test_a_wrong_map_is_refused_before_anything_is_written(
    words: list[str], said: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--src", "model", "--out", "out", *words]) == 2
    assert said in capsys.readouterr().err
    assert [path.name for path in folder.iterdir()] == ["model"]


def test_from_python(folder: Path) -> None:
    result = blockexpand.expand("model", "out", layers="0-5,5*2")
    assert result.plan.new_layers == (6, 7) and result.plan.keeps_function
    with pytest.raises(RecipeError, match="leave the number, the position"):
        blockexpand.expand("model", "other", layers="0-5,5*2", new_layers=2)


def test_in_a_batch_and_its_matrix(folder: Path) -> None:
    jobs = {
        "jobs": [{"src": "model", "layers": "0-3,2-5", "out": "by-hand"}],
        "matrix": {
            "src": "model",
            "layers": ["0-5,5*", "0-2,2*,3-5"],
            "out": "{position}-{layers}",
        },
    }
    (folder / "jobs.yaml").write_text(json.dumps(jobs))
    assert main(["batch", "jobs.yaml", "-q"]) == 0
    assert main(["--src", "model", "--out", "one", "--layers", "0-3,2-5", "-q"]) == 0
    assert weights(folder / "one") == weights(folder / "by-hand")
    assert (folder / "0-5_5x-7" / "config.json").is_file()
    assert (folder / "0-2_2x_3-5-7" / "config.json").is_file()
    assert main(["batch", "jobs.yaml", "-q"]) == 0


@pytest.mark.parametrize(
    ("job", "said"),
    [
        ({"layers": "0-5,5*", "new-layers": 1}, "layers says every layer; leave new-layers out"),
        ({"layers": "5-0"}, "expected a layer (7), a range (0-31)"),
    ],
)
def test_a_wrong_job_is_refused(
    job: dict[str, Any], said: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "jobs.yaml").write_text(json.dumps({"jobs": [{"src": "model", "out": "x"} | job]}))
    assert main(["batch", "jobs.yaml"]) == 2
    assert said in capsys.readouterr().err


def render_slices(model: Path, slices: list[tuple[int, int, bool]]) -> str:
    """Write a passthrough merge of ranges of layers; True: its output projections are zero."""
    zeroed = {
        "scale": [
            {"filter": "o_proj", "value": 0.0},
            {"filter": "down_proj", "value": 0.0},
            {"value": 1.0},
        ]
    }
    sources = [
        {"model": str(model), "layer_range": [begin, end]} | ({"parameters": zeroed} if new else {})
        for begin, end, new in slices
    ]
    # JSON is YAML.
    return json.dumps(
        {
            "slices": [{"sources": [source]} for source in sources],
            "merge_method": "passthrough",
            "dtype": "bfloat16",
        }
    )


@pytest.mark.long
@pytest.mark.parametrize(
    ("layers", "slices"),
    [
        ("0-3,2-5", [(0, 4, False), (2, 6, False)]),
        ("0-5,5*2", [(0, 6, False), (5, 6, True), (5, 6, True)]),
        ("0-2,1*,1-5", [(0, 3, False), (1, 2, True), (1, 6, False)]),
    ],
)
def test_mergekit_makes_the_same_of_the_same_layers(
    layers: str, slices: list[tuple[int, int, bool]], tmp_path: Path
) -> None:
    program = os.environ.get("MERGEKIT_YAML")
    if not program:
        pytest.skip("MERGEKIT_YAML does not name mergekit-yaml")
    model, ours, theirs = tmp_path / "model", tmp_path / "ours", tmp_path / "theirs"
    write_checkpoint(model, [mistral_tensors(6)], {"architectures": ["MistralForCausalLM"]})
    blockexpand.expand(model, ours, layers=layers)
    recipe = tmp_path / "recipe.yml"
    recipe.write_text(render_slices(model, slices))
    done = subprocess.run(
        [program, str(recipe), str(theirs), "--no-copy-tokenizer"],
        env=os.environ | {"HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert mergekit.compare(ours, theirs, None) == []
