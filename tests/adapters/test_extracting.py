"""Tests of comparing a trained model with its base, by digests alone."""

from __future__ import annotations

from collections.abc import ValuesView

from blockexpand.adapters.extraction import compare_with_base
from blockexpand.adapters.format import DigestedTensor
from blockexpand.formats.tensor_spec import make_tensor_spec

SPEC = make_tensor_spec("BF16", (2, 3))


class Names(dict[str, str]):
    """Counts how often it is gone through."""

    walks = 0

    def values(self) -> ValuesView[str]:  # type: ignore[override]
        self.walks += 1
        return super().values()


def test_names_are_gone_through_once_however_many_tensors_there_are() -> None:
    base = {f"t{i}": DigestedTensor(SPEC, f"{i:064x}") for i in range(100)}
    trained = base | {"new": DigestedTensor(SPEC, "f" * 64)}
    names = Names({name: name for name in trained})
    expected = {name: (name, False) for name in base} | {"new": ("t0", True)}
    found = compare_with_base(expected, base, trained, names, {}, "model")
    assert found.new == {"new": "new"}
    assert not found.changed
    assert names.walks == 1
