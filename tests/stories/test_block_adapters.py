"""Expand, train, extract, apply: the trained model again, byte for byte, and the base again."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from checkpoints import read_tensors
from trained import CONFIGS, Trained, generate, load, logits, make_base, make_trained, train

import blockexpand
from blockexpand.errors import BlockExpandError, CheckpointError, TrainingError


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return make_trained(tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="module")
def blocks(llama: Trained, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("blocks") / "blocks"
    return blockexpand.extract(llama.trained, out, base=llama.base).out


@pytest.mark.parametrize("model_type", CONFIGS)
def test_a_round_trip_gives_the_trained_model_and_the_base(model_type: str, tmp_path: Path) -> None:
    import torch

    made = make_trained(tmp_path, model_type, position="2,3" if model_type == "olmo2" else "end")
    found = blockexpand.extract(made.trained, tmp_path / "blocks", base=made.base)
    blockexpand.apply(made.base, found.out, out=tmp_path / "applied")
    applied, trained = read_tensors(tmp_path / "applied"), read_tensors(made.trained)
    assert applied.keys() == trained.keys()
    for name, tensor in trained.items():
        assert applied[name][:3] == tensor[:3], name
    again = load(tmp_path / "applied")
    assert torch.equal(logits(again), logits(load(made.trained)))

    base = load(made.base)
    before, said = logits(base), generate(base)
    blockexpand.apply(made.base, found.out, out=tmp_path / "neutral", scale=0)
    assert torch.equal(logits(load(tmp_path / "neutral")), before)

    assert blockexpand.attach(base, found.out) == found.adapter.new_layers
    assert torch.equal(logits(base), logits(again))
    assert not torch.equal(logits(base), before)
    assert generate(base) == generate(again)
    blockexpand.detach(base)
    assert torch.equal(logits(base), before)
    assert generate(base) == said


def test_an_adapter_holds_the_new_blocks_alone(llama: Trained, blocks: Path) -> None:
    assert sorted(path.name for path in blocks.iterdir()) == [
        "README.md",
        "block_adapter.json",
        "blocks.safetensors",
    ]
    trained = read_tensors(llama.trained)
    new = json.loads((llama.expanded / "block_expansion.json").read_text())["new_layers"]
    stored = read_tensors(blocks)
    assert {name.split(".")[2] for name in stored} == set(map(str, new))
    assert all(stored[name][:3] == trained[name][:3] for name in stored)
    card = (blocks / "README.md").read_text()
    assert "license: mit" in card and str(llama.base.parent) not in card


def test_a_changed_original_is_refused_and_can_be_stored(llama: Trained, tmp_path: Path) -> None:
    import torch

    model = load(llama.trained)
    with torch.no_grad():
        model.model.norm.weight.add_(1.0)
    model.save_pretrained(tmp_path / "norm")
    shutil.copy(llama.expanded / "block_expansion.json", tmp_path / "norm")
    with pytest.raises(CheckpointError, match=r"model\.norm\.weight.*--with-changed"):
        blockexpand.extract(tmp_path / "norm", tmp_path / "out", base=llama.base)
    assert not (tmp_path / "out").exists()
    blockexpand.extract(tmp_path / "norm", tmp_path / "out", base=llama.base, with_changed=True)
    assert "were trained too" in (tmp_path / "out" / "README.md").read_text()
    blockexpand.apply(llama.base, tmp_path / "out", out=tmp_path / "applied")
    assert torch.equal(logits(load(tmp_path / "applied")), logits(model))


def test_the_new_layers_are_found_without_a_manifest(llama: Trained, tmp_path: Path) -> None:
    """As trainers save it: nothing but tensors and a config."""
    shutil.copytree(llama.trained, tmp_path / "bare")
    (tmp_path / "bare" / "block_expansion.json").unlink()
    found = blockexpand.extract(tmp_path / "bare", tmp_path / "out", base=llama.base)
    stated = blockexpand.extract(llama.trained, tmp_path / "stated", base=llama.base)
    assert found.adapter.layer_map == stated.adapter.layer_map
    with pytest.raises(CheckpointError, match="do not tell which layers are new"):
        blockexpand.extract(llama.base, tmp_path / "none", base=llama.base)


def test_verify_knows_an_applied_model(llama: Trained, blocks: Path, tmp_path: Path) -> None:
    out = blockexpand.apply(llama.base, blocks, out=tmp_path / "applied").out
    found = blockexpand.verify(llama.base, out)
    assert found.ok and found.verification.trained
    assert any("block adapters were put on" in note for note in found.verification.notes)
    assert not any("unknown fields" in note for note in found.verification.notes)


def test_originals_saved_wider_are_known(llama: Trained, tmp_path: Path) -> None:
    """A base in bfloat16, trained and saved in float32: every value of the base is the same."""
    import torch

    half = load(llama.base).to(torch.bfloat16)
    half.save_pretrained(tmp_path / "base")
    blockexpand.expand(tmp_path / "base", tmp_path / "expanded", new_layers=2, dtype="source")
    train(tmp_path / "expanded", tmp_path / "trained", dtype="float32")
    found = blockexpand.extract(tmp_path / "trained", tmp_path / "blocks", base=tmp_path / "base")
    assert any("wider dtype" in note for note in found.notes)
    assert {tensor.spec.dtype for tensor in found.adapter.tensors.values()} == {"F32"}


def test_a_head_that_is_tied_may_be_stored_or_not(tmp_path: Path) -> None:
    made = make_trained(tmp_path, tie_word_embeddings=True)
    path = made.trained / "model.safetensors"
    import safetensors.torch

    tensors = safetensors.torch.load_file(path)
    assert "lm_head.weight" not in tensors
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    safetensors.torch.save_file(tensors, path, metadata={"format": "pt"})
    blockexpand.extract(made.trained, tmp_path / "blocks", base=made.base)


def test_another_sharding_of_the_base_is_the_base(
    llama: Trained, blocks: Path, tmp_path: Path
) -> None:
    load(llama.base).save_pretrained(tmp_path / "base", max_shard_size="100KB")
    result = blockexpand.apply(tmp_path / "base", blocks, out=tmp_path / "out")
    assert any("every byte" in note for note in result.notes)


def test_another_base_is_refused_unless_forced(
    llama: Trained, blocks: Path, tmp_path: Path
) -> None:
    import torch

    model = load(llama.base)
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[0, 0] += 1
    model.save_pretrained(tmp_path / "base")
    with pytest.raises(CheckpointError, match=r"layers\.1\.mlp\.up_proj.*other values.*--force"):
        blockexpand.apply(tmp_path / "base", blocks, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()
    blockexpand.apply(tmp_path / "base", blocks, out=tmp_path / "trusted", trust_base=True)
    said = (tmp_path / "trusted" / "README.md").read_text()
    assert "were not looked at" in said
    blockexpand.apply(tmp_path / "base", blocks, out=tmp_path / "forced", force_base=True)
    said = (tmp_path / "forced" / "README.md").read_text()
    assert "nother base than the blocks were trained in" in said


@pytest.mark.parametrize("changes", [{"num_hidden_layers": 5}, {"intermediate_size": 128}])
def test_a_base_of_another_shape_is_refused_also_if_forced(
    changes: dict[str, int], blocks: Path, tmp_path: Path
) -> None:
    other = make_base(tmp_path / "other", **changes)
    with pytest.raises(CheckpointError, match="does not fit this base"):
        blockexpand.apply(other, blocks, out=tmp_path / "out", force_base=True)
    assert not (tmp_path / "out").exists()


def test_a_half_scale_lies_between(llama: Trained, blocks: Path, tmp_path: Path) -> None:
    blockexpand.apply(llama.base, blocks, out=tmp_path / "half", scale=0.5)
    trained, half = read_tensors(llama.trained), read_tensors(tmp_path / "half")
    import numpy

    for name, tensor in trained.items():
        values = numpy.frombuffer(tensor.data, dtype="<f4")
        found = numpy.frombuffer(half[name].data, dtype="<f4")
        new = json.loads((blocks / "block_adapter.json").read_text())["new_layers"]
        closes = name.endswith(("o_proj.weight", "down_proj.weight"))
        scaled = closes and int(name.split(".")[2]) in new
        assert (found == (values * numpy.float32(0.5) if scaled else values)).all(), name


def test_two_adapters_are_a_composition(llama: Trained, blocks: Path, tmp_path: Path) -> None:
    blockexpand.expand(
        llama.base, tmp_path / "expanded", new_layers=1, position="end", dtype="source"
    )
    train(tmp_path / "expanded", tmp_path / "trained", seed=5)
    other = blockexpand.extract(tmp_path / "trained", tmp_path / "other", base=llama.base).out
    result = blockexpand.apply(llama.base, blocks, other, out=tmp_path / "both")
    assert [entry.source for entry in result.plan.layer_map] == [0, 1, 1, 2, 3, 3, 3]
    both = read_tensors(tmp_path / "both")
    first, second = read_tensors(blocks), read_tensors(other)
    norm = "model.layers.{}.mlp.up_proj.weight"
    assert both[norm.format(5)].data == first[norm.format(5)].data
    assert both[norm.format(6)].data == second[norm.format(4)].data
    card = (tmp_path / "both" / "README.md").read_text()
    assert "composition" in card and "untested" in card
    assert logits(load(tmp_path / "both")).isfinite().all()


def test_training_goes_on_in_an_applied_model(llama: Trained, blocks: Path, tmp_path: Path) -> None:
    blockexpand.apply(llama.base, blocks, out=tmp_path / "applied")
    train(tmp_path / "applied", tmp_path / "further", seed=9)
    again = blockexpand.extract(tmp_path / "further", tmp_path / "again", base=llama.base)
    blockexpand.apply(llama.base, again.out, out=tmp_path / "out")
    further, out = read_tensors(tmp_path / "further"), read_tensors(tmp_path / "out")
    assert all(out[name].data == tensor.data for name, tensor in further.items())


def test_damage_is_found_before_anything_is_written(
    llama: Trained, blocks: Path, tmp_path: Path
) -> None:
    for name, damage in {
        "flipped": lambda folder: _flip(folder / "blocks.safetensors"),
        "short": lambda folder: _cut(folder / "blocks.safetensors"),
        "missing": lambda folder: (folder / "blocks.safetensors").unlink(),
        "none": lambda folder: (folder / "block_adapter.json").unlink(),
    }.items():
        copy = tmp_path / name
        shutil.copytree(blocks, copy)
        damage(copy)
        with pytest.raises(BlockExpandError, match=name if name != "none" else "block_adapter"):
            blockexpand.apply(llama.base, copy, out=tmp_path / "out")
        assert not (tmp_path / "out").exists()


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-8])


def test_attach_leaves_a_model_of_another_shape_as_it_was(blocks: Path, tmp_path: Path) -> None:
    import torch

    other = load(make_base(tmp_path / "other", num_hidden_layers=5))
    before = logits(other)
    with pytest.raises(TrainingError, match="5 layers"):
        blockexpand.attach(other, blocks)
    assert torch.equal(logits(other), before)
    with pytest.raises(TrainingError, match="no blocks attached"):
        blockexpand.detach(other)
