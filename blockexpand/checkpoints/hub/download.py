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
from collections.abc import Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from ..._version import __version__
from ...errors import HubError
from ...fs.paths import existing_folder
from ...fs.sharing import count_held
from .answers import Tell, tell_nobody
from .client import cache_folder, client_utils, expand, find_cached, make_silent_bar
from .digests import describe_digest, is_whole
from .failures import explaining
from .files import RepoFile, RepoSnapshot
from .headers import choose_files

# Files in flight: as many as `snapshot_download` has.
_CONNECTIONS = 8


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
