"""Where an output goes on the Hub, and whether it can: name, token, permission, what lies there.

Everything here is asked before the first byte is written or sent; nothing is made on the Hub.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from .._version import __version__
from ..checkpoints.hub.answers import Tell, tell_nobody
from ..checkpoints.hub.client import client_utils, request_headers
from ..checkpoints.hub.failures import explaining, without_secrets
from ..errors import HubError, UsageError
from ..messages import and_more, show

_BRANCH = re.compile(r"(?!.*\.\.)[^\s~^:?*\[\\/@][^\s~^:?*\[\\]*")

# What people keep beside a model by mistake. Whoever uploads it cannot call it back.
_SECRETS = (
    "id_rsa",
    "id_dsa",
    "id_ecdsa",
    "id_ed25519",
    "*.pem",
    "*.key",
    "*.p12",
    "*.pfx",
    "*.jks",
    "*.keystore",
    "*.kdbx",
    ".env",
    ".env.*",
    "*.env",
    ".netrc",
    "netrc",
    "_netrc",
    ".npmrc",
    ".pypirc",
    ".git-credentials",
    "credentials",
    "credentials.*",
    "*credentials.json",
    "secret.*",
    "secrets.*",
    "token",
    "token.txt",
    "*.token",
    "*_token",
    "*_token.txt",
    "*api_key*",
    "*apikey*",
    "*service_account*.json",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class PushTarget:
    """A repository of the Hub to commit to; `branch` None stands for its main branch.

    `message` is the commit's first line. With `create_pr` the commit is a pull request.
    """

    repo_id: str
    branch: str | None = None
    private: bool = False
    message: str = f"Upload a model expanded with blockexpand {__version__}"
    create_pr: bool = False


def parse_push_target(
    text: str,
    *,
    private: bool = False,
    message: str | None = None,
    create_pr: bool = False,
    token: str | None = None,
) -> PushTarget:
    """Parse `org/name`, `name`, or either with `@branch`. Raises: UsageError."""
    repo_id, at, branch = text.partition("@")
    try:
        client_utils().validate_repo_id(repo_id)
        if at and not _BRANCH.fullmatch(branch):
            raise ValueError
    except ValueError:
        raise UsageError(
            f"{without_secrets(repr(text), token)} is no repository id of the Hub to upload to; "
            "expected org/name or org/name@branch"
        ) from None
    if create_pr and branch:
        raise UsageError(
            f"{text}: a pull request goes to the main branch; leave out the branch or --create-pr"
        )
    more = {} if message is None else {"message": message}
    return PushTarget(
        repo_id=repo_id, branch=branch or None, private=private, create_pr=create_pr, **more
    )


def check_push(
    target: PushTarget | str,
    *,
    token: str | None = None,
    account: dict[str, Any] | None = None,
    tell: Tell = tell_nobody,
) -> dict[str, Any]:
    """Refuse an upload that cannot succeed: no token, one that may not write, a name of others.

    Returns what the Hub knows of the token's owner; given as `account` it is not asked for again.
    Nothing is made and nothing of the output is sent. Raises: UsageError, HubError.
    """
    if isinstance(target, str):
        target = parse_push_target(target, token=token)
    repo_id = target.repo_id
    if "authorization" not in request_headers(token):
        raise HubError(
            f"{repo_id}: an upload needs a token that may write: give --token or HF_TOKEN"
        )
    with explaining(repo_id, revision=None, token=token, tell=tell):
        account = _ask_account(token) if account is None else account
        access = _dig(account, "auth", "accessToken")
        role = access.get("role")
        if role == "read":
            raise HubError(
                f"{repo_id}: this token may only read; an upload needs one that may write: give "
                "another with --token or HF_TOKEN"
            )
        if _may_write(repo_id, token) or "/" not in repo_id or role == "fineGrained":
            return account
        owner, name = repo_id.split("/")[0], account.get("name")
        others = [o.get("name") for o in account.get("orgs") or () if isinstance(o, dict)]
        if name is not None and owner not in (name, *others):
            raise HubError(
                f"{repo_id}: there is no such repository, and the token is of {show(name)}, who is "
                f"in no organization {show(owner)}; expected {name}/… or an organization's name"
            )
    return account


def refuse_secrets(names: Iterable[str], where: str) -> None:
    """Refuse to publish files that look like keys or passwords. Raises: HubError."""
    found = sorted(name for name in names if looks_secret(name))
    if found:
        raise HubError(
            f"{where}: {and_more([show(name) for name in found], 3)} would be published and looks "
            "like a secret; nothing was sent: take it away, or upload by hand with `hf upload`"
        )


def looks_secret(name: str) -> bool:
    """Tell whether a file's name is one that keys, tokens or passwords are kept under."""
    base = name.rpartition("/")[2].lower()
    return any(fnmatchcase(base, pattern) for pattern in _SECRETS)


def _ask_account(token: str | None) -> dict[str, Any]:
    """Return what the Hub knows of the token's owner."""
    from huggingface_hub import HfApi

    api = HfApi(token=token, library_name="blockexpand", library_version=__version__)
    account: Any = api.whoami()
    return account if isinstance(account, dict) else {}


def _may_write(repo_id: str, token: str | None) -> bool:
    """Tell whether a repository is there for the token to write to; False where there is none.

    Raises: the client's own errors where it is there and may not be written to.
    """
    from huggingface_hub import constants

    response = (
        client_utils()
        .get_session()
        .get(
            f"{constants.ENDPOINT}/api/models/{repo_id}/auth-check/write",
            headers=request_headers(token),
            timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT,
        )
    )
    if response.status_code == 404:
        return False
    client_utils().hf_raise_for_status(response)
    return True


def _dig(value: Any, *keys: str) -> dict[str, Any]:
    for key in keys:
        value = value.get(key) if isinstance(value, dict) else None
    return value if isinstance(value, dict) else {}
