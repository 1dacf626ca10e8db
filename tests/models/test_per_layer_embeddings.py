"""Gemma 4 E2B and E4B: tables with a part for every layer, and layers that share keys and values.

`transformers` says what a model computes, `torch` what the tables must hold.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from family_check import load, run, tokens
from family_zoo import Zoo, make_checkpoint
from hub_server import HubServer, read_folder
from safetensors.torch import load_file, save_file
from zoo import ZOO

import blockexpand
from blockexpand.api.overview import show
from blockexpand.errors import BlockExpandError, CheckpointError, RecipeError, UnsupportedModelError
from blockexpand.models import decoder as decoders
from blockexpand.writing.executors import open_executor

COLUMNS = "model.embed_tokens_per_layer.weight"
ROWS = "model.per_layer_model_projection.weight"
E: Zoo = next(recipe for recipe in ZOO if recipe.name == "gemma4_text_per_layer_embeddings")
# The last layers with a window and with full attention before the three that share.
PRODUCERS = {3: "the nearest layers that can be cloned are 2, 5", 4: "layer 4"}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("per_layer") / "source"
    make_checkpoint(E, folder)
    return folder


def read(folder: Path) -> dict[str, torch.Tensor]:
    return {n: t for file in folder.glob("*.safetensors") for n, t in load_file(file).items()}


def expected_tables(source: Path, layers: list[int]) -> dict[str, torch.Tensor]:
    """Put the parts of the tables together anew, by the source layer of each output layer."""
    tensors = read(source)
    columns = torch.cat([tensors[COLUMNS][:, 4 * i : 4 * i + 4] for i in layers], dim=1)
    return {COLUMNS: columns, ROWS: torch.cat([tensors[ROWS][4 * i : 4 * i + 4] for i in layers])}


@pytest.mark.parametrize("layer", range(8))
def test_a_clone_of_every_layer_is_exact_or_refused(
    layer: int, source: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    if layer in PRODUCERS:
        with pytest.raises(UnsupportedModelError, match=PRODUCERS[layer]):
            blockexpand.expand(source, out, position=[layer], dtype="source")
        assert not out.exists()
        return
    blockexpand.expand(source, out, position=[layer], dtype="source", check=True)
    before, after = run(source, 8), run(out, 9)
    assert all(torch.equal(after.logits[dtype], before.logits[dtype]) for dtype in after.logits)
    assert torch.equal(after.tokens, before.tokens)
    config = json.loads((out / "config.json").read_text())
    assert config["num_kv_shared_layers"] == (4 if layer >= 5 else 3)
    new = {n: t for n, t in read(out).items() if n.startswith(f"model.layers.{layer + 1}.")}
    assert {n.split(".")[3] for n, t in new.items() if not t.any()} == {
        *("post_attention_layernorm", "post_feedforward_layernorm", "post_per_layer_input_norm")
    }
    assert new[f"model.layers.{layer + 1}.layer_scalar"].item() == 1


def test_in_a_refused_place_the_function_would_change(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = replace(decoders.FAMILIES["gemma4_text"], places=())
    monkeypatch.setattr(decoders, "FAMILIES", {"gemma4_text": row})
    blockexpand.expand(source, tmp_path / "out", position=[3], dtype="source")
    models = [load(folder, torch.float32) for folder in (source, tmp_path / "out")]
    with torch.no_grad():
        before, after = (model(input_ids=tokens()).logits for model in models)
    assert (before - after).abs().max() > 0.1


TABLES: Mapping[str, dict[str, Any]] = {
    "as it is": {"dtype": "source"},
    "converted": {"dtype": "float32"},
    "narrowed": {"dtype": "float16"},
    "repacked": {"dtype": "source", "max_shard_size": "7KB"},
}


@pytest.mark.parametrize("options", TABLES.values(), ids=TABLES)
def test_the_tables_follow_the_layer_map(
    options: dict[str, Any], source: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    blockexpand.expand(source, out, position=[0, 2, 6, 6], **options)
    found = read(out)
    for name, table in expected_tables(source, [0, 0, 1, 2, 2, 3, 4, 5, 6, 6, 6, 7]).items():
        assert torch.equal(found[name], table.to(found[name].dtype))
    assert blockexpand.verify(source, out)[0].findings == ()


@pytest.mark.parametrize("name", [COLUMNS, ROWS])
def test_a_wrong_byte_in_a_new_part_is_found(name: str, source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    blockexpand.expand(source, out, position="end", new_layers=2, dtype="source")
    shard = next(file for file in out.glob("*.safetensors") if name in load_file(file))
    tensors = load_file(shard)
    tensors[name].view(torch.uint8)[-1, -1] ^= 1
    save_file(tensors, shard, metadata={"format": "pt"})
    (finding,) = [f for f in blockexpand.verify(source, out)[0].findings if f.tensor]
    assert finding.tensor == name and finding.offset == tensors[name].nbytes - 1


def test_diff_compares_the_parts_of_original_layers(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    blockexpand.expand(source, out, position=[1, 6], dtype="source")
    for sides in ((source, out), (out, source)):
        statuses = {t.name: t.status for t in blockexpand.diff(*sides).tensors}
        assert statuses[COLUMNS] == statuses[ROWS] == "same"
    shard = next(file for file in out.glob("*.safetensors") if COLUMNS in load_file(file))
    tensors = load_file(shard)
    tensors[COLUMNS][:, 8:12] += 1  # of the new layer 2
    save_file(tensors, shard, metadata={"format": "pt"})
    assert blockexpand.diff(source, out).lost == ()
    tensors[COLUMNS][:, 12:16] += 1  # of layer 2, now 3
    save_file(tensors, shard, metadata={"format": "pt"})
    assert [tensor.name for tensor in blockexpand.diff(source, out).lost] == [COLUMNS]


def test_what_another_program_saved_is_verified(source: Path, tmp_path: Path) -> None:
    out, saved = tmp_path / "out", tmp_path / "saved"
    blockexpand.expand(source, out, position=[1, 6], dtype="source")
    load(out, torch.float32).save_pretrained(saved)
    (saved / "block_expansion.json").write_bytes((out / "block_expansion.json").read_bytes())
    verification = blockexpand.verify(source, saved)[0]
    assert [f for f in verification.findings if f.tensor] == []
    tensors = read(saved)
    tensors[COLUMNS][0, 0] += 1
    save_file(tensors, saved / "model.safetensors", metadata={"format": "pt"})
    assert [f.tensor for f in blockexpand.verify(source, saved)[0].findings] == [COLUMNS]


@pytest.fixture(scope="module")
def cut(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The source in several shards."""
    folder = tmp_path_factory.mktemp("cut") / "cut"
    load(source, torch.bfloat16).save_pretrained(folder, max_shard_size="60KB")
    assert len(list(folder.glob("*.safetensors"))) > 2
    return folder


def test_from_the_hub_shard_by_shard_it_is_the_same(
    cut: Path, hub: HubServer, hub_cache: Path, tmp_path: Path
) -> None:
    hub.add_repo("org/e", cut)
    options: dict[str, Any] = {"position": [1, 6], "dtype": "source", "command": "the command"}
    blockexpand.expand("org/e", tmp_path / "a", stream=True, **options)
    blockexpand.expand("org/e", tmp_path / "b", reflink="never", **options)
    assert read_folder(tmp_path / "a") == read_folder(tmp_path / "b")


@pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")
def test_on_the_hub_it_is_the_same(
    cut: Path, hub: HubServer, hub_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("blockexpand.checkpoints.hub.pieces._WORTH_A_REQUEST_NBYTES", 16)
    token = "hf_abcdefghijklmnopqrstuvwxyz012345"
    hub.allow(token)
    hub.add_repo("org/e", cut)
    options: dict[str, Any] = {"position": [1, 6], "dtype": "source"}
    done = blockexpand.expand_on_hub(
        "org/e", "user/e", token=token, work=tmp_path / "work", **options
    ).done
    assert done.made
    blockexpand.expand(cut, tmp_path / "out", **options)
    own = ("README.md", "block_expansion.json")
    expected = {n: d for n, d in read_folder(tmp_path / "out").items() if n not in own}
    assert {n: d for n, d in hub.files("user/e").items() if n not in own} == expected


@pytest.mark.parametrize("dtype", ["source", "float32"])
def test_on_workers_it_is_the_same(dtype: str, cut: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"position": [1, 6], "dtype": dtype, "command": "the command"}
    blockexpand.expand(cut, tmp_path / "a", **options)
    with open_executor("process:2") as executor:
        blockexpand.expand(cut, tmp_path / "b", executor=executor, **options)
    assert read_folder(tmp_path / "a") == read_folder(tmp_path / "b")


def test_in_a_batch_a_refused_place_is_named_before_anything_is_written(
    cut: Path, tmp_path: Path
) -> None:
    jobs = tmp_path / "jobs.yaml"
    text = f"defaults: {{src: {cut}, dtype: source}}\njobs:\n"
    text += f"- {{out: {tmp_path}/a, position: [1, 6]}}\n"
    jobs.write_text(f"{text}- {{out: {tmp_path}/b, position: [3]}}\n")
    with pytest.raises(BlockExpandError, match=r"the nearest layers that can be cloned are 2, 5"):
        blockexpand.expand_batch(jobs)
    assert not (tmp_path / "a").exists()
    jobs.write_text(f"{text}- {{out: {tmp_path}/b, position: [2]}}\n")
    assert [result.state for result in blockexpand.expand_batch(jobs)] == ["done", "done"]
    for name, layers in {
        "a": [0, 1, 1, 2, 3, 4, 5, 6, 6, 7],
        "b": [0, 1, 2, 2, *range(3, 8)],
    }.items():
        found = read(tmp_path / name)
        for table, expected in expected_tables(cut, layers).items():
            assert torch.equal(found[table], expected)


def test_a_recipe_moves_the_parts_along(source: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yml"
    recipe.write_text(
        f"merge_method: passthrough\nslices:\n- sources: [{{model: {source}, layer_range: "
        f"[0, 6]}}]\n- sources: [{{model: {source}, layer_range: [5, 8]}}]\n"
    )
    blockexpand.merge(recipe, tmp_path / "out")
    found = read(tmp_path / "out")
    for name, table in expected_tables(source, [0, 1, 2, 3, 4, 5, 5, 6, 7]).items():
        assert torch.equal(found[name], table)
    load(tmp_path / "out", torch.float32)


def test_parts_of_two_models_are_not_joined(source: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    make_checkpoint(E, other, seed=1)
    (tmp_path / "recipe.yml").write_text(
        f"merge_method: passthrough\nslices:\n- sources: [{{model: {source}, layer_range: "
        f"[0, 6]}}]\n- sources: [{{model: {other}, layer_range: [6, 8]}}]\n"
    )
    with pytest.raises(RecipeError, match="take all layers from one model"):
        blockexpand.merge(tmp_path / "recipe.yml", tmp_path / "out")


def test_block_adapters_are_refused(source: Path, tmp_path: Path) -> None:
    blockexpand.expand(source, tmp_path / "out", position=[1], dtype="source")
    with pytest.raises(UnsupportedModelError, match="keep the whole expanded model"):
        blockexpand.extract(tmp_path / "out", tmp_path / "adapter", base=source)


def test_new_parts_of_the_tables_are_counted_as_new(source: Path, tmp_path: Path) -> None:
    plan = blockexpand.expand(source, tmp_path / "out", position=[1, 6], dtype="source").plan
    counted = blockexpand.count_parameters(plan)
    assert counted.original == sum(tensor.numel() for tensor in read(source).values())
    assert counted == show(tmp_path / "out").parameters


@pytest.mark.parametrize("change", ["missing", "narrow"])
def test_a_table_that_does_not_fit_the_layers_is_refused(
    change: str, source: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "source"
    folder.mkdir()
    (folder / "config.json").write_bytes((source / "config.json").read_bytes())
    tensors = read(source)
    table = tensors.pop(COLUMNS)
    if change == "narrow":
        tensors[COLUMNS] = table[:, :28].contiguous()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    expected = "is missing" if change == "missing" else "expected 8 x 4"
    with pytest.raises(CheckpointError, match=expected):
        blockexpand.expand(folder, tmp_path / "out", new_layers=1)
