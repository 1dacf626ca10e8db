"""What the Hub says is in a repository → checked `RepoFile`s. It asks nothing and opens no file.

A listing is a stranger's: a name may lead anywhere, a size or a digest may be anything. What is
accepted here is taken at its word later: names are joined to folders, bytes held to digests.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from ...errors import HubError
from ...formats.names import explain_bad_name
from ...messages import show
from .files import RepoFile

_SHA256 = re.compile(r"[0-9a-f]{64}")

_SHA1 = re.compile(r"[0-9a-f]{40}")

# No file system holds a longer file.
_MOST_NBYTES = 1 << 62


def parse_siblings(siblings: Any, repo_id: str) -> tuple[RepoFile, ...] | None:
    """Return the files of a repository's description; None where it does not tell their sizes.

    Raises: HubError for a file that cannot be one, with its name; TypeError and the like for what
    is no list of files at all.
    """
    files = []
    for item in siblings or ():
        lfs = item.get("lfs") or {}
        if item.get("size") is None:
            return None
        files.append(
            make_repo_file(
                repo_id,
                name=item["rfilename"],
                nbytes=item["size"],
                sha256=lfs.get("sha256"),
                blob_id=None if lfs else item.get("blobId"),
            )
        )
    return check_files(files, repo_id) if files else None


def make_repo_file(
    repo_id: str,
    *,
    name: Any,
    nbytes: Any,
    sha256: Any = None,
    blob_id: Any = None,
    xet_hash: Any = None,
) -> RepoFile:
    """Return a file as listed; a digest of another form than the Hub's is taken for none.

    Raises: HubError.
    """
    check_name(name, repo_id)
    if type(nbytes) is not int or not 0 <= nbytes < _MOST_NBYTES:
        raise HubError(
            f"{repo_id}: the Hub lists {show(name)} with {show(nbytes)} as its size; expected a "
            "number of bytes: does HF_ENDPOINT name a Hub?"
        )
    return RepoFile(
        name=name,
        nbytes=nbytes,
        sha256=_digest(_SHA256, sha256),
        blob_id=_digest(_SHA1, blob_id),
        xet_hash=_digest(_SHA256, xet_hash),
    )


def check_name(name: Any, repo_id: str) -> None:
    """Raises: HubError for a name that may not be joined to a folder."""
    reason = explain_bad_name(name)
    if reason is not None:
        raise HubError(
            f"{repo_id}: the Hub lists a file {show(name)}, whose name {reason}; expected a "
            "relative name: ask the repository's owner to rename it"
        )


def check_files(files: Iterable[RepoFile], repo_id: str) -> tuple[RepoFile, ...]:
    """Return the files, each of which is there once. Raises: HubError."""
    files = tuple(files)
    names: set[str] = set()
    folders: set[str] = set()
    for file in files:
        if file.name in names:
            raise HubError(f"{repo_id}: the Hub lists {show(file.name)} twice; expected it once")
        names.add(file.name)
        folder = file.name.rpartition("/")[0]
        while folder and folder not in folders:
            folders.add(folder)
            folder = folder.rpartition("/")[0]
    for name in sorted(folders & names):
        raise HubError(f"{repo_id}: the Hub lists {show(name)} as a file and as a folder")
    return files


def _digest(form: re.Pattern[str], value: Any) -> str | None:
    return value if type(value) is str and form.fullmatch(value) else None
