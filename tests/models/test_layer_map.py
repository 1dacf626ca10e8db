"""Positions and the layer maps that they mean; the expectations are written down by hand."""

from __future__ import annotations

import itertools
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blockexpand.errors import RecipeError
from blockexpand.models.layer_map import LayerEntry, LayerMap, has_equal_groups, map_position


def spell(layer_map: LayerMap) -> str:
    """Write a map as in the design: `0 1 1*`."""
    return " ".join(f"{entry.source}{'*' if entry.is_new else ''}" for entry in layer_map)


@pytest.mark.parametrize(
    ("layers", "position", "new_layers", "expected"),
    [
        (4, "end", 1, "0 1 2 3 3*"),
        (4, "end", 3, "0 1 2 3 3* 3* 3*"),
        (4, "start", 2, "0* 0* 0 1 2 3"),
        (4, "interleaved", 2, "0 1 1* 2 3 3*"),
        (4, "interleaved", 4, "0 0* 1 1* 2 2* 3 3*"),
        (2, "interleaved", 4, "0 0* 0* 1 1* 1*"),
        (4, (1,), None, "0 1 1* 2 3"),
        (4, (3, 0), None, "0 0* 1 2 3 3*"),
        (4, (2, 2), None, "0 1 2 2* 2* 3"),
        (4, (2, 2), 2, "0 1 2 2* 2* 3"),
        (1, "end", 1, "0 0*"),
    ],
)
def test_each_position_means_what_it_says(
    layers: int, position: str | tuple[int, ...], new_layers: int | None, expected: str
) -> None:
    assert spell(map_position(layers, position, new_layers)) == expected


def test_the_paper_interleaves_four_blocks_with_32_layers_like_this() -> None:
    layer_map = map_position(32, "interleaved", 4)
    new = {i: entry.source for i, entry in enumerate(layer_map) if entry.is_new}
    assert new == {8: 7, 17: 15, 26: 23, 35: 31}
    assert map_position(32, (7, 15, 23, 31), None) == layer_map
    assert has_equal_groups(layer_map)


@given(st.integers(1, 60), st.integers(1, 60))
def test_interleaved_groups_are_as_even_as_can_be(layers: int, new_layers: int) -> None:
    layer_map = map_position(layers, "interleaved", new_layers)
    assert [entry.source for entry in layer_map if not entry.is_new] == list(range(layers))
    ends = [entry.source for entry in layer_map if entry.is_new]
    assert len(ends) == new_layers
    assert ends[-1] == layers - 1
    sizes = [end - begin for begin, end in zip([-1, *ends], ends, strict=False)]
    assert max(sizes) - min(sizes) <= 1
    # Each clone stands directly behind its source or another clone of it.
    for before, entry in itertools.pairwise(layer_map):
        assert not entry.is_new or before.source == entry.source


@pytest.mark.parametrize(
    ("position", "new_layers", "message"),
    [
        ("end", 0, "0 new layers: expected at least 1"),
        ("interleaved", -1, "-1 new layers"),
        ("end", None, "needs the number of new layers"),
        ("middle", 1, "position 'middle' is unknown"),
        ((4,), None, r"position 4: the model has layers 0 to 3 \(counted from 0\)"),
        ((-1,), None, "position -1"),
        ((), None, "the list of layers to clone is empty"),
        ((1, 2), 3, "3 new layers contradict a list of 2"),
    ],
)
def test_requests_without_sense_are_refused(
    position: str | tuple[int, ...], new_layers: int | None, message: str
) -> None:
    with pytest.raises(RecipeError, match=message):
        map_position(4, position, new_layers)


@pytest.mark.parametrize("position", ["end", "start", "interleaved"])
def test_a_billion_new_layers_are_refused_at_once(position: str) -> None:
    start = time.perf_counter()
    with pytest.raises(RecipeError, match="expected at most 10000 layers"):
        map_position(32, position, 10**9)
    assert time.perf_counter() - start < 0.5


def test_a_long_list_is_mapped_fast() -> None:
    start = time.perf_counter()
    layer_map = map_position(4000, tuple(range(4000)), None)
    assert len(layer_map) == 8000
    assert time.perf_counter() - start < 0.5


@pytest.mark.parametrize(
    ("spelled", "equal"),
    [
        ("0 1 1* 2 3 3*", True),
        ("0 1 2 3 3*", True),
        ("0 1 2 3 3* 3*", False),
        ("0 0* 1 2 2*", False),
        ("0 1 2", False),
        ("0* 0 1", False),
    ],
)
def test_equal_groups_are_told_from_others(spelled: str, equal: bool) -> None:
    layer_map = tuple(
        LayerEntry(source=int(word.rstrip("*")), is_new=word.endswith("*"))
        for word in spelled.split()
    )
    assert has_equal_groups(layer_map) is equal
