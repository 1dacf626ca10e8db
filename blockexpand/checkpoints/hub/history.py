"""Whether a commit is in the history of a branch: anybody can propose one that is not."""

from __future__ import annotations

from ..._version import __version__
from .client import network_errors


def is_in_history(repo_id: str, commit: str, revision: str, *, token: str | None) -> bool | None:
    """Tell whether a branch or tag was at a commit, or has come from it; None if nobody says.

    A repository whose history was squashed no longer has its older commits.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    api = HfApi(token=token, library_name="blockexpand", library_version=__version__)
    try:
        commits = api.list_repo_commits(repo_id, revision=revision)
        return any(known.commit_id == commit for known in commits)
    except (HfHubHTTPError, OfflineModeIsEnabled, ValueError, KeyError, TypeError):
        return None
    except network_errors():
        return None
