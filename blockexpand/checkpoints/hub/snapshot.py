"""A repository and a revision → one commit and its list of files.

Here the commit is pinned: what comes later asks for it by its id. It writes nothing.
"""

from __future__ import annotations

import contextlib
import re
from pathlib import Path
from typing import Any
from urllib.parse import quote

from ..._version import __version__
from ...errors import HubError
from ..files import CONFIG_FILE
from .answers import RETRIED_STATUSES, Tell, tell_nobody
from .client import client_utils, find_cached, is_unreachable, network_errors, request_headers
from .failures import explaining
from .files import RepoFile, RepoRef, RepoSnapshot
from .listing import check_files, make_repo_file, parse_siblings

_COMMIT = re.compile(r"[0-9a-f]{40}")


def open_snapshot(
    ref: RepoRef,
    *,
    token: str | None = None,
    cache_dir: Path | None = None,
    tell: Tell = tell_nobody,
) -> RepoSnapshot:
    """Look up the commit of a revision and list its files.

    Where the Hub cannot be asked (HF_HUB_OFFLINE, no connection, an error of the Hub) the cached
    snapshot of that revision is taken, as `huggingface_hub` does. `tell` hears of waits.
    Raises: HubError where there is neither.
    """
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled, RevisionNotFoundError

    revision = ref.revision or "main"
    with explaining(ref.repo_id, revision=revision, token=token, tell=tell):
        no_answer: tuple[type[Exception], ...]
        no_answer = (HfHubHTTPError, OfflineModeIsEnabled, *network_errors())
        try:
            found = _look_up(ref.repo_id, revision, token, retrying=False)
        except RevisionNotFoundError:
            # Of a commit the cache holds what the Hub held, also where its history was squashed.
            is_commit = _COMMIT.fullmatch(revision) is not None
            cached = _open_cached(ref.repo_id, revision, cache_dir) if is_commit else None
            if cached is None:
                raise
            return cached
        except no_answer as error:
            cached = _open_cached(ref.repo_id, revision, cache_dir)
            if cached is not None:
                return cached
            if not _is_passing(error):
                raise
            found = _look_up(ref.repo_id, revision, token, retrying=True)
        commit, files = _parse_answer(found, ref.repo_id)
        if files is None:
            files = list_tree(ref.repo_id, commit, token)
    return RepoSnapshot(repo_id=ref.repo_id, revision=revision, commit=commit, files=files)


def _look_up(repo_id: str, revision: str, token: str | None, *, retrying: bool) -> Any:
    """Ask the Hub for a revision. `HfApi.model_info` asks the same, but never a second time.

    Returns None for an answer that is no JSON, such as a page to log in.
    """
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
    with contextlib.suppress(ValueError):
        return response.json()
    return None


def _is_passing(error: Exception) -> bool:
    """Tell whether the same request may succeed in some seconds."""
    response = getattr(error, "response", None)
    if response is not None:
        return response.status_code in RETRIED_STATUSES
    return isinstance(error, network_errors()) and not is_unreachable(error)


def _parse_answer(found: Any, repo_id: str) -> tuple[str, tuple[RepoFile, ...] | None]:
    """Return the commit and its files, or None for files without the sizes that were asked for."""
    try:
        commit = found["sha"]
        if not _COMMIT.fullmatch(commit):
            raise ValueError
        return commit, parse_siblings(found.get("siblings"), repo_id)
    except (AttributeError, KeyError, TypeError, ValueError):
        raise HubError(
            f"{repo_id}: the answer of the Hub has no commit or no list of files; does HF_ENDPOINT "
            "name a Hub?"
        ) from None


def list_tree(repo_id: str, commit: str, token: str | None) -> tuple[RepoFile, ...]:
    """List the files as `snapshot_download` does: mirrors of the Hub know no other way to sizes.

    Raises: HubError; the client's own errors as they are.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.hf_api import RepoFile as ListedFile

    api = HfApi(token=token, library_name="blockexpand", library_version=__version__)
    try:
        return check_files(
            (
                make_repo_file(
                    repo_id,
                    name=item.path,
                    nbytes=item.size,
                    sha256=None if item.lfs is None else item.lfs.sha256,
                    blob_id=None if item.lfs is not None else item.blob_id,
                    # Older clients know no Xet.
                    xet_hash=getattr(item, "xet_hash", None),
                )
                for item in api.list_repo_tree(repo_id, recursive=True, revision=commit)
                if isinstance(item, ListedFile)
            ),
            repo_id,
        )
    except (AttributeError, KeyError, TypeError) as error:
        raise HubError(
            f"{repo_id}: the Hub's list of files is none ({type(error).__name__}); does "
            "HF_ENDPOINT name a Hub?"
        ) from None


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
