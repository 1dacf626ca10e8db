"""Outputs that were trained, saved anew, or made by another tool: judged by their tensors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import copy_tree, edit_json, mistral_tensors, write_checkpoint
from safetensors.torch import load_file, save_file

import blockexpand
from blockexpand import _version
from blockexpand.cli.app import main

MANIFEST = "block_expansion.json"


def load_all(folder: Path) -> dict[str, torch.Tensor]:
    return {k: v for file in folder.glob("*.safetensors") for k, v in load_file(file).items()}


def save_anew(folder: Path, tensors: dict[str, torch.Tensor], config: Path, **fields: Any) -> Path:
    """Write one file in another order, as a trainer or another tool would."""
    folder.mkdir()
    save_file(dict(sorted(tensors.items())), folder / "model.safetensors", {"format": "pt"})
    content = json.loads(config.read_text()) | fields
    (folder / "config.json").write_text(json.dumps(content))
    return folder


@pytest.fixture
def out(tiny_mistral: Path, tmp_path: Path) -> Path:
    blockexpand.expand(tiny_mistral, tmp_path / "out", new_layers=2, position="interleaved")
    return tmp_path / "out"


def test_an_edited_card_is_a_note(
    tiny_mistral: Path, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with (out / "README.md").open("a") as card:
        card.write("more\n")
    assert main(["verify", str(tiny_mistral), str(out)]) == 0
    said = capsys.readouterr().out
    assert ": verified: 4 layers + 2 new (2, 5), bfloat16, every byte as of" in said
    assert "note: README.md is not the card that this release writes" in said


def test_a_new_release_disowns_nothing(
    tiny_mistral: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    edit_json(out / MANIFEST, blockexpand="0.0.7", fingerprint="of another release")
    verification = blockexpand.verify(tiny_mistral, out, untrained=True)[0]
    assert verification.findings == ()
    assert f"made by blockexpand 0.0.7; this is {_version.__version__}" in verification.notes


@pytest.mark.parametrize("saved_anew", [False, True])
def test_trained_new_blocks_are_no_difference(
    saved_anew: bool, tiny_mistral: Path, out: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    if saved_anew:
        tensors = load_all(out)
        for name in tensors:
            if ".layers.5." in name:
                tensors[name] = tensors[name] + 0.125
        trained = save_anew(tmp_path / "trained", tensors, out / "config.json")
        (trained / MANIFEST).write_bytes((out / MANIFEST).read_bytes())
        (trained / "trainer_state.json").write_text("{}")
    else:
        trained = out
        for file in out.glob("*.safetensors"):
            tensors = load_file(file)
            if any(".layers.5." in name for name in tensors):
                data = bytearray(file.read_bytes())
                start = 8 + int.from_bytes(data[:8], "little")
                header = json.loads(data[8:start])
                for name, entry in header.items():
                    if ".layers.5." in name:
                        data[start + entry["data_offsets"][0]] ^= 1
                file.write_bytes(data)
    assert main(["verify", str(tiny_mistral), str(trained)]) == 0
    said = capsys.readouterr().out
    assert "trained: 9 tensors of the new blocks differ, all 39 originals identical" in said
    assert "function kept: no (the new blocks are at work)" in said
    assert "make it again" not in said
    assert ("files that the source does not have: trainer_state.json" in said) == saved_anew
    assert main(["verify", str(tiny_mistral), str(trained), "--untrained"]) == 1
    said = capsys.readouterr()
    assert "keep it" in said.err
    assert "was made from" not in said.err
    # An original that changed is a difference, whatever was trained.
    tensors = load_all(trained)
    tensors["model.norm.weight"] += 1
    other = save_anew(tmp_path / "other", tensors, out / "config.json")
    (other / MANIFEST).write_bytes((out / MANIFEST).read_bytes())
    verification = blockexpand.verify(tiny_mistral, other)[0]
    assert [finding.tensor for finding in verification.findings] == ["model.norm.weight"]
    assert len(verification.trained) == 9


def test_the_wrong_source_is_named_in_one_line(
    tiny_mistral: Path, out: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    others = {
        "another type": write_checkpoint(
            tmp_path / "a", [mistral_tensors()], {"model_type": "llama"}
        ),
        "another depth": write_checkpoint(tmp_path / "b", [mistral_tensors(3)]),
    }
    changed = copy_tree(tiny_mistral, tmp_path / "c")
    for file in changed.glob("*.safetensors"):
        tensors = {name: tensor + 1 for name, tensor in load_file(file).items()}
        save_file(tensors, file, {"format": "pt"})
    others["other weights"] = changed
    for kind, source in others.items():
        assert main(["verify", str(source), str(out)]) == 1, kind
        said = capsys.readouterr()
        assert said.out == ""
        assert "was made from" in said.err.splitlines()[-1], kind
        assert said.err.endswith("; give the source that it was made from\n")


def test_counts_are_true(tiny_mistral: Path, out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = out / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    index["weight_map"] = {name: "x" for name in index["weight_map"]}
    path.write_text(json.dumps(index))
    count = len(index["weight_map"])
    assert count > 50
    assert main(["verify", str(tiny_mistral), str(out)]) == 1
    said = capsys.readouterr()
    assert f"{count} differences" in said.err
    assert f"and {count - 20} more; -v or --json lists them all" in said.out
    assert main(["verify", str(tiny_mistral), str(out), "--json"]) == 1
    assert len(json.loads(capsys.readouterr().out)["findings"]) == count


def make_foreign(out: Path, folder: Path, *, zero: float = -0.0, config: Any = None) -> Path:
    """An expansion as mergekit writes it: negative zeros, other files, no manifest."""
    tensors = load_all(out)
    for name, tensor in tensors.items():
        if ".layers.5." in name and not tensor.any():
            tensors[name] = torch.full_like(tensor, zero)
    return save_anew(folder, tensors, out / "config.json", **(config or {}))


def test_an_expansion_of_another_tool_is_recognised(
    tiny_mistral: Path, out: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = make_foreign(out, tmp_path / "other", config={"transformers_version": "4.38.0"})
    (other / "modeling_own.py").write_text("")
    assert main(["verify", str(tiny_mistral), str(other)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert ": verified: 4 layers + 2 new (2, 5), bfloat16, every tensor as of" in lines[0]
    assert "function kept: yes" in lines[0]
    assert lines[1:] == [
        "  layer 2: new, clone of 1, passes its input through",
        "  layer 5: new, clone of 3, passes its input through",
        "  note: files that the source does not have: modeling_own.py",
    ]
    verification, proof = blockexpand.verify(tiny_mistral, other, logits=True)
    assert verification.new_layers == (2, 5) and proof is not None


def test_a_block_of_another_tool_that_is_at_work(
    tiny_mistral: Path, out: Path, tmp_path: Path
) -> None:
    tensors = load_all(out)
    # Repeated, not silenced: what a stack of layers by another tool is.
    for name in list(tensors):
        if ".layers.5." in name:
            tensors[name] = tensors[name.replace(".5.", ".4.")].clone()
    other = save_anew(tmp_path / "other", tensors, out / "config.json")
    verification = blockexpand.verify(tiny_mistral, other)[0]
    assert verification.active == (5,)
    (finding,) = verification.findings
    assert "layer 5 repeats layer 3 and does not pass its input through" in finding.message


def test_a_trained_output_without_its_manifest(
    tiny_mistral: Path, out: Path, tmp_path: Path
) -> None:
    tensors = {
        name: (tensor + 0.125 if ".layers.2." in name else tensor).float()
        for name, tensor in load_all(out).items()
    }
    other = save_anew(tmp_path / "other", tensors, out / "config.json")
    verification = blockexpand.verify(tiny_mistral, other)[0]
    assert verification.findings == ()
    assert (len(verification.trained), verification.active) == (9, (2,))
    assert (verification.dtype, verification.keeps_function) == ("float32", False)
    assert blockexpand.verify(tiny_mistral, other, untrained=True)[0].findings


def test_diff_of_a_training_in_another_dtype_names_the_cure(
    tiny_mistral: Path, out: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A base in float32 becomes bfloat16 by default: nothing of it is in the trained model."""
    base = {k: v.float() + 1e-5 for k, v in load_all(tiny_mistral).items()}
    save_anew(tmp_path / "base", base, tiny_mistral / "config.json")
    blockexpand.expand(tmp_path / "base", tmp_path / "exp", new_layers=2, position="interleaved")
    tensors = {
        name: tensor + 0.125 if ".layers.2." in name else tensor
        for name, tensor in load_all(tmp_path / "exp").items()
    }
    other = save_anew(tmp_path / "trained", tensors, tmp_path / "exp" / "config.json")
    assert main(["diff", str(tmp_path / "base"), str(other)]) == 1
    said = capsys.readouterr().err.splitlines()[-1]
    assert "F32 [" in said and "compare with the expansion that was trained" in said
    assert main(["diff", str(tmp_path / "exp"), str(other)]) == 0


def test_a_wrong_config_of_another_tool_is_found(
    tiny_mistral: Path, out: Path, tmp_path: Path
) -> None:
    other = make_foreign(out, tmp_path / "other", config={"rms_norm_eps": 0.5})
    (finding,) = blockexpand.verify(tiny_mistral, other)[0].findings
    assert finding.file == "config.json" and "rms_norm_eps" in finding.message


def test_a_model_that_is_no_expansion_of_the_source(
    tiny_mistral: Path, out: Path, tmp_path: Path
) -> None:
    tensors = {name: tensor + 1 for name, tensor in load_all(out).items()}
    other = save_anew(tmp_path / "other", tensors, out / "config.json")
    verification = blockexpand.verify(tiny_mistral, other)[0]
    assert verification.wrong_source is not None
    assert "is no expansion of" in verification.wrong_source
