"""Fetch the shards of a repository one after another, and delete each when it has been used.

While the caller uses a shard the next one is fetched beside it. A caller that writes an output of
the same size from each shard so needs the disk for that output and one shard: what is fetched ahead
lies where its own output is not yet written. It writes to the folder given to it, nowhere else.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import zip_longest
from pathlib import Path

from ...errors import HubError
from .answers import Tell, tell_nobody
from .client import find_cached
from .digests import describe_digest, is_whole
from .failures import explaining
from .files import RepoFile, RepoSnapshot
from .ranges import read_range


def stream_shards(
    snapshot: RepoSnapshot,
    names: Sequence[str],
    folder: Path,
    *,
    token: str | None = None,
    cache_dir: Path | None = None,
    ahead_nbytes: Mapping[str, int] | None = None,
    progress: Callable[[int], object] | None = None,
    tell: Tell = tell_nobody,
) -> Generator[Path, None, None]:
    """Yield the path of each shard, `folder / name`, in this order; asking for the next deletes it.

    `folder` belongs to this function: other shards and parts of files in it are removed, what it
    has of these shards is used, and after an error or a kill it is left for the next call to go on
    from. A shard that the Hub's cache holds is linked to, not fetched. `ahead_nbytes` limits, for
    a shard, how many of its bytes may be fetched while the one before it is in use: an output that
    is smaller than its source needs that to keep to one shard. `progress` is called with numbers
    of fetched bytes, from another thread.
    Raises: HubError, also where what came is not what the Hub lists.
    """
    files = [snapshot.file(name) for name in names]
    folder.mkdir(parents=True, exist_ok=True)
    _remove_others(snapshot, files, folder)
    stopped = threading.Event()

    def fetch(file: RepoFile, limit: int) -> None:
        _fetch(snapshot, file, folder, min(limit, file.nbytes), token, progress, tell, stopped)

    for file in files:
        _take_what_is_there(snapshot, file, folder, cache_dir)
    with ThreadPoolExecutor(1) as pool:
        try:
            ahead = None
            for file, following in zip_longest(files, files[1:]):
                if ahead is not None:
                    ahead.result()
                fetch(file, file.nbytes)
                if following is not None:
                    limit = (ahead_nbytes or {}).get(following.name, following.nbytes)
                    ahead = pool.submit(fetch, following, limit)
                yield folder / file.name
                (folder / file.name).unlink(missing_ok=True)
        finally:
            # The thread in flight ends after its piece; what it has stays, to go on from.
            stopped.set()


def _part_path(folder: Path, snapshot: RepoSnapshot, file: RepoFile) -> Path:
    return folder / f".{file.name}.{(file.sha256 or snapshot.commit)[:16]}.part"


def _remove_others(snapshot: RepoSnapshot, files: Sequence[RepoFile], folder: Path) -> None:
    kept = {
        path for file in files for path in (folder / file.name, _part_path(folder, snapshot, file))
    }
    for path in (*folder.glob("*.safetensors"), *folder.glob(".*.part")):
        if path not in kept:
            path.unlink()


def _take_what_is_there(
    snapshot: RepoSnapshot, file: RepoFile, folder: Path, cache_dir: Path | None
) -> None:
    """Keep a shard of an earlier call if it is whole; else link to the one of the Hub's cache."""
    path = folder / file.name
    if path.exists() and is_whole(path, file):
        return
    path.unlink(missing_ok=True)
    cached = find_cached(snapshot.repo_id, file.name, snapshot.commit, cache_dir)
    if cached is not None and is_whole(cached, file, noted=True):
        path.symlink_to(cached.resolve())


def _fetch(
    snapshot: RepoSnapshot,
    file: RepoFile,
    folder: Path,
    limit: int,
    token: str | None,
    progress: Callable[[int], object] | None,
    tell: Tell,
    stopped: threading.Event,
) -> None:
    """Fetch a shard up to `limit` bytes, going on from what is there; name it when it is whole."""
    path, part = folder / file.name, _part_path(folder, snapshot, file)
    if path.exists():
        return
    with (
        explaining(snapshot.repo_id, revision=snapshot.revision, token=token, tell=tell),
        part.open("ab") as stream,
    ):
        if stream.tell() > file.nbytes:
            stream.truncate(0)

        def sink(piece: bytes) -> None:
            stream.write(piece)
            if progress is not None:
                progress(len(piece))

        where = (snapshot.repo_id, snapshot.commit, file.name, file.nbytes)
        read_range(*where, start=stream.tell(), stop=limit, sink=sink, token=token, stopped=stopped)
    if part.stat().st_size < file.nbytes:
        return
    if not is_whole(part, file):
        part.unlink()
        raise HubError(
            f"{snapshot.repo_id}: {file.name}: what came has other bytes than the Hub lists "
            f"({describe_digest(file)}); it was deleted: run the same command again"
        )
    part.rename(path)
