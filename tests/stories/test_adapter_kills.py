"""Saving blocks and putting them back, killed at any call: nothing half made, nothing lost."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from checkpoints import read_tensors
from faults import (
    Case,
    Nursery,
    make_source,
    names_beside,
    place,
    scratch,
    snapshot,
    source_state,
    spread,
)
from test_kill import check_kills
from trained import move_new_blocks

import blockexpand


@pytest.fixture(scope="module")
def nursery(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nursery]:
    with Nursery(tmp_path_factory.mktemp("nursery")) as nursery:
        yield nursery


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    with scratch(tmp_path) as folder:
        yield folder


def learn(nursery: Nursery, out: Path, source: Path, command: tuple[object, ...]) -> Case:
    """Run a command undisturbed, to know its calls and what it makes."""
    out.parent.mkdir()
    before = source_state(source)
    done = nursery.run(command)
    assert done.code == 0, done.err
    assert source_state(source) == before
    assert names_beside(out) == []
    return Case(
        source=source,
        out=out,
        command=command,
        old=None,
        lacks=(),
        before=before,
        wanted=snapshot(out),
        steps=tuple(call.name for call in done.calls),
    )


def test_a_kill_at_any_call_costs_and_damages_nothing(nursery: Nursery, folder: Path) -> None:
    base = make_source(folder / "base")
    trained = move_new_blocks(base, folder / "trained")
    blocks = folder / "extracted" / "blocks"
    saving = learn(
        nursery, blocks, trained, ("extract", trained, "--base", base, "--out", blocks, "-q")
    )
    check_kills(nursery, saving, spread(saving.calls, 45))

    place(None, blocks)
    assert nursery.run(saving.command).code == 0
    out = folder / "applied" / "out"
    applying = learn(nursery, out, base, ("apply", base, blocks, "--out", out, "-q"))
    check_kills(nursery, applying, spread(applying.calls, 60))
    assert nursery.run(applying.command).code in (0, 3)
    applied, wanted = read_tensors(out), read_tensors(trained)
    assert {name: tensor[:3] for name, tensor in applied.items()} == {
        name: tensor[:3] for name, tensor in wanted.items()
    }


@pytest.mark.mount
def test_applied_blocks_are_shared_on_a_file_system_that_can(tmp_path: Path) -> None:
    from faults import mounted

    with mounted("xfs", tmp_path, 700 << 20) as point:
        import os

        base = make_source(point / "base", layers=4, hidden=512, intermediate=4096, vocabulary=8192)
        trained = move_new_blocks(base, point / "trained")
        blocks = blockexpand.extract(trained, point / "blocks", base=base)
        os.sync()
        before = os.statvfs(point)
        blockexpand.apply(base, blocks.out, out=point / "out")
        os.sync()
        after = os.statvfs(point)
        taken = (before.f_bfree - after.f_bfree) * before.f_frsize
        assert read_tensors(point / "out").keys() == read_tensors(trained).keys()
        size = sum(path.stat().st_size for path in (point / "out").iterdir())
        assert size > 60_000_000
        assert taken < blocks.nbytes + 1_000_000, (taken, blocks.nbytes, size)
