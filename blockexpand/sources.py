"""SRC as the user typed it → an opened checkpoint: a folder, else a repository of the Hub."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from .checkpoint import Checkpoint, SourceFile, assemble_checkpoint, open_checkpoint
from .errors import CheckpointError, HubError
from .model_card import SourceName
from .progress import SILENT, Progress


@dataclass(frozen=True, slots=True, kw_only=True)
class HubOptions:
    """How the Hub is asked; as in `huggingface_hub`."""

    revision: str | None = None
    token: str | None = None
    cache_dir: Path | None = None


def open_source(
    src: str,
    options: HubOptions,
    *,
    headers_only: bool = False,
    progress: Progress = SILENT,
    vet: Callable[[Checkpoint], None] | None = None,
) -> tuple[Checkpoint, SourceName]:
    """Open a checkpoint; a folder wins where both exist.

    Of a repository `headers_only` fetches nothing but headers and JSON, so that its checkpoint
    can be planned with, not copied from. Else everything needed is downloaded into the Hub's
    cache, after `vet` has seen the headers: what it raises spares the download.
    Raises: CheckpointError, HubError.
    """
    folder = Path(src).expanduser()
    if folder.exists() or _looks_like_path(src):
        return open_checkpoint(folder), _name_folder(src, folder)
    from . import hub

    try:
        ref = hub.parse_repo_ref(src, options.revision)
    except HubError as error:
        raise CheckpointError(f"{src}: no such folder, and {error}") from None
    snapshot = hub.open_snapshot(ref, token=options.token, cache_dir=options.cache_dir)
    name = SourceName(
        model=snapshot.repo_id,
        repo=snapshot.repo_id,
        revision=snapshot.revision,
        commit=snapshot.commit,
    )
    headers = hub.fetch_headers(snapshot, token=options.token, cache_dir=options.cache_dir)
    checkpoint = assemble_checkpoint(
        Path(snapshot.repo_id),
        headers.documents,
        [
            (SourceFile(name=shard.name, nbytes=shard.nbytes, mtime_ns=0), shard.header_bytes)
            for shard in headers.shards
        ],
        side_files=tuple(
            SourceFile(name=file.name, nbytes=file.nbytes, mtime_ns=0)
            for file in headers.side_files
        ),
        left_behind=headers.left_behind,
    )
    if headers_only:
        return checkpoint, name
    if vet is not None:
        vet(checkpoint)
    progress.total("downloading", sum(shard.nbytes for shard in headers.shards))
    root = hub.download_checkpoint(
        snapshot, token=options.token, cache_dir=options.cache_dir, progress=progress.done
    )
    return open_checkpoint(root), name


def _looks_like_path(src: str) -> bool:
    """Tell what can be no repository, so that a folder's name that is mistyped is called that."""
    return src.startswith((".", "/", "~")) or "\\" in src or src.count("/") > 1 or src == ""


def _name_folder(src: str, folder: Path) -> SourceName:
    """Name a local folder; one in the Hub's cache still tells which repository it is."""
    parts = folder.resolve().parts
    if len(parts) >= 3 and parts[-2] == "snapshots" and parts[-3].startswith("models--"):
        repo = parts[-3].removeprefix("models--").replace("--", "/")
        commit = parts[-1] if re.fullmatch(r"[0-9a-f]{40}", parts[-1]) else None
        return SourceName(model=repo, repo=repo, commit=commit)
    return SourceName(model=src if folder.name else str(folder.resolve()))
