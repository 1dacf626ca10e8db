"""A repository and a revision → one commit and its list of files.

Here the commit is pinned: what comes later asks for it by its id. It writes nothing.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any
from urllib.parse import quote

from ..errors import HubError
from ..file_selection import CONFIG_FILE
from .client import client_utils, find_cached, http_library, request_headers
from .failures import RETRIED_STATUSES, explaining
from .files import RepoFile, RepoRef, RepoSnapshot

_COMMIT = re.compile(r"[0-9a-f]{40}")


def open_snapshot(
    ref: RepoRef, *, token: str | None = None, cache_dir: Path | None = None
) -> RepoSnapshot:
    """Look up the commit of a revision and list its files.

    Where the Hub cannot be asked (HF_HUB_OFFLINE, no connection, an error of the Hub) the cached
    snapshot of that revision is taken, as `huggingface_hub` does.
    Raises: HubError where there is neither.
    """
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled, RevisionNotFoundError

    revision = ref.revision or "main"
    with explaining(ref.repo_id, revision=revision, token=token):
        transport_errors: type[Exception] = http_library().TransportError
        try:
            found = _look_up(ref.repo_id, revision, token, retrying=False)
        except RevisionNotFoundError:
            raise
        except (HfHubHTTPError, OfflineModeIsEnabled, transport_errors) as error:
            cached = _open_cached(ref.repo_id, revision, cache_dir)
            if cached is not None:
                return cached
            if not _is_passing(error):
                raise
            found = _look_up(ref.repo_id, revision, token, retrying=True)
    return _parse_listing(found, ref.repo_id, revision)


def _look_up(repo_id: str, revision: str, token: str | None, *, retrying: bool) -> Any:
    """Ask the Hub for a revision. `HfApi.model_info` asks the same, but never a second time."""
    from huggingface_hub import constants

    utils = client_utils()
    request = utils.http_backoff if retrying else utils.get_session().request
    response = request(
        "GET",
        f"{constants.ENDPOINT}/api/models/{repo_id}/revision/{quote(revision, safe='')}",
        params={"blobs": True},
        headers=request_headers(token),
        timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT,
    )
    utils.hf_raise_for_status(response)
    return response.json()


def _is_passing(error: Exception) -> bool:
    """Tell whether the same request may succeed in some seconds."""
    library = http_library()
    response = getattr(error, "response", None)
    if response is not None:
        return response.status_code in RETRIED_STATUSES
    # Nobody answers at all: waiting for that would only keep the user waiting.
    final = (
        library.ConnectError,
        library.ConnectTimeout,
        library.ProxyError,
        library.UnsupportedProtocol,
    )
    return isinstance(error, library.TransportError) and not isinstance(error, final)


def _parse_listing(found: Any, repo_id: str, revision: str) -> RepoSnapshot:
    try:
        files = tuple(
            RepoFile(
                name=str(item["rfilename"]),
                nbytes=int(item["size"]),
                sha256=(item.get("lfs") or {}).get("sha256"),
            )
            for item in found["siblings"]
        )
        commit = found["sha"]
        if not _COMMIT.fullmatch(commit):
            raise ValueError
    except (AttributeError, KeyError, TypeError, ValueError):
        raise HubError(
            f"{repo_id}: the answer of the Hub has no commit or no list of files with their sizes; "
            "does HF_ENDPOINT name a Hub?"
        ) from None
    return RepoSnapshot(repo_id=repo_id, revision=revision, commit=commit, files=files)


def _open_cached(repo_id: str, revision: str, cache_dir: Path | None) -> RepoSnapshot | None:
    config = find_cached(repo_id, CONFIG_FILE, revision, cache_dir)
    if config is None:
        return None
    folder = config.parent
    files = tuple(
        RepoFile(name=path.relative_to(folder).as_posix(), nbytes=path.stat().st_size)
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    )
    return RepoSnapshot(
        repo_id=repo_id, revision=revision, commit=folder.name, files=files, cached=folder
    )
