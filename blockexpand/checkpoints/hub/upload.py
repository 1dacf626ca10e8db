"""Upload a finished folder to the Hub with the client's own, resumable upload.

It changes nothing in the folder, and says how to go on where an upload failed.
"""

from __future__ import annotations

import contextlib
import shlex
from collections.abc import Iterator
from pathlib import Path

from ..._version import __version__
from ...errors import HubError, UsageError
from .client import client_utils, request_headers
from .failures import explaining, without_secrets


def check_push(repo_id: str, *, token: str | None = None) -> None:
    """Refuse, before anything is written, an upload that cannot succeed; nothing is sent.

    Raises: UsageError for what is no repository id; HubError.
    """
    try:
        client_utils().validate_repo_id(repo_id)
    except ValueError:
        raise UsageError(
            f"{without_secrets(repr(repo_id), token)} is no repository id of the Hub to upload to; "
            "expected org/name"
        ) from None
    if "authorization" not in request_headers(token):
        raise HubError(
            f"{repo_id}: an upload needs a token that may write: give --token or HF_TOKEN"
        )


def push_folder(
    folder: Path,
    repo_id: str,
    *,
    private: bool = False,
    token: str | None = None,
    show_progress: bool = False,
) -> str:
    """Upload a folder to a model repository, made if there is none; return the commit's address.

    A repository that exists keeps its visibility and its other files. `show_progress` lets the
    client draw its own bars on stderr.
    Raises: HubError, which says that the folder is complete and how to go on.
    """
    from huggingface_hub import HfApi

    try:
        with explaining(repo_id, revision=None, token=token), _bars(show_progress):
            check_push(repo_id, token=token)
            api = HfApi(token=token, library_name="blockexpand", library_version=__version__)
            made = api.create_repo(repo_id, private=private or None, exist_ok=True)
            done = api.upload_folder(
                # The Hub puts the user's name before a name without one.
                repo_id=made.repo_id,
                folder_path=folder,
                commit_message=f"Upload a model expanded with blockexpand {__version__}",
            )
            return str(done.commit_url)
    except (HubError, UsageError) as error:
        again = shlex.join(
            ["hf", "upload", repo_id, str(folder), *(["--private"] if private else [])]
        )
        raise HubError(
            f"{error}; {folder} is complete, only the upload is not: go on with `{again}`"
        ) from None


@contextlib.contextmanager
def _bars(shown: bool) -> Iterator[None]:
    utils = client_utils()
    if shown or utils.are_progress_bars_disabled():
        yield
        return
    utils.disable_progress_bars()
    try:
        yield
    finally:
        utils.enable_progress_bars()
