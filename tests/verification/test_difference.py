"""Comparing checkpoints: folders are written by `safetensors` and by hand, and judged by torch."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import mistral_tensors, write_checkpoint
from safetensors.torch import load_file, save_file

from blockexpand import diff, expand
from blockexpand.cli.app import main
from blockexpand.errors import CheckpointError
from blockexpand.verification.difference import Difference

Tensors = Mapping[str, torch.Tensor]


def write(
    folder: Path, tensors: Tensors, *, layers: int = 2, manifest: dict[str, Any] | None = None
) -> Path:
    """Write a checkpoint of one file; `layers` goes into its config."""
    folder.mkdir()
    save_file(dict(tensors), folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"num_hidden_layers": layers}))
    if manifest is not None:
        (folder / "block_expansion.json").write_text(json.dumps(manifest))
    return folder


def manifest(sources: list[int], new: list[int], prefix: str = "model.layers.") -> dict[str, Any]:
    return {
        "original_layers": max(sources) + 1,
        "layers": len(sources),
        "layer_map": sources,
        "new_layers": new,
        "layer_prefix": prefix,
    }


def by_status(difference: Difference) -> dict[str, set[str]]:
    groups: dict[str, set[str]] = {"same": set(), "changed": set(), "new": set(), "missing": set()}
    for tensor in difference.tensors:
        groups[tensor.status].add(tensor.name)
    return groups


def vector(value: float, size: int = 4) -> torch.Tensor:
    return torch.full((size,), float(value))


def model(*layers: float, **more: float) -> dict[str, torch.Tensor]:
    """One tensor a layer, each of another value, and tensors besides."""
    tensors = {f"model.layers.{i}.w": vector(value) for i, value in enumerate(layers)}
    return tensors | {name: vector(value) for name, value in {"head": 9.0, **more}.items()}


def test_every_way_a_tensor_can_fare(tmp_path: Path) -> None:
    base = {
        "equal": vector(1),
        "value": vector(2),
        "dtype": vector(3),
        "shape": vector(4).reshape(2, 2),
        "gone": vector(5),
        "zero": vector(0.0),
        "nan": vector(float("nan")),
        "empty": torch.empty(0),
    }
    other = {
        "equal": vector(1),
        "value": torch.tensor([2.0, 2.0, 3.0, 2.0]),
        "dtype": vector(3).bfloat16(),
        "shape": vector(4),
        "zero": vector(-0.0),
        "nan": vector(float("nan")),
        "empty": torch.empty(0),
        "added": vector(6),
    }
    difference = diff(write(tmp_path / "base", base), write(tmp_path / "other", other))
    assert by_status(difference) == {
        "same": {"equal", "nan", "empty"},
        "changed": {"value", "dtype", "shape", "zero"},
        "new": {"added"},
        "missing": {"gone"},
    }
    found = {tensor.name: tensor for tensor in difference.tensors}
    # 3.0 is 0x40400000 and 2.0 is 0x40000000, little-endian: the third value's third byte.
    assert (found["value"].offset, found["value"].message) == (10, "from byte 10 of 16 on")
    assert found["zero"].offset == 3
    assert found["dtype"].message == "F32 [4] → BF16 [4]"
    assert found["shape"].message == "F32 [2, 2] → F32 [4]"
    assert {tensor.name for tensor in difference.lost} == {
        "value",
        "dtype",
        "shape",
        "zero",
        "gone",
    }


@pytest.mark.parametrize("place", [0, 4 << 20, (4 << 20) - 1, 12_000_000, 12_582_913 - 1])
def test_one_changed_byte_in_a_large_tensor(place: int, tmp_path: Path) -> None:
    big = torch.arange(12_582_913, dtype=torch.int64).to(torch.uint8)
    base = write(tmp_path / "base", {"big": big, "odd": vector(1, 3)})
    big[place] ^= 255
    other = write(tmp_path / "other", {"big": big, "odd": vector(1, 3)})
    difference = diff(base, other)
    assert [(tensor.name, tensor.offset) for tensor in difference.lost] == [("big", place)]


@pytest.mark.parametrize(
    "position", ["end", "interleaved", "start", "0,0,2"], ids=lambda position: f"at {position}"
)
def test_an_expansions_original_layers_are_compared_with_their_source(
    position: str, tiny_mistral: Path, tmp_path: Path
) -> None:
    new = None if "," in position else 2
    out = tmp_path / "out"
    expand(tiny_mistral, out, new_layers=new, position=position, dtype="source")
    stated = json.loads((out / "block_expansion.json").read_text())
    blocks = stated["new_layers"]
    source = load_all(tiny_mistral)
    difference = diff(tiny_mistral, out)
    assert difference.lost == ()
    assert by_status(difference)["new"] == {
        name for name in load_all(out) if layer_of(name) in blocks
    }
    same = [tensor for tensor in difference.tensors if tensor.status == "same"]
    assert {tensor.base_name for tensor in same} == set(source)
    for tensor in same:
        assert tensor.base_name is not None and tensor.other_name is not None
        assert torch.equal(source[tensor.base_name], load_all(out)[tensor.other_name])
        layer, other = layer_of(tensor.base_name), layer_of(tensor.other_name)
        assert layer is None or (stated["layer_map"][other] == layer and other not in blocks)


def load_all(folder: Path) -> dict[str, torch.Tensor]:
    return {k: v for file in folder.glob("*.safetensors") for k, v in load_file(file).items()}


def layer_of(name: str) -> int | None:
    parts = name.split(".")
    return int(parts[2]) if parts[1] == "layers" else None


def test_a_changed_original_layer_of_an_expansion(tmp_path: Path) -> None:
    base = write(tmp_path / "base", model(1, 2))
    stated = manifest([0, 0, 1, 1], [1, 3])
    other = write(tmp_path / "other", model(1, 1, 7, 2), layers=4, manifest=stated)
    (lost,) = diff(base, other).lost
    assert (lost.base_name, lost.other_name) == ("model.layers.1.w", "model.layers.2.w")


def test_the_expansion_may_be_the_base(tmp_path: Path) -> None:
    base = write(
        tmp_path / "base", model(1, 1, 2, 2), layers=4, manifest=manifest([0, 0, 1, 1], [1, 3])
    )
    difference = diff(base, write(tmp_path / "other", model(1, 2)))
    assert by_status(difference)["missing"] == {"model.layers.1.w", "model.layers.3.w"}
    assert difference.lost == ()


def test_what_a_recipe_dropped_is_said_to_be_dropped(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = write(tmp_path / "base", model(1, 2, 3), layers=3)
    other = write(tmp_path / "other", model(1, 3), layers=2, manifest=manifest([0, 2], []))
    (lost,) = diff(base, other).lost
    assert (lost.base_name, lost.status) == ("model.layers.1.w", "missing")
    assert main(["diff", str(base), str(other)]) == 1
    out, err = capsys.readouterr()
    assert out.endswith("not as in BASE, 1 of them in layers that were dropped\n")
    assert "'model.layers.1.w' is missing (its layer was dropped)" in err


@pytest.mark.parametrize("kept", ["both", "base", "other"])
def test_a_trained_expansion_and_the_expansion(kept: str, tmp_path: Path) -> None:
    """Trainers leave the manifest behind: one of the two is enough."""
    stated = manifest([0, 0, 1, 1], [1, 3])
    base = write(
        tmp_path / "base",
        model(1, 1, 2, 2),
        layers=4,
        manifest=stated if kept != "other" else None,
    )
    other = write(
        tmp_path / "other",
        model(1, 5, 2, 6),
        layers=4,
        manifest=stated if kept != "base" else None,
    )
    difference = diff(base, other)
    assert by_status(difference)["changed"] == {"model.layers.1.w", "model.layers.3.w"}
    assert difference.lost == ()


def test_without_any_manifest_layers_are_found_by_their_tensors(tmp_path: Path) -> None:
    base = write(tmp_path / "base", model(1, 2))
    difference = diff(base, write(tmp_path / "other", model(1, 1, 2), layers=3))
    assert difference.lost == () and by_status(difference)["new"] == {"model.layers.1.w"}
    assert difference.matched_by == (
        "layers matched by their tensors, as no block_expansion.json relates the two: 2 + 1 new"
    )


def test_where_no_layers_are_the_same_names_are_compared(tmp_path: Path) -> None:
    base = write(tmp_path / "base", model(1, 2))
    difference = diff(base, write(tmp_path / "other", model(5, 6, 7), layers=3))
    assert {tensor.name for tensor in difference.lost} == {"model.layers.0.w", "model.layers.1.w"}
    assert difference.matched_by.startswith("tensors matched by name")
    assert difference.matched_by.endswith("copy its block_expansion.json into OTHER")


@pytest.mark.parametrize("position", ["end", "interleaved"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_what_a_trainer_saved_is_matched_by_its_tensors(
    position: str, dtype: str, tiny_mistral: Path, tmp_path: Path
) -> None:
    """Trainers leave block_expansion.json behind, and some save float32 copies."""
    from transformers import AutoModelForCausalLM

    expand(tiny_mistral, tmp_path / "out", new_layers=2, position=position)
    stated = json.loads((tmp_path / "out" / "block_expansion.json").read_text())
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=getattr(torch, dtype))
    new = stated["new_layers"]
    with torch.no_grad():
        for layer in new:
            for parameter in model.model.layers[layer].parameters():
                parameter.add_(0.125)
    model.save_pretrained(tmp_path / "trained", max_shard_size="60KB")
    difference = diff(tiny_mistral, tmp_path / "trained")
    assert difference.lost == ()
    assert {layer_of(name) for name in by_status(difference)["new"]} == set(new)
    assert main(["diff", str(tiny_mistral), str(tmp_path / "trained"), "-q"]) == 0


def test_two_expansions_of_one_source(tmp_path: Path) -> None:
    at_end = write(
        tmp_path / "end", model(1, 2, 2, 2), layers=4, manifest=manifest([0, 1, 1, 1], [2, 3])
    )
    between = write(
        tmp_path / "between", model(1, 1, 2, 2), layers=4, manifest=manifest([0, 0, 1, 1], [1, 3])
    )
    difference = diff(at_end, between)
    assert difference.lost == ()
    # The first clone of layer 1 is in both; each has one more that the other lacks.
    assert by_status(difference)["missing"] == {"model.layers.3.w"}
    assert by_status(difference)["new"] == {"model.layers.1.w"}


def test_an_expansion_of_an_expansion(tmp_path: Path) -> None:
    once = write(tmp_path / "once", model(1, 1, 2), layers=3, manifest=manifest([0, 0, 1], [1]))
    twice = write(
        tmp_path / "twice",
        model(1, 1, 1, 2, 2),
        layers=5,
        manifest=manifest([0, 1, 1, 2, 2], [2, 4]),
    )
    difference = diff(once, twice)
    assert by_status(difference) == {
        "same": {"model.layers.0.w", "model.layers.1.w", "model.layers.3.w", "head"},
        "changed": set(),
        "new": {"model.layers.2.w", "model.layers.4.w"},
        "missing": set(),
    }


def test_a_layer_taken_from_another_model_is_new(tmp_path: Path) -> None:
    base = write(tmp_path / "base", model(1, 2))
    stated = manifest([0, 1, 1], []) | {"original_layers": 2, "layer_models": [0, 1, 0]}
    difference = diff(base, write(tmp_path / "other", model(1, 5, 2), layers=3, manifest=stated))
    assert difference.lost == () and by_status(difference)["new"] == {"model.layers.1.w"}


def test_layers_stored_past_the_end_move_with_it(tmp_path: Path) -> None:
    base = write(tmp_path / "base", model(1, 2, 8), layers=2)
    other = write(
        tmp_path / "other", model(1, 2, 2, 8), layers=3, manifest=manifest([0, 1, 1], [2])
    )
    difference = diff(base, other)
    assert difference.lost == () and by_status(difference)["new"] == {"model.layers.2.w"}


def test_a_prefix_that_transformers_adds_when_it_saves(tmp_path: Path) -> None:
    base = write(tmp_path / "base", {"h.0.w": vector(1), "h.1.w": vector(2), "wte": vector(3)})
    stated = manifest([0, 0, 1], [1], prefix="transformer.h.")
    other = {
        "transformer.h.0.w": vector(1),
        "transformer.h.1.w": vector(4),
        "transformer.h.2.w": vector(2),
        "transformer.wte": vector(3),
    }
    assert diff(base, write(tmp_path / "other", other, layers=3, manifest=stated)).lost == ()
    swapped = stated | {"layer_prefix": "h."}
    again = write(tmp_path / "again", other, layers=3, manifest=swapped)
    assert diff(base, again).lost == ()


def test_a_tensor_whose_bare_name_exists_too_is_not_lost(tmp_path: Path) -> None:
    base = write(tmp_path / "base", {"h.0.w": vector(1), "wte": vector(3)}, layers=1)
    other = {"transformer.h.0.w": vector(1), "transformer.h.1.w": vector(1)}
    other |= {"transformer.wte": vector(4), "wte": vector(3)}
    stated = manifest([0, 0], [1], prefix="h.")
    difference = diff(base, write(tmp_path / "other", other, layers=2, manifest=stated))
    assert by_status(difference)["new"] == {"transformer.h.1.w", "transformer.wte"}


def test_a_damaged_manifest_is_not_guessed_around(tmp_path: Path) -> None:
    base = write(tmp_path / "base", model(1, 2))
    other = write(tmp_path / "other", model(1, 2, 2), layers=3, manifest={"layers": 3})
    with pytest.raises(CheckpointError, match="'original_layers'"):
        diff(base, other)


def test_the_command_line(
    tiny_mistral: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    expand(tiny_mistral, out, new_layers=2, position="interleaved", dtype="source")
    assert main(["diff", str(tiny_mistral), str(out), "--no-progress"]) == 0
    shown = capsys.readouterr()
    assert "same        39 tensors" in shown.out and "new         18 tensors" in shown.out
    assert "  same     model.layers.{0-1,3-4}.mlp.up_proj.weight\n" in shown.out
    assert "  new      model.layers.{2,5}.self_attn.o_proj.weight\n" in shown.out
    assert shown.out.endswith("all 39 original tensors are bit-identical\n")
    assert shown.err == ""
    assert main(["diff", str(tiny_mistral), str(out), "--json"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert content["originals_identical"] is True
    assert content["counts"] == {"same": 39, "changed": 0, "new": 18, "missing": 0}
    (row,) = [
        t for t in content["tensors"] if t["base_name"] == "model.layers.2.mlp.up_proj.weight"
    ]
    assert (row["other_name"], row["status"]) == ("model.layers.3.mlp.up_proj.weight", "same")


def test_the_command_line_fails_where_an_original_changed(
    tiny_mistral_single: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "other"
    shutil.copytree(tiny_mistral_single, other)
    tensors = load_file(other / "model.safetensors")
    tensors["model.norm.weight"][-1] += 1
    save_file(tensors, other / "model.safetensors")
    assert main(["diff", str(tiny_mistral_single), str(other), "-v"]) == 1
    shown = capsys.readouterr()
    assert "  changed  model.norm.weight: from byte 62 of 64 on\n" in shown.out
    assert "1 of 39 original tensors are not as in BASE" in shown.out
    assert shown.err.endswith("the first: 'model.norm.weight' is changed\n")


def test_numbers_are_folded_only_where_all_combinations_are_there(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = ["l.0.e.0.w", "l.0.e.1.w", "l.1.e.0.w", "l.1.e.1.w", "m.0.e.0.w", "m.1.e.1.w"]
    base = write(tmp_path / "base", {name: vector(1) for name in names})
    assert main(["diff", str(base), str(base)]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [line[1] for line in lines if line[0] == "same" and len(line) == 2] == [
        "l.{0-1}.e.{0-1}.w",
        "m.0.e.0.w",
        "m.1.e.1.w",
    ]


def run_with_few_files(limits: tuple[int, int], *words: object) -> subprocess.CompletedProcess[str]:
    resource = pytest.importorskip("resource")
    return subprocess.run(
        [sys.executable, "-m", "blockexpand", *map(str, words), "--no-progress"],
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, limits),
        capture_output=True,
        text=True,
    )


def test_more_shards_than_files_may_be_open_at_first(tmp_path: Path) -> None:
    tensors = mistral_tensors(6)
    one, out = tmp_path / "one", tmp_path / "out"
    write_checkpoint(one, [{name: tensors[name]} for name in tensors])
    assert len(tensors) > 50
    words = ("--src", one, "--out", out, "--new-layers", 1, "--max-shard-size", "1GB", "--quiet")
    for command in (words, ("verify", one, out), ("diff", one, out)):
        done = run_with_few_files((40, 400), *command)
        assert (done.returncode, done.stderr) == (0, "")
    refused = run_with_few_files((40, 40), "diff", one, out)
    assert refused.returncode == 3
    assert "allow more open files (ulimit -n) and run the same command again" in refused.stderr
    assert refused.stderr.count("\n") == 1
