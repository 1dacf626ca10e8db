"""What a repository on the Hub is called, what lies in it, and which of it is needed. Names only.

It opens no connection and reads no file.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ...errors import HubError, UsageError
from ...messages import and_more
from ..checkpoint import explain_missing_weights
from ..files import (
    CARD_FILE,
    CONFIG_FILE,
    INDEX_FILE,
    MANIFEST_FILE,
    WEIGHTS_FILE,
    explain_adapter,
    split_side_files,
)
from .client import client_utils
from .failures import without_secrets


@dataclass(frozen=True, slots=True, kw_only=True)
class RepoRef:
    """What the user asked for; a `revision` of None is the default branch."""

    repo_id: str
    revision: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class RepoFile:
    """A file of a repository. `sha256` is known for large files only, `blob_id` (git's) for others.

    `xet_hash` names its bytes in the storage of the Hub, where the listing tells it.
    """

    name: str
    nbytes: int
    sha256: str | None = None
    blob_id: str | None = None
    xet_hash: str | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class RepoSnapshot:
    """A repository at one commit. `cached` is its folder where the Hub could not be asked."""

    repo_id: str
    revision: str
    commit: str
    files: tuple[RepoFile, ...]
    cached: Path | None = None
    _by_name: Mapping[str, RepoFile] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_by_name", {file.name: file for file in self.files})

    def file(self, name: str) -> RepoFile:
        """Return the file of this name."""
        return self._by_name[name]


@dataclass(frozen=True, slots=True, kw_only=True)
class WantedFiles:
    """What an expansion needs of a repository: `documents` are config, index and card."""

    documents: tuple[str, ...]
    shards: tuple[str, ...]
    side_files: tuple[str, ...]
    left_behind: tuple[str, ...]


def parse_repo_ref(src: str, revision: str | None = None) -> RepoRef:
    """Parse `org/name`, `name` or either with `@revision`.

    Raises: HubError for what is no repository id; UsageError for two different revisions.
    """
    repo_id, at, after = src.partition("@")
    try:
        if not repo_id or "\n" in src:
            raise ValueError
        client_utils().validate_repo_id(repo_id)
    except ValueError:
        hint = "; give only org/name of the address" if "://" in src else ""
        raise HubError(
            f"{without_secrets(repr(src), None)} is no repository id of the Hub; "
            f"expected org/name or org/name@revision{hint}"
        ) from None
    if at and revision is not None and after != revision:
        raise UsageError(
            f"{src}: it asks for another revision than --revision {revision}; give one"
        )
    chosen = after if at else revision
    # What git allows in the name of a branch or tag; the cache makes a path of it.
    if chosen is not None and not re.fullmatch(
        r"(?!.*\.\.)[^\s~^:?*\[\\/@][^\s~^:?*\[\\]*", chosen
    ):
        raise UsageError(f"{repo_id}: {chosen!r} is no name of a branch, tag or commit")
    return RepoRef(repo_id=repo_id, revision=chosen)


def wanted_files(
    names: Collection[str], shards: Collection[str], where: str, *, cached: bool = False
) -> WantedFiles:
    """Sort the files of a repository into those that are needed and the weights left behind.

    `shards` are the index's, empty where the repository has no index or does not need it; `cached`
    tells that the names are those of the cache, which may hold less than the repository.
    Raises: HubError where the weights or the config are missing; `where` is said in it.
    """
    single = WEIGHTS_FILE in names
    if not single and INDEX_FILE not in names:
        raise HubError(f"{where}: {explain_missing_weights(frozenset(names))}")
    adapter = explain_adapter(names)
    if adapter is not None:
        raise HubError(f"{where}: {adapter}")
    if CONFIG_FILE not in names:
        raise HubError(
            f"{where}: no {CONFIG_FILE}; is this the repository of a transformers model?"
        )
    # Where both exist the single file goes before the index, as in transformers.
    chosen = (WEIGHTS_FILE,) if single else tuple(sorted(shards))
    missing = [name for name in chosen if name not in names]
    if missing:
        cause = (
            "the download was not finished: run the same command where the Hub can be asked"
            if cached
            else "the upload is incomplete, or --revision is the wrong one"
        )
        raise HubError(
            f"{where}: {INDEX_FILE} names {and_more(missing)}, which is not there; {cause}"
        )
    documents = (CONFIG_FILE, *(() if single else (INDEX_FILE,)), CARD_FILE, MANIFEST_FILE)
    side_files, left_behind = split_side_files(names, chosen)
    return WantedFiles(
        documents=tuple(name for name in documents if name in names),
        shards=chosen,
        side_files=side_files,
        left_behind=left_behind,
    )
