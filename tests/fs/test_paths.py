"""Which folders are one, or lie in each other, by whatever paths; and what that costs to know."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blockexpand.fs.paths import FolderIndex, existing_folder, overlaps


def test_the_nearest_folder_that_exists(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    assert existing_folder(tmp_path / "a" / "b") == tmp_path
    assert existing_folder(tmp_path / "file" / "b") == tmp_path
    assert existing_folder(tmp_path) == tmp_path
    monkeypatch.chdir(tmp_path)
    assert existing_folder(Path("a")) == tmp_path


@settings(max_examples=200, deadline=None)
@given(st.lists(st.lists(st.sampled_from("ab"), max_size=4), min_size=1, max_size=6))
def test_what_lies_in_what_is_what_the_paths_say(names: list[list[str]]) -> None:
    """Of folders that are not there nothing else is known."""
    paths = [Path("/nowhere", *parts) for parts in names]
    index: FolderIndex[Path] = FolderIndex()
    for path in paths:
        index.add(path, path)
    for path in paths:
        around = {other for other in paths if path.is_relative_to(other)}
        assert set(index.find(path)) == around
        for other in paths:
            expected = path.is_relative_to(other) or other.is_relative_to(path)
            assert overlaps(path, other) == overlaps(other, path) == expected


def test_a_folder_is_known_by_another_path_too(tmp_path: Path) -> None:
    """A link stands for a bind mount, which only root can make: one folder, two paths."""
    inner = tmp_path / "out" / "inner"
    inner.mkdir(parents=True)
    other = tmp_path / "other"
    other.symlink_to(inner, target_is_directory=True)
    assert overlaps(tmp_path / "out", other)
    assert overlaps(tmp_path / "out", other / "new")
    assert overlaps(other, inner / "new")
    assert overlaps(other / "new", inner)
    assert not overlaps(tmp_path / "beside", other)


def test_ten_thousand_folders_are_looked_at_once_each(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks = 0
    stat = os.stat

    def count(path: object, **options: object) -> os.stat_result:
        nonlocal looks
        looks += 1
        return stat(path, **options)  # type: ignore[call-overload, no-any-return]

    monkeypatch.setattr(os, "stat", count)
    index: FolderIndex[int] = FolderIndex()
    outs = [tmp_path / "runs" / str(number % 100) / str(number) for number in range(10_000)]
    for number, out in enumerate(outs):
        index.add(out, number)
    assert all(index.find(out) == [number] for number, out in enumerate(outs))
    assert 0 < looks < 2 * len(outs) + 200
