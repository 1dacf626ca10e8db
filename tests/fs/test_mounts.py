"""The system's list of mounts, read as it is written; names may hold anything."""

from __future__ import annotations

from pathlib import Path

import pytest
from faults import mounted

from blockexpand.fs import mounts
from blockexpand.fs.mounts import Mount, file_system_kind, find_mounts_in, read_mounts

LISTED = rb"""
22 1 259:1 / / rw,relatime shared:1 - ext4 /dev/nvme0n1p1 rw
31 22 0:26 / /data/a\040b\134c rw master:2 propagate_from:1 - nfs4 server:/x rw,vers=4.2
40 22 259:1 /somewhere /data/out/deep rw - ext4 /dev/nvme0n1p1 rw
broken line
41 22 0:30 / /data/out\011x rw - fuse.sshfs you@host:/ rw
"""


def test_the_list_is_read(tmp_path: Path) -> None:
    file = tmp_path / "mountinfo"
    file.write_bytes(LISTED)
    assert read_mounts(file) == (
        Mount(point=Path("/"), device=(259, 1), kind="ext4"),
        Mount(point=Path("/data/a b\\c"), device=(0, 26), kind="nfs4"),
        Mount(point=Path("/data/out/deep"), device=(259, 1), kind="ext4"),
        Mount(point=Path("/data/out\tx"), device=(0, 30), kind="fuse.sshfs"),
    )
    assert read_mounts(tmp_path / "none") is None


def test_mounts_are_found_at_and_below_a_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    points = ("/", "/data/out/deep", "/data/outside", "/data/out")
    listed = tuple(Mount(point=Path(p), device=(0, 1), kind="x") for p in points)
    monkeypatch.setattr(mounts, "read_mounts", lambda: listed)
    assert find_mounts_in(Path("/data/out")) == (Path("/data/out"), Path("/data/out/deep"))
    assert find_mounts_in(Path("/data/out/other")) == ()


def test_where_there_is_no_list_folders_are_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mounts, "read_mounts", lambda: None)
    (tmp_path / "a" / "b").mkdir(parents=True)
    monkeypatch.setattr(Path, "is_mount", lambda path: path.name == "b")
    assert find_mounts_in(tmp_path) == (tmp_path / "a" / "b",)
    assert find_mounts_in(tmp_path / "none") == ()


@pytest.mark.mount
def test_a_mount_of_this_machine(tmp_path: Path) -> None:
    with mounted("tmpfs", tmp_path / "with a space", 1 << 20) as point:
        assert find_mounts_in(tmp_path) == (point,)
        assert file_system_kind(point) == "tmpfs"
    assert find_mounts_in(tmp_path) == ()
