"""A Hub repository's documents and the headers of its shards, by range requests, nothing else.

It reads what the Hub's cache holds and adds nothing to it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from ...errors import CheckpointError, HubError
from ...formats.json_object import MOST_JSON_NBYTES
from ...formats.safetensors import MAX_HEADER_NBYTES
from ..contents import State
from ..files import INDEX_FILE, READ_AT_MOST, WEIGHTS_FILE
from ..index import parse_weight_map
from .answers import Tell, tell_nobody
from .client import find_cached
from .digests import describe_digest, holds, is_whole
from .failures import explaining
from .files import RepoFile, RepoSnapshot, WantedFiles, wanted_files
from .ranges import read_range

# Requests in flight while headers are fetched: as many as `snapshot_download` has.
_CONNECTIONS = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardHeader:
    """The start of a shard of `nbytes`: its 8 length bytes and the JSON that they announce."""

    name: str
    nbytes: int
    header_bytes: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class HeaderSnapshot:
    """All that a plan needs of a repository, without the weights."""

    snapshot: RepoSnapshot
    documents: Mapping[str, bytes]
    shards: tuple[ShardHeader, ...]
    side_files: tuple[RepoFile, ...]
    left_behind: tuple[str, ...]


def choose_files(
    snapshot: RepoSnapshot,
    *,
    token: str | None = None,
    cache_dir: Path | None = None,
    tell: Tell = tell_nobody,
) -> WantedFiles:
    """Read the index, if the repository needs one, and say which files are wanted."""
    names = frozenset(file.name for file in snapshot.files)
    where = f"{snapshot.repo_id}@{snapshot.commit[:12]}"
    if snapshot.cached is not None:
        where += f" in the cache ({snapshot.cached}), as the Hub could not be asked"
    shards: frozenset[str] = frozenset()
    if WEIGHTS_FILE not in names and INDEX_FILE in names:
        index = _fetch_document(snapshot, INDEX_FILE, token, cache_dir, tell)
        try:
            shards = frozenset(parse_weight_map(index).values())
        except CheckpointError as error:
            raise HubError(f"{where}: {error}") from None
    return wanted_files(names, shards, where, cached=snapshot.cached is not None)


def fetch_headers(
    snapshot: RepoSnapshot,
    *,
    token: str | None = None,
    cache_dir: Path | None = None,
    tell: Tell = tell_nobody,
) -> HeaderSnapshot:
    """Fetch the documents and the header of each shard, by range requests; no byte of a tensor."""
    wanted = choose_files(snapshot, token=token, cache_dir=cache_dir, tell=tell)
    documents = {
        name: _fetch_document(snapshot, name, token, cache_dir, tell) for name in wanted.documents
    }

    def fetch(name: str) -> ShardHeader:
        return _fetch_header(snapshot, snapshot.file(name), token, cache_dir, tell)

    with ThreadPoolExecutor(_CONNECTIONS) as pool:
        shards = tuple(pool.map(fetch, wanted.shards))
    return HeaderSnapshot(
        snapshot=snapshot,
        documents=documents,
        shards=shards,
        side_files=tuple(snapshot.file(name) for name in wanted.side_files),
        left_behind=wanted.left_behind,
    )


def fetch_document(
    snapshot: RepoSnapshot,
    name: str,
    *,
    token: str | None = None,
    cache_dir: Path | None = None,
    tell: Tell = tell_nobody,
) -> bytes:
    """Return a small file, from the cache if it is there; nothing is added to the cache."""
    return _fetch_document(snapshot, name, token, cache_dir, tell)


def fetch_states(
    snapshot: RepoSnapshot,
    states: Sequence[State],
    *,
    token: str | None = None,
    cache_dir: Path | None = None,
    tell: Tell = tell_nobody,
) -> dict[str, bytes]:
    """Return small tensors by name, each by a range request unless its shard is in the cache."""

    def fetch(state: State) -> bytes:
        file = snapshot.file(state.file)
        cached = _find_whole(snapshot, file, cache_dir)
        if cached is not None:
            with cached.open("rb") as stream:
                stream.seek(state.start)
                return stream.read(state.stop - state.start)
        return _fetch(snapshot, file, b"", state.stop, token, tell, start=state.start)

    with ThreadPoolExecutor(_CONNECTIONS) as pool:
        found = pool.map(fetch, states)
        return {state.name: data for state, data in zip(states, found, strict=True)}


def _fetch_document(
    snapshot: RepoSnapshot, name: str, token: str | None, cache_dir: Path | None, tell: Tell
) -> bytes:
    """Return a small file, from the cache if it is there; nothing is added to the cache."""
    file = snapshot.file(name)
    most = READ_AT_MOST.get(name, MOST_JSON_NBYTES)
    if file.nbytes > most:
        if name in READ_AT_MOST:
            return _fetch(snapshot, file, b"", most, token, tell)
        raise HubError(
            f"{snapshot.repo_id}: {name}: expected at most {most} bytes, found {file.nbytes}"
        )
    cached = _find_whole(snapshot, file, cache_dir)
    if cached is not None and is_whole(cached, file):
        return cached.read_bytes()
    data = _fetch(snapshot, file, b"", file.nbytes, token, tell)
    if not holds(data, file):
        raise HubError(
            f"{snapshot.repo_id}: {name} came with other bytes than the Hub lists "
            f"({describe_digest(file)}); run the same command again"
        )
    return data


def _fetch_header(
    snapshot: RepoSnapshot, file: RepoFile, token: str | None, cache_dir: Path | None, tell: Tell
) -> ShardHeader:
    """Return the start of a shard; where the announced length is none only its 8 bytes, which the
    parser of headers will judge."""
    cached = _find_whole(snapshot, file, cache_dir)
    if cached is not None:
        with cached.open("rb") as stream:
            prefix = stream.read(8)
            header = prefix + stream.read(_header_nbytes(prefix, file.nbytes))
        return ShardHeader(name=file.name, nbytes=file.nbytes, header_bytes=header)
    prefix = _fetch(snapshot, file, b"", min(8, file.nbytes), token, tell)
    stop = len(prefix) + _header_nbytes(prefix, file.nbytes)
    header = _fetch(snapshot, file, prefix, stop, token, tell)
    return ShardHeader(name=file.name, nbytes=file.nbytes, header_bytes=header)


def _find_whole(snapshot: RepoSnapshot, file: RepoFile, cache_dir: Path | None) -> Path | None:
    """Return a file's path in the cache, unless what is there has another length than listed.

    A download will name such a file; judged by its header, the repository would seem broken.
    """
    cached = find_cached(snapshot.repo_id, file.name, snapshot.commit, cache_dir)
    return cached if cached is not None and cached.stat().st_size == file.nbytes else None


def _fetch(
    snapshot: RepoSnapshot,
    file: RepoFile,
    begun: bytes,
    stop: int,
    token: str | None,
    tell: Tell,
    start: int = 0,
) -> bytes:
    """Return a file's bytes from `start` to `stop`, of which the first ones are known."""
    buffer = bytearray(begun)
    where = (snapshot.repo_id, snapshot.commit, file.name, file.nbytes)
    with explaining(snapshot.repo_id, revision=snapshot.revision, token=token, tell=tell):
        read_range(*where, start=start + len(begun), stop=stop, sink=buffer.extend, token=token)
    return bytes(buffer)


def _header_nbytes(prefix: bytes, file_nbytes: int) -> int:
    announced = int.from_bytes(prefix, "little")
    return announced if announced <= min(MAX_HEADER_NBYTES, file_nbytes - len(prefix)) else 0
