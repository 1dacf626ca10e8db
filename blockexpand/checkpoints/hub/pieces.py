"""Fetch of a repository's shards only the ranges that are needed, each shard as a file with holes.

A shard that is needed whole is fetched as in stream.py, and held to its digest; of a piece only the
length can be checked. It writes to the folder given to it, nowhere else.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import closing
from pathlib import Path

from .answers import Tell, tell_nobody
from .client import find_cached
from .digests import is_whole
from .failures import explaining
from .files import RepoFile, RepoSnapshot
from .ranges import read_range
from .stream import stream_shards

# One request takes about as long as so many bytes.
_WORTH_A_REQUEST_NBYTES = 1 << 20

Ranges = Sequence[tuple[int, int]]


def stream_pieces(
    snapshot: RepoSnapshot,
    wanted: Mapping[str, Ranges],
    folder: Path,
    *,
    token: str | None = None,
    cache_dir: Path | None = None,
    tell: Tell = tell_nobody,
    progress: Callable[[int], object] | None = None,
) -> Generator[Path, None, None]:
    """Yield the path of each shard, `folder / name`, with at least the wanted `(offset, nbytes)`.

    Asking for the next deletes it. Raises: HubError.
    """
    folder.mkdir(parents=True, exist_ok=True)
    access = {"token": token, "cache_dir": cache_dir, "tell": tell}
    for name, ranges in wanted.items():
        file = snapshot.file(name)
        needed = merge_ranges(ranges)
        if sum(nbytes for _, nbytes in needed) + _WORTH_A_REQUEST_NBYTES >= file.nbytes:
            with closing(
                stream_shards(snapshot, [name], folder, progress=progress, **access)  # type: ignore[arg-type]
            ) as shards:
                yield from shards
            continue
        path = folder / name
        path.unlink(missing_ok=True)
        cached = find_cached(snapshot.repo_id, name, snapshot.commit, cache_dir)
        if cached is not None and is_whole(cached, file, noted=True):
            path.symlink_to(cached.resolve())
        else:
            _fetch_ranges(snapshot, file, needed, path, token, tell, progress)
        yield path
        path.unlink(missing_ok=True)


def merge_ranges(ranges: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """Return sorted `(offset, nbytes)` without overlaps, those joined that lie close together."""
    merged: list[tuple[int, int]] = []
    for offset, nbytes in sorted(ranges):
        if merged and offset <= sum(merged[-1]) + _WORTH_A_REQUEST_NBYTES:
            begin = merged[-1][0]
            merged[-1] = begin, max(sum(merged[-1]), offset + nbytes) - begin
        else:
            merged.append((offset, nbytes))
    return merged


def _fetch_ranges(
    snapshot: RepoSnapshot,
    file: RepoFile,
    ranges: Ranges,
    path: Path,
    token: str | None,
    tell: Tell,
    progress: Callable[[int], object] | None,
) -> None:
    where = (snapshot.repo_id, snapshot.commit, file.name, file.nbytes)
    with (
        explaining(snapshot.repo_id, revision=snapshot.revision, token=token, tell=tell),
        path.open("wb") as stream,
    ):
        stream.truncate(file.nbytes)

        def sink(piece: bytes) -> None:
            stream.write(piece)
            if progress is not None:
                progress(len(piece))

        for offset, nbytes in ranges:
            stream.seek(offset)
            read_range(*where, start=offset, stop=offset + nbytes, sink=sink, token=token)
