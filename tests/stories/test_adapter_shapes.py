"""Blocks taken out of what trainers leave: other shards, names and files; models that also see."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from checkpoints import read_tensors
from faults import make_source
from trained import load, move_new_blocks, move_values

import blockexpand


def make_seeing(folder: Path) -> Path:
    """Save a tiny Gemma 3 that sees, every parameter random."""
    import torch
    import transformers

    text = {
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 320,
        "num_hidden_layers": 6,
        "head_dim": 16,
        "max_position_embeddings": 256,
        "sliding_window": 16,
    }
    vision = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": 28,
        "patch_size": 14,
    }
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(
        "gemma3", text_config=text, vision_config=vision, mm_tokens_per_image=4, image_token_id=5
    )
    model = transformers.AutoModelForImageTextToText.from_config(config, dtype=torch.float32)
    move_values(model, 1)
    model.save_pretrained(folder)
    return folder


def see(model: Any) -> Any:
    """Return the logits of a picture and some words."""
    import torch

    tokens = torch.tensor([[2, 5, 5, 5, 5, *range(10, 30)]])
    picture = torch.linspace(-1, 1, 3 * 28 * 28).reshape(1, 3, 28, 28)
    with torch.no_grad():
        return model(
            input_ids=tokens, pixel_values=picture, token_type_ids=(tokens == 5).long()
        ).logits


def learn(expanded: Path, out: Path) -> Path:
    """Train the new blocks for some steps, really, and save the model as a trainer does."""
    import torch

    model = load(expanded).train()
    blockexpand.freeze_original_layers(model, expanded)
    moving = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(moving, lr=1e-2)
    tokens = torch.arange(10, 42).unsqueeze(0)
    losses = []
    for _ in range(4):
        loss = model(input_ids=tokens, labels=tokens, token_type_ids=torch.zeros_like(tokens)).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    model.save_pretrained(out, max_shard_size="200KB")
    return out


@pytest.mark.parametrize("position", ["1,1,4", "interleaved"])
def test_a_model_that_sees_is_trained_taken_apart_and_put_together(
    tmp_path: Path, position: str
) -> None:
    import torch

    base = make_seeing(tmp_path / "base")
    count = None if "," in position else 2
    blockexpand.expand(
        base, tmp_path / "expanded", new_layers=count, position=position, dtype="source"
    )
    trained = learn(tmp_path / "expanded", tmp_path / "trained")
    blocks = blockexpand.extract(trained, tmp_path / "blocks", base=base)
    blockexpand.apply(base, blocks.out, out=tmp_path / "applied")
    applied, wanted = read_tensors(tmp_path / "applied"), read_tensors(trained)
    assert {k: v[:3] for k, v in applied.items()} == {k: v[:3] for k, v in wanted.items()}
    saw = see(load(base))
    assert torch.equal(see(load(tmp_path / "applied")), see(load(trained)))
    assert not torch.equal(see(load(trained)), saw)
    blockexpand.apply(base, blocks.out, out=tmp_path / "neutral", scale=0)
    assert torch.equal(see(load(tmp_path / "neutral")), saw)
    model = load(base)
    blockexpand.attach(model, blocks.out)
    assert torch.equal(see(model), see(load(trained)))
    blockexpand.detach(model)
    assert torch.equal(see(model), saw)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """Return a base, its trained expansion, and the blocks of that one."""
    folder = tmp_path_factory.mktemp("made")
    base = make_source(folder / "base", dtype="F32")
    trained = move_new_blocks(base, folder / "trained")
    return base, trained, blockexpand.extract(trained, folder / "blocks", base=base).out


def rewrite(folder: Path, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """Save a checkpoint's tensors anew, in one file, without index and manifest."""
    import safetensors.torch

    tensors: dict[str, Any] = {}
    for path in sorted(folder.glob("*.safetensors")):
        tensors |= safetensors.torch.load_file(path)
        path.unlink()
    (folder / "model.safetensors.index.json").unlink(missing_ok=True)
    (folder / "block_expansion.json").unlink(missing_ok=True)
    changed = {name: tensor.clone() for name, tensor in change(tensors).items()}
    safetensors.torch.save_file(changed, folder / "model.safetensors", metadata={"format": "pt"})


def add_state(folder: Path) -> None:
    """Add what a trainer keeps beside a checkpoint to go on from."""
    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth", "training_args.bin"):
        (folder / name).write_bytes(b"\x80\x02not to be opened")
    (folder / "trainer_state.json").write_text("{}")


def reverse_index(folder: Path) -> None:
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    index["weight_map"] = dict(reversed(index["weight_map"].items()))
    path.write_text(json.dumps(index))


SHAPES: dict[str, Callable[[Path], Any]] = {
    "one file without a manifest": lambda folder: rewrite(folder, lambda t: t),
    "a checkpoint folder with an optimizer": add_state,
    "an index in another order": reverse_index,
    "minus zeros": lambda folder: rewrite(
        folder, lambda t: {k: -0.0 * v if not v.any() else v for k, v in t.items()}
    ),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_what_trainers_leave_is_taken(
    made: tuple[Path, Path, Path], tmp_path: Path, shape: str
) -> None:
    base, trained, blocks = made
    shutil.copytree(trained, tmp_path / "checkpoint-500")
    SHAPES[shape](tmp_path / "checkpoint-500")
    found = blockexpand.extract(tmp_path / "checkpoint-500", tmp_path / "out", base=base)
    expected = {name: tensor[:3] for name, tensor in read_tensors(blocks).items()}
    assert {k: v[:3] for k, v in read_tensors(found.out).items()} == expected


@pytest.mark.parametrize("lead", ["module.", "_orig_mod.", "base_model.model."])
def test_names_of_a_wrapper_are_taken_off(
    made: tuple[Path, Path, Path], tmp_path: Path, lead: str
) -> None:
    base, trained, blocks = made
    shutil.copytree(trained, tmp_path / "trained")
    rewrite(tmp_path / "trained", lambda t: {lead + name: tensor for name, tensor in t.items()})
    found = blockexpand.extract(tmp_path / "trained", tmp_path / "out", base=base)
    expected = {name: tensor[:3] for name, tensor in read_tensors(blocks).items()}
    assert {k: v[:3] for k, v in read_tensors(found.out).items()} == expected


@pytest.mark.parametrize(
    "options", [{"hardlink": True}, {"max_shard_size": "50KB"}, {"reflink": "never"}]
)
def test_an_applied_model_is_the_same_however_it_is_written(
    made: tuple[Path, Path, Path], tmp_path: Path, options: dict[str, Any]
) -> None:
    base, trained, blocks = made
    blockexpand.apply(base, blocks, out=tmp_path / "out", **options)
    wanted = {name: tensor[:3] for name, tensor in read_tensors(trained).items()}
    assert {k: v[:3] for k, v in read_tensors(tmp_path / "out").items()} == wanted
    if "hardlink" in options:
        assert any(path.stat().st_nlink > 1 for path in (tmp_path / "out").iterdir())
    found = blockexpand.verify(base, tmp_path / "out")
    assert found.ok and found.verification.trained


def test_workers_write_an_applied_model(made: tuple[Path, Path, Path], tmp_path: Path) -> None:
    from concurrent.futures import ThreadPoolExecutor

    base, trained, blocks = made
    with ThreadPoolExecutor(2) as executor:
        blockexpand.apply(base, blocks, out=tmp_path / "out", executor=executor)
    wanted = {name: tensor[:3] for name, tensor in read_tensors(trained).items()}
    assert {k: v[:3] for k, v in read_tensors(tmp_path / "out").items()} == wanted
