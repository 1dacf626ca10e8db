"""How far tensors have come, against the same sums done by torch on whole tensors."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import blockexpand
from blockexpand.verification import statistics
from blockexpand.verification.difference import Difference, TensorStatistics

NEW = "model.layers.3."


@pytest.fixture(scope="module")
def base(make_tiny: object) -> Path:
    return make_tiny(shards=1)  # type: ignore[operator, no-any-return]


@pytest.fixture(scope="module")
def expanded(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Layers 0 1 2 2* 3 3*."""
    out = tmp_path_factory.mktemp("expanded") / "out"
    blockexpand.expand(base, out, position=[2, 3], max_shard_size="1GB")
    return out


@pytest.fixture(scope="module")
def trained(expanded: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The expansion with three tensors of its first new block moved, in a known way."""
    out = tmp_path_factory.mktemp("trained") / "out"
    shutil.copytree(expanded, out)
    tensors = load_file(out / "model.safetensors")
    weight = tensors[f"{NEW}self_attn.q_proj.weight"].clone()
    weight[: weight.shape[0] // 4] *= 1.5
    tensors[f"{NEW}self_attn.q_proj.weight"] = weight
    for name in ("self_attn.o_proj", "mlp.down_proj"):
        torch.manual_seed(0)
        shape = tensors[f"{NEW}{name}.weight"].shape
        tensors[f"{NEW}{name}.weight"] = torch.randn(shape).to(torch.bfloat16)
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
    return out


def of(difference: Difference, name: str) -> TensorStatistics:
    (found,) = [t.statistics for t in difference.tensors if t.other_name == name]
    assert found is not None
    return found


def norm(tensor: torch.Tensor) -> float:
    return float(tensor.double().norm())


@pytest.mark.parametrize("slice_elements", [1 << 18, 1000])
def test_distances_are_those_of_whole_tensors(
    slice_elements: int,
    base: Path,
    expanded: Path,
    trained: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(statistics, "_SLICE_ELEMENTS", slice_elements)
    before, after = load_file(base / "model.safetensors"), load_file(trained / "model.safetensors")
    for start in (base, expanded):
        difference = blockexpand.diff(start, trained, stats=True)
        found = of(difference, f"{NEW}self_attn.q_proj.weight")
        source = before["model.layers.2.self_attn.q_proj.weight"]
        moved = after[f"{NEW}self_attn.q_proj.weight"].double() - source.double()
        assert found.distance == pytest.approx(norm(moved) / norm(source), rel=1e-12)
        assert found.changed_share == pytest.approx(0.25, abs=0.01)
        assert found.began_at is None
        zeroed = of(difference, f"{NEW}mlp.down_proj.weight")
        source = before["model.layers.2.mlp.down_proj.weight"]
        expected = norm(after[f"{NEW}mlp.down_proj.weight"]) / norm(source)
        assert zeroed.distance == pytest.approx(expected, rel=1e-12)
        assert zeroed.changed_share == pytest.approx(1, abs=0.01)
    # From the source the block began as zero, from the expansion as its tensor of zeros.
    assert of(blockexpand.diff(base, trained, stats=True), f"{NEW}mlp.down_proj.weight") == (
        TensorStatistics(
            compared_with="model.layers.2.mlp.down_proj.weight",
            began_at=0.0,
            distance=zeroed.distance,
            changed_share=zeroed.changed_share,
        )
    )


def test_what_is_the_same_has_not_moved(base: Path, expanded: Path, trained: Path) -> None:
    fresh = blockexpand.diff(base, expanded, stats=True)
    assert {t.statistics.distance for t in fresh.tensors if t.statistics} == {0.0}
    assert {t.statistics.changed_share for t in fresh.tensors if t.statistics} == {0.0}
    assert all(t.statistics for t in fresh.tensors)
    difference = blockexpand.diff(expanded, trained, stats=True)
    same = [t for t in difference.tensors if t.status == "same"]
    assert len(same) == len(difference.tensors) - 3
    assert all(t.statistics and t.statistics.distance == 0 for t in same)
    assert all(t.statistics is None for t in blockexpand.diff(base, trained).tensors)


def test_other_dtypes_are_compared_by_value_and_other_shapes_not_at_all(
    base: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    shutil.copytree(base, other)
    tensors = load_file(other / "model.safetensors")
    tensors = {name: tensor.float() for name, tensor in tensors.items()}
    tensors["model.norm.weight"] = torch.zeros(7)
    save_file(tensors, other / "model.safetensors", metadata={"format": "pt"})
    difference = blockexpand.diff(base, other, stats=True)
    assert {t.name for t in difference.tensors if t.status == "changed"} == {"model.norm.weight"}
    assert {t.status for t in difference.tensors} == {"changed", "same"}
    found = {t.name: t.statistics for t in difference.tensors}
    assert found.pop("model.norm.weight") is None
    assert all(s and (s.distance, s.changed_share) == (0.0, 0.0) for s in found.values())


def test_what_was_zero_and_is_not_has_no_relative_distance(base: Path, tmp_path: Path) -> None:
    zero, other = tmp_path / "zero", tmp_path / "other"
    for folder, value in ((zero, 0.0), (other, 1.0)):
        shutil.copytree(base, folder)
        tensors = load_file(folder / "model.safetensors")
        tensors["model.norm.weight"] = torch.full_like(tensors["model.norm.weight"], value)
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    found = of(blockexpand.diff(zero, other, stats=True), "model.norm.weight")
    assert (found.distance, found.changed_share) == (None, 1.0)
