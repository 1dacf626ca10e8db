"""What cannot end well is told before the first byte, in the words of the run and the dry run."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from faults import make_source, mounted, names_beside

import blockexpand
from blockexpand.api.expansion import preview_expansion
from blockexpand.checkpoints.checkpoint import open_checkpoint
from blockexpand.errors import BlockExpandError, OutputError
from blockexpand.fs.reading import FileStat
from blockexpand.planning.plan import Plan, make_plan
from blockexpand.planning.recipe import Recipe
from blockexpand.planning.shards import Document
from blockexpand.progress import SILENT
from blockexpand.writing.preflight import check_write
from blockexpand.writing.target import WriteOptions
from blockexpand.writing.writer import write


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return make_source(tmp_path / "source")


@pytest.fixture
def plan(source: Path) -> Plan:
    return make_plan(open_checkpoint(source), Recipe(new_layers=1))


def refuse(source: Path, out: Path, **options: object) -> str:
    """Return what the run and the dry run both say; nothing is left beside the output."""
    before = sorted(out.parent.iterdir()) if out.parent.is_dir() else None
    said = []
    for function in blockexpand.expand, preview_expansion:
        with pytest.raises(BlockExpandError) as caught:
            function(source, out, new_layers=1, **options)  # type: ignore[operator]
        said.append(str(caught.value))
    assert said[0] == said[1]
    assert "\n" not in said[0]
    assert (sorted(out.parent.iterdir()) if out.parent.is_dir() else None) == before
    return said[0]


@pytest.mark.parametrize(
    "name",
    ["/etc/passwd", "../x", "a/../../x", "a//b", "./x", "", ".", "a/.", "x\0y", "a/"],
)
@pytest.mark.parametrize("kind", ["side file", "document", "shard"])
def test_no_name_of_a_plan_leaves_the_staging_folder(
    kind: str, name: str, plan: Plan, tmp_path: Path
) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    name = str(victim) if name == "/etc/passwd" else name
    if kind == "side file":
        file = FileStat(name=name, nbytes=8, mtime_ns=victim.stat().st_mtime_ns)
        plan = replace(plan, side_files=(*plan.side_files, file))
    elif kind == "document":
        plan = replace(plan, documents=(*plan.documents, Document(name=name, data=b"evil")))
    else:
        plan = replace(plan, files=(replace(plan.files[0], name=name), *plan.files[1:]))
    with pytest.raises(OutputError, match="which is no name inside a folder"):
        write(plan, tmp_path / "out", WriteOptions(), SILENT)
    assert victim.read_text() == "precious"
    assert names_beside(tmp_path / "out") == ["source", "victim"]


def test_two_files_of_one_name_are_refused(plan: Plan, tmp_path: Path) -> None:
    plan = replace(plan, documents=(*plan.documents, plan.documents[0]))
    with pytest.raises(
        OutputError, match=r"two files of the output would be called 'config\.json'"
    ):
        check_write(plan, tmp_path / "out", WriteOptions())


def test_links_that_lead_in_a_circle(source: Path, tmp_path: Path) -> None:
    (tmp_path / "one").symlink_to(tmp_path / "two")
    (tmp_path / "two").symlink_to(tmp_path / "one")
    assert "is a symbolic link that leads back to itself" in refuse(source, tmp_path / "one")


def test_a_parent_that_is_a_file(source: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    said = refuse(source, tmp_path / "file" / "deep" / "out")
    assert f"{tmp_path / 'file'}: is no folder" in said


def run_as_nobody(function: Callable[[], object]) -> str:
    """Return what a function raises for a user who is not root."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.setgroups([])
        os.setgid(65534)
        os.setuid(65534)
        try:
            function()
            said = "nothing was raised"
        except BaseException as error:
            said = f"{type(error).__name__}: {error}"
        os.write(writing, said.encode())
        os._exit(0)
    os.waitpid(pid, 0)
    os.close(writing)
    with os.fdopen(reading) as stream:
        return stream.read()


@pytest.mark.skipif(os.name == "nt" or os.geteuid() != 0, reason="needs another user")
def test_a_parent_that_may_not_be_written_to(plan: Plan, tmp_path: Path) -> None:
    # The output is there, empty and theirs; what holds it is not.
    for path in (tmp_path, *tmp_path.parents):
        path.chmod(path.stat().st_mode | 0o055)
    parent = tmp_path / "parent"
    out = parent / "out"
    out.mkdir(parents=True)
    os.chown(out, 65534, 65534)
    said = run_as_nobody(lambda: check_write(plan, out, WriteOptions()))
    assert said == (
        f"OutputError: {parent}: cannot make a file in it: Permission denied; the output is made "
        f"beside {out} and then renamed, so the folder above it has to be writable: check the "
        "permissions, or choose another output folder"
    )


@pytest.mark.skipif(os.name == "nt" or os.geteuid() != 0, reason="needs another user")
def test_another_users_output_in_a_folder_of_all(source: Path, plan: Plan, tmp_path: Path) -> None:
    for path in (tmp_path, *tmp_path.parents):
        path.chmod(path.stat().st_mode | 0o055)
    parent = tmp_path / "scratch"
    parent.mkdir()
    out = parent / "out"
    blockexpand.expand(source, out, new_layers=2)
    parent.chmod(0o1777)
    said = run_as_nobody(lambda: check_write(plan, out, WriteOptions(overwrite=True)))
    assert "OutputError" in said
    assert "cannot be replaced" in said


@pytest.mark.mount
def test_an_output_of_a_lower_layer_is_refused_before_the_first_byte(
    source: Path, tmp_path: Path
) -> None:
    lower, merged = tmp_path / "lower", tmp_path / "merged"
    lower.mkdir()
    merged.mkdir()
    blockexpand.expand(source, lower / "out", new_layers=2)
    with mounted("tmpfs", tmp_path, 8 << 20) as point:
        for name in ("upper", "work"):
            (point / name).mkdir()
        options = f"lowerdir={lower},upperdir={point / 'upper'},workdir={point / 'work'}"
        done = subprocess.run(["mount", "-t", "overlay", "overlay", "-o", options, merged])
        if done.returncode != 0:
            pytest.skip("overlayfs cannot be mounted here")
        try:
            said = refuse(source, merged / "out", overwrite=True)
        finally:
            subprocess.run(["umount", merged], check=True)
    assert "cannot be replaced: Invalid cross-device link: it is part of a container's" in said


@pytest.mark.mount
def test_an_output_that_is_a_bind_mount_of_the_same_file_system(
    source: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    other.mkdir()
    with mounted("bind", tmp_path, 0, str(other)) as point:
        assert "is a mount point, which no finished folder" in refuse(source, point)
        (point / "config.json").write_text("{}")
        assert "is a mount point" in refuse(source, point, overwrite=True)


def test_blocks_that_must_be_shared_and_cannot(source: Path, tmp_path: Path) -> None:
    assert "cannot share blocks with the source" in refuse(
        source, tmp_path / "out", reflink="always"
    )


def test_a_dry_run_says_what_it_finds(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    preview = preview_expansion(source, out, new_layers=1)
    assert preview.write is not None
    assert preview.write.needed is not None
    # The zeros of a new block are holes.
    assert 0 < preview.write.needed <= preview.plan.nbytes
    assert (preview.write.found, preview.write.replaced, preview.finished) == (0, None, None)
    blockexpand.expand(source, out, new_layers=1)
    assert "already there" in str(preview_expansion(source, out, new_layers=1).finished)
    again = preview_expansion(source, out, new_layers=2, overwrite=True)
    assert again.write is not None
    assert again.write.replaced is not None
    assert again.write.replaced.names == tuple(sorted(path.name for path in out.iterdir()))
    linked = preview_expansion(
        source, tmp_path / "linked", new_layers=1, hardlink=True, dtype="source"
    )
    assert linked.write is not None
    shards = [file.nbytes for file in linked.plan.files if file.identical_to]
    assert linked.write.linked == sum(shards) > 0
