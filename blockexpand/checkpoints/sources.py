"""SRC as the user typed it → an opened checkpoint: a folder, else a repository of the Hub."""

from __future__ import annotations

import re
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import CheckpointError, HubError
from ..fs.paths import expand_home
from ..fs.reading import FileStat, describe_file
from ..progress import SILENT, Progress
from .checkpoint import Checkpoint, assemble_checkpoint, open_checkpoint
from .contents import find_repeating, find_states
from .files import describe_choice

if TYPE_CHECKING:
    from .hub.files import RepoSnapshot


@dataclass(frozen=True, slots=True, kw_only=True)
class HubOptions:
    """How the Hub is asked; as in `huggingface_hub`. `tell` hears what is waited for."""

    revision: str | None = None
    token: str | None = None
    cache_dir: Path | None = None
    tell: Callable[[str], object] = SILENT.tell


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenedSource:
    """A source as its headers tell it: enough to plan with.

    `snapshot` is set for a repository of the Hub, whose weights still have to be fetched.
    """

    checkpoint: Checkpoint
    name: ModelRef
    snapshot: RepoSnapshot | None = None


def open_source(
    src: str,
    options: HubOptions,
    *,
    headers_only: bool = False,
    progress: Progress = SILENT,
    check: Callable[[Checkpoint], None] | None = None,
) -> tuple[Checkpoint, ModelRef]:
    """Open a checkpoint; a folder wins where both exist.

    Of a repository `headers_only` fetches nothing but headers and JSON, so that its checkpoint
    can be planned with, not copied from. Else everything needed is downloaded into the Hub's
    cache, after `check` has seen the headers: what it raises spares the download.
    Raises: CheckpointError, HubError.
    """
    source = open_headers(src, options)
    if source.snapshot is not None and not headers_only:
        if check is not None:
            check(source.checkpoint)
        return fetch_weights(source, options, progress), source.name
    return source.checkpoint, source.name


def open_headers(src: str, options: HubOptions) -> OpenedSource:
    """Open a folder, or a repository's headers and JSON. Raises: CheckpointError, HubError."""
    folder = expand_home(src)
    if folder.exists() or folder.is_symlink() or looks_like_path(src):
        return OpenedSource(checkpoint=open_checkpoint(folder), name=_name_folder(src, folder))
    from . import hub

    try:
        ref = hub.parse_repo_ref(src, options.revision)
    except HubError as error:
        raise CheckpointError(f"{src}: no such folder, and {error}") from None
    try:
        snapshot = hub.open_snapshot(ref, **_access(options))
    except HubError as error:
        # A folder's name that was mistyped looks like a repository.
        raise HubError(f"{error}; nor is there a folder {src} here") from None
    name = ModelRef(
        model=snapshot.repo_id,
        repo=snapshot.repo_id,
        revision=snapshot.revision,
        commit=snapshot.commit,
    )
    headers = hub.fetch_headers(snapshot, **_access(options))
    checkpoint = assemble_checkpoint(
        Path(snapshot.repo_id),
        headers.documents,
        [
            (FileStat(name=shard.name, nbytes=shard.nbytes, mtime_ns=0), shard.header_bytes)
            for shard in headers.shards
        ],
        side_files=tuple(
            FileStat(name=file.name, nbytes=file.nbytes, mtime_ns=0) for file in headers.side_files
        ),
        left_behind=headers.left_behind,
        notes=describe_choice({file.name for file in snapshot.files}),
    )
    # What else a plan of a quantised model has to see, as `open_checkpoint` reads it of a folder.
    contents: dict[str, bytes] = {}
    for repeating in find_repeating(checkpoint.config, [f.name for f in checkpoint.side_files]):
        contents[repeating] = hub.fetch_document(snapshot, repeating, **_access(options))
    states = find_states(checkpoint.config, checkpoint.shards)
    contents |= hub.fetch_states(snapshot, states, **_access(options))
    checkpoint = replace(checkpoint, contents=contents)
    return OpenedSource(checkpoint=checkpoint, name=name, snapshot=snapshot)


def fetch_weights(
    source: OpenedSource, options: HubOptions, progress: Progress = SILENT
) -> Checkpoint:
    """Download a repository's commit into the Hub's cache, and open it there.

    Raises: CheckpointError, HubError.
    """
    from . import hub

    assert source.snapshot is not None
    progress.begin("downloading", sum(shard.file.nbytes for shard in source.checkpoint.shards))
    root = hub.download_checkpoint(
        source.snapshot,
        **_access(options),
        progress=progress.advance,
        arrived=progress.end_file,
    )
    return open_checkpoint(root)


def fetch_side_files(source: OpenedSource, options: HubOptions) -> Checkpoint:
    """Download all of a repository's commit but its shards, which a stream will bring.

    Raises: HubError.
    """
    from . import hub

    assert source.snapshot is not None
    root = hub.download_side_files(source.snapshot, **_access(options))
    side_files = tuple(
        replace(describe_file(file.name, (root / file.name).stat()), nbytes=file.nbytes)
        for file in source.checkpoint.side_files
    )
    return replace(source.checkpoint, root=root, side_files=side_files)


def open_stream(source: OpenedSource, options: HubOptions) -> ShardStream:
    """Return a repository's shards as a stream; nothing is fetched yet."""
    from . import hub

    snapshot = source.snapshot
    assert snapshot is not None

    def fetch(
        names: Sequence[str], folder: Path, ahead_nbytes: Mapping[str, int]
    ) -> Generator[Path, None, None]:
        return hub.stream_shards(
            snapshot,
            names,
            folder,
            **_access(options),
            ahead_nbytes=ahead_nbytes,
        )

    return ShardStream(commit=snapshot.commit, fetch=fetch)


def _access(options: HubOptions) -> dict[str, Any]:
    """Return what every function of the Hub takes of the options."""
    return {"token": options.token, "cache_dir": options.cache_dir, "tell": options.tell}


def looks_like_path(src: str) -> bool:
    """Tell what can be no repository, so that a folder's name that is mistyped is called that."""
    if "://" in src:
        return False
    # A revision may have slashes: refs/pr/1.
    name = src.partition("@")[0]
    return src.startswith((".", "/", "~")) or "\\" in src or name.count("/") > 1 or src == ""


def names_repository(out: str | Path) -> bool:
    """Tell whether an output's name can only be that of a repository, `org/name`: no such folder.

    A name of one word is a folder that is not there.
    """
    name = str(out).partition("@")[0]
    return (
        isinstance(out, str)
        and "/" in name
        and not looks_like_path(out)
        and not expand_home(out).exists()
        and not expand_home(out).parent.is_dir()
    )


def _name_folder(src: str, folder: Path) -> ModelRef:
    """Name a local folder; one in the Hub's cache still tells which repository it is."""
    parts = folder.resolve().parts
    if len(parts) >= 3 and parts[-2] == "snapshots" and parts[-3].startswith("models--"):
        repo = parts[-3].removeprefix("models--").replace("--", "/")
        commit = parts[-1] if re.fullmatch(r"[0-9a-f]{40}", parts[-1]) else None
        return ModelRef(model=repo, repo=repo, commit=commit)
    return ModelRef(model=src if folder.name else str(folder.resolve()))


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelRef:
    """What the source is called: `model` for readers; the rest where it came from the Hub.

    `base_model` is the repository that a card names for a local folder, where the user said so.
    """

    model: str
    repo: str | None = None
    revision: str | None = None
    commit: str | None = None
    base_model: str | None = None

    @property
    def public(self) -> str:
        """What may be told to everybody: a repository's name, of a folder its last part alone."""
        return self.repo or Path(self.model).name or "model"


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardStream:
    """A source whose shards come when they are asked for.

    `fetch(names, folder, ahead_nbytes)` yields the path of each shard in that folder; asking for
    the next deletes it. `commit` tells one state of the source from another.
    """

    commit: str
    fetch: Callable[[Sequence[str], Path, Mapping[str, int]], Generator[Path, None, None]]
