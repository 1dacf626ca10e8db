"""A Hub repository → a local folder, or its headers: one commit, only the files that are needed.

The commit is looked up once, at the start; every later
request names it, so a branch that moves meanwhile mixes nothing. It knows nothing of layers, writes
to the Hub's cache only, and raises HubError with one line, never a token in it.
"""

from __future__ import annotations

import inspect
import shutil
import tempfile
import threading
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..._version import __version__
from ...errors import CheckpointError, HubError
from ...formats.json_object import MOST_JSON_NBYTES
from ...formats.safetensors import MAX_HEADER_NBYTES
from ...fs.paths import existing_folder
from ...fs.sharing import count_held
from ..files import INDEX_FILE, READ_AT_MOST, WEIGHTS_FILE
from ..index import parse_weight_map
from .answers import Tell, tell_nobody
from .client import cache_folder, client_utils, expand, find_cached, make_silent_bar
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


def download_checkpoint(
    snapshot: RepoSnapshot,
    *,
    token: str | None = None,
    cache_dir: Path | None = None,
    progress: Callable[[int], object] | None = None,
    arrived: Callable[[str], object] | None = None,
    tell: Tell = tell_nobody,
) -> Path:
    """Download what is needed and return the snapshot's folder in the Hub's cache.

    `progress` is called with numbers of bytes, `arrived` with the names of shards that are whole,
    both from several threads; what the cache already holds is not counted.
    """
    wanted = choose_files(snapshot, token=token, cache_dir=cache_dir, tell=tell)
    names = (*wanted.documents, *wanted.shards, *wanted.side_files)
    _check_room(snapshot, names, cache_dir)

    def shard_arrived(name: str) -> None:
        if arrived is not None and name in wanted.shards:
            arrived(name)

    return _download(snapshot, names, token, cache_dir, progress, tell, shard_arrived)


def download_side_files(
    snapshot: RepoSnapshot,
    *,
    token: str | None = None,
    cache_dir: Path | None = None,
    tell: Tell = tell_nobody,
) -> Path:
    """Download all that is needed but the shards; return the snapshot's folder in the cache."""
    wanted = choose_files(snapshot, token=token, cache_dir=cache_dir, tell=tell)
    names = (*wanted.documents, *wanted.side_files)
    return _download(snapshot, names, token, cache_dir, None, tell)


def download_files(
    snapshot: RepoSnapshot,
    names: Collection[str],
    *,
    token: str | None = None,
    cache_dir: Path | None = None,
    tell: Tell = tell_nobody,
) -> Path:
    """Download files of these names; return the snapshot's folder in the cache."""
    _check_room(snapshot, names, cache_dir)
    return _download(snapshot, names, token, cache_dir, None, tell)


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


def count_uncached(
    snapshot: RepoSnapshot, names: Collection[str], cache_dir: Path | None = None
) -> int:
    """Return the bytes of those files that a download would add to the Hub's cache."""
    return sum(
        snapshot.file(name).nbytes
        for name in names
        if find_cached(snapshot.repo_id, name, snapshot.commit, cache_dir) is None
    )


def _check_room(snapshot: RepoSnapshot, names: Collection[str], cache_dir: Path | None) -> None:
    """Refuse a download that would fill the cache's disk. Raises: HubError."""
    cache = cache_folder(cache_dir)
    existing = existing_folder(cache)
    begun = cache / f"models--{snapshot.repo_id.replace('/', '--')}" / "blobs"
    # What an earlier download has of files that are not whole is there already.
    present = sum(count_held(path.stat()) for path in begun.glob("*.incomplete"))
    needed = count_uncached(snapshot, names, cache_dir) - present
    free = shutil.disk_usage(existing).free
    if needed > free:
        raise HubError(
            f"{cache}: not enough disk: {needed:,} bytes to download, {free:,} free; free some "
            "space or choose another folder with --cache-dir"
        )


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
    snapshot: RepoSnapshot, file: RepoFile, begun: bytes, stop: int, token: str | None, tell: Tell
) -> bytes:
    """Return the first `stop` bytes of a file, of which the first ones are known."""
    buffer = bytearray(begun)
    where = (snapshot.repo_id, snapshot.commit, file.name, file.nbytes)
    with explaining(snapshot.repo_id, revision=snapshot.revision, token=token, tell=tell):
        read_range(*where, start=len(begun), stop=stop, sink=buffer.extend, token=token)
    return bytes(buffer)


def _header_nbytes(prefix: bytes, file_nbytes: int) -> int:
    announced = int.from_bytes(prefix, "little")
    return announced if announced <= min(MAX_HEADER_NBYTES, file_nbytes - len(prefix)) else 0


def _download(
    snapshot: RepoSnapshot,
    names: Collection[str],
    token: str | None,
    cache_dir: Path | None,
    progress: Callable[[int], object] | None,
    tell: Tell,
    arrived: Callable[[str], object] | None = None,
) -> Path:
    """Bring files into the cache, each checked while others are still on their way."""
    if snapshot.cached is not None:
        return snapshot.cached
    stopped = threading.Event()

    def fetch(name: str) -> Path:
        path = _fetch_whole(snapshot, snapshot.file(name), token, cache_dir, progress, stopped)
        if arrived is not None:
            arrived(name)
        return path

    with (
        explaining(snapshot.repo_id, revision=snapshot.revision, token=token, tell=tell),
        ThreadPoolExecutor(_CONNECTIONS) as pool,
    ):
        tasks = [pool.submit(fetch, name) for name in names]
        try:
            paths = [task.result() for task in tasks]
        except BaseException as error:
            # Shards in flight are not thrown away for another one's fault, but for a Ctrl-C.
            if not isinstance(error, Exception):
                stopped.set()
            pool.shutdown(cancel_futures=True)
            raise
    depth = next(iter(names)).count("/")
    folder = paths[0].parents[depth]
    _remember_revision(snapshot, folder)
    return folder


def _fetch_whole(
    snapshot: RepoSnapshot,
    file: RepoFile,
    token: str | None,
    cache_dir: Path | None,
    progress: Callable[[int], object] | None,
    stopped: threading.Event,
) -> Path:
    """Return a file's path in the cache, once it holds what the Hub lists. Raises: HubError."""
    from huggingface_hub import hf_hub_download

    was_there = find_cached(snapshot.repo_id, file.name, snapshot.commit, cache_dir) is not None
    # Before 1.0 the client takes no bar: it shows none then, and a file counts once it is there.
    takes_bar = "tqdm_class" in inspect.signature(hf_hub_download).parameters
    bar: dict[str, Any] = {"tqdm_class": make_silent_bar(progress, stopped)} if takes_bar else {}
    if not takes_bar:
        client_utils().disable_progress_bars()
    path = Path(
        hf_hub_download(
            snapshot.repo_id,
            file.name,
            revision=snapshot.commit,
            token=token,
            cache_dir=expand(cache_dir),
            library_name="blockexpand",
            library_version=__version__,
            **bar,
        )
    )
    if not bar and progress is not None and not was_there:
        progress(file.nbytes)
    if is_whole(path, file, noted=True):
        return path
    nbytes = path.stat().st_size
    if nbytes != file.nbytes:
        what = f"has {nbytes} bytes in the cache; the Hub lists {file.nbytes} bytes"
    else:
        what = f"has other bytes in the cache than the Hub lists ({describe_digest(file)})"
    if was_there:
        advice = f"delete {path.resolve()} and run the same command again"
    else:
        # What came just now is nobody's yet.
        path.resolve().unlink()
        path.unlink(missing_ok=True)
        advice = "it was deleted again: run the same command again"
    raise HubError(f"{snapshot.repo_id}: {file.name} {what}: {advice}")


def _remember_revision(snapshot: RepoSnapshot, folder: Path) -> None:
    """Note in the cache which commit the revision was, so that it is found again offline.

    The client does it itself where it is asked for a branch, but here it is asked for the commit.
    """
    if snapshot.revision == snapshot.commit:
        return
    ref = folder.parent.parent / "refs" / snapshot.revision
    try:
        ref.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=ref.parent, delete=False) as stream:
            stream.write(snapshot.commit)
        Path(stream.name).replace(ref)
    except OSError:
        # A shared cache may be read-only: the download is complete all the same.
        return
