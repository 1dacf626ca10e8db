"""A finished output of the same plan is found again; one of other weights is not taken for it."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
from faults import make_source, snapshot
from safetensors.torch import load_file, save_file

import blockexpand
from blockexpand.errors import OutputError
from blockexpand.progress import Progress


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return make_source(tmp_path / "model")


@pytest.fixture
def out(tmp_path: Path, source: Path) -> Path:
    blockexpand.expand(source, tmp_path / "out", new_layers=2)
    return tmp_path / "out"


def test_a_task_that_is_run_again_succeeds(source: Path, out: Path) -> None:
    before = snapshot(out)
    times = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    moved: list[int] = []
    result = blockexpand.expand(source, out, new_layers=2, progress=Progress(advance=moved.append))
    assert result.moved.reused == result.plan.nbytes
    assert (
        "already there: the same plan, sizes and headers, and a block of 57 tensors compared "
        "(verify compares every byte); --overwrite makes it anew"
    ) in result.notes
    assert moved == []
    assert snapshot(out) == before
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == times


def lay_out_otherwise(out: Path, *, poke: str | None = None) -> None:
    """Save an output's tensors in other shards, as an earlier release did."""
    tensors = {}
    for file in sorted(out.glob("*.safetensors")):
        tensors |= load_file(file)
        file.unlink()
    if poke is not None:
        tensors[poke] = tensors[poke] + 1
    names = sorted(tensors)
    weight_map = {}
    for number, part in enumerate((names[::2], names[1::2]), 1):
        file_name = f"model-0000{number}-of-00002.safetensors"
        save_file({name: tensors[name] for name in part}, out / file_name)
        weight_map |= dict.fromkeys(part, file_name)
    (out / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


def test_an_output_that_another_release_laid_out_is_known(source: Path, out: Path) -> None:
    lay_out_otherwise(out)
    before = snapshot(out)
    result = blockexpand.expand(source, out, new_layers=2)
    assert any(
        "already there: the same plan, headers of files laid out otherwise, and a block of 57"
        in note
        for note in result.notes
    )
    assert snapshot(out) == before
    verified = blockexpand.verify(source, out)
    assert verified.ok
    notes = verified.verification.notes
    assert any("another release or another program" in note for note in notes)


@pytest.mark.parametrize(
    "poke", ["model.layers.0.self_attn.q_proj.weight", "model.layers.5.mlp.down_proj.weight"]
)
def test_other_weights_in_another_layout_are_not_taken(source: Path, out: Path, poke: str) -> None:
    lay_out_otherwise(out, poke=poke)
    with pytest.raises(OutputError, match=f"{poke}' is not what .* choose another folder"):
        blockexpand.expand(source, out, new_layers=2)


def test_what_was_asked_for_after_the_writing_is_done_again(source: Path, out: Path) -> None:
    result = blockexpand.expand(source, out, new_layers=2, verify_after="tensors")
    assert result.verification is not None
    assert result.verification.findings == ()


def test_overwrite_makes_it_anew(source: Path, out: Path) -> None:
    inode = out.stat().st_ino
    result = blockexpand.expand(source, out, new_layers=2, overwrite=True)
    assert result.moved.reused == 0
    assert out.stat().st_ino != inode


def test_another_plan_is_another_output(source: Path, out: Path) -> None:
    for options in {"new_layers": 1}, {"new_layers": 2, "position": "start"}:
        with pytest.raises(OutputError, match="exists and is not empty"):
            blockexpand.expand(source, out, **options)  # type: ignore[arg-type]


def test_a_recipe_that_is_run_again_succeeds(source: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yml"
    recipe.write_text(
        f"slices:\n- sources: [{{model: {source}, layer_range: [0, 4]}}]\n"
        f"- sources: [{{model: {source}, layer_range: [2, 4]}}]\n"
        "merge_method: passthrough\ndtype: bfloat16\n"
    )
    out = tmp_path / "merged"
    first = blockexpand.merge(recipe, out)
    assert first.moved.reused == 0
    again = blockexpand.merge(recipe, out)
    assert again.moved.reused == again.plan.nbytes
    assert any("already there" in note for note in again.notes)
    recipe.write_text(recipe.read_text().replace("[2, 4]", "[1, 3]"))
    with pytest.raises(OutputError, match="exists and is not empty"):
        blockexpand.merge(recipe, out)


@pytest.mark.parametrize("old", [False, True], ids=["copied", "moved"])
def test_an_output_of_other_weights_is_not_taken_for_finished(old: bool, tmp_path: Path) -> None:
    """Another fine-tune of the same shape takes the source's place, as `cp -a` or `mv` puts it.

    A folder that was moved there is older than the output by every clock: its content tells.
    """
    source, other = tmp_path / "model", tmp_path / "other" / "model"
    make_source(source)
    if old:
        make_source(other, seed=1)
    out = tmp_path / "out"
    blockexpand.expand(source, out, new_layers=2)
    source.rename(tmp_path / "before")
    if old:
        other.rename(source)
    else:
        shutil.copytree(make_source(other, seed=1), source)
    with pytest.raises(OutputError, match=r"tensor 'model.*' is not what .*model and this plan"):
        blockexpand.expand(source, out, new_layers=2)


def test_a_merged_adapter_that_changed_a_few_tensors_is_found(source: Path, out: Path) -> None:
    """All but two projections of one layer are as before, and so are the files' ends."""
    shard = source / "model-00002-of-00003.safetensors"
    from safetensors import deserialize

    data = bytearray(shard.read_bytes())
    at = data.find(dict(deserialize(bytes(data)))["model.layers.1.self_attn.q_proj.weight"]["data"])
    status = shard.stat()
    data[at : at + 8192] = bytes(byte ^ 1 for byte in data[at : at + 8192])
    shard.write_bytes(data)
    os.utime(shard, ns=(status.st_atime_ns, status.st_mtime_ns))
    with pytest.raises(OutputError, match=r"layers\.1\.self_attn\.q_proj\.weight' is not what"):
        blockexpand.expand(source, out, new_layers=2)


def test_weights_that_were_trained_in_the_output_are_not_taken_for_it(
    source: Path, out: Path
) -> None:
    shard = out / "model-00004-of-00004.safetensors"
    data = bytearray(shard.read_bytes())
    data[-9000:] = b"\x3c" * 9000
    shard.write_bytes(data)
    with pytest.raises(OutputError, match="is not what"):
        blockexpand.expand(source, out, new_layers=2)


def test_files_that_were_touched_since_are_said(source: Path, out: Path) -> None:
    (source / "model-00001-of-00003.safetensors").chmod(0o600)
    result = blockexpand.expand(source, out, new_layers=2)
    assert any(
        "model-00001-of-00003.safetensors of the source was changed, moved or copied since" in note
        for note in result.notes
    )


def test_hard_links_are_known_by_being_the_same_file(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "linked"
    for _ in range(2):
        result = blockexpand.expand(source, out, new_layers=2, hardlink=True, dtype="source")
    assert result.moved.reused == result.plan.nbytes
