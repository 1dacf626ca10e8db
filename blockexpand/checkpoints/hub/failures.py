"""What `huggingface_hub` raises → one plain line that says what to do. Never a token in it.

It asks nothing of the network and imports nothing of ours but the exception tree.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

from ...errors import BlockExpandError, HubError
from .answers import Tell, guarding_answers, tell_nobody
from .client import request_errors, request_headers

_HOME = "https://huggingface.co"

_LONGEST_QUOTE = 300

_MASK = "***"

_SECRET_SHAPES = (
    (re.compile(r"(://)[^/\s@'\"]+@"), rf"\1{_MASK}@"),
    (re.compile(r"(https?://[^\s?'\"<>]+)\?[^\s'\"<>]*"), r"\1"),
    (re.compile(r"(?i)\b(bearer|basic)\s+[^\s'\",]+"), rf"\1 {_MASK}"),
    (re.compile(r"\b(hf|api_org)_[A-Za-z0-9]{16,}"), _MASK),
)


@contextlib.contextmanager
def explaining(
    repo_id: str, *, revision: str | None, token: str | None, tell: Tell = tell_nobody
) -> Iterator[None]:
    """Raise whatever the client raises inside as a HubError of one line.

    `tell` hears what the Hub has the client wait for. The original exception is not chained: its
    text, its request and its headers may hold a token.
    """
    try:
        with guarding_answers(tell):
            yield
    except BlockExpandError:
        raise
    except Exception as error:
        line = explain(error, repo_id, revision=revision, token=token)
        raise HubError(f"{repo_id}: {line}") from None


def explain(error: BaseException, repo_id: str, *, revision: str | None, token: str | None) -> str:
    """Say in one line what went wrong and what to do about it."""
    from huggingface_hub import errors

    # The client wraps the failed request where it found nothing in the cache either.
    wrappers = (errors.LocalEntryNotFoundError, RuntimeError)
    while isinstance(error, wrappers) and error.__cause__ is not None:
        error = error.__cause__
    # Before 1.0 the client tells a bad token as an error of its HTTP library.
    is_answer = getattr(error, "response", None) is not None and isinstance(error, request_errors())
    if is_answer or isinstance(error, errors.HfHubHTTPError):
        return _explain_answer(error, repo_id, revision=revision, token=token)
    if isinstance(error, errors.OfflineModeIsEnabled):
        return (
            "HF_HUB_OFFLINE is set and the cache does not hold what is needed; unset it, or give "
            "the --cache-dir that has it"
        )
    fact = without_secrets(f"{type(error).__name__}: {error}", token)
    if isinstance(error, request_errors()):
        return (
            f"cannot reach {without_secrets(_endpoint(), token)} ({fact}); check the connection "
            "and run the same command again"
        )
    if "Consistency check failed" in fact:
        # The client's own advice names an option that nobody here can give.
        found = re.search(r"should be of size \d+ but has size \d+", fact)
        return f"a file came with a wrong length: it {found[0] if found else fact}; run it again"
    if isinstance(error, OSError) and error.errno is not None:
        where = f" ({error.filename})" if error.filename else ""
        return f"{os.strerror(error.errno)}{where}: a file of the download could not be written"
    return fact


def _explain_answer(error: Any, repo_id: str, *, revision: str | None, token: str | None) -> str:
    from huggingface_hub import errors

    status = error.response.status_code
    page = f"{_HOME}/{repo_id}"
    message = without_secrets(getattr(error, "server_message", None) or str(error), token)
    if isinstance(error, errors.GatedRepoError):
        if "authorization" not in request_headers(token):
            return f"access is restricted: accept the licence at {page} and give --token"
        return (
            f"access is restricted and this token has none: accept the licence at {page} with "
            "the token's account, and let the token read gated repositories"
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return f"it has no revision {revision!r}; its branches and tags are listed at {page}"
    if isinstance(error, errors.DisabledRepoError):
        return f"the Hub has disabled it; see {page}"
    # Called so since 1.0.
    absent: type[Any] = getattr(errors, "RemoteEntryNotFoundError", errors.EntryNotFoundError)
    if isinstance(error, absent):
        path = without_secrets(str(error.response.url), token)
        return f"the Hub lists a file that it does not give ({path}); see {page}"
    if status in (401, 404):
        endpoint = without_secrets(_endpoint(), token)
        if "authorization" in request_headers(token) and status == 401:
            return (
                f"the Hub does not accept this token ({message}); make a new one at "
                f"{_HOME}/settings/tokens"
            )
        if "authorization" not in request_headers(token):
            return f"{endpoint} has no such public repository; if it is private, give --token"
        return f"{endpoint} has no such repository that this token may see; check the spelling"
    if status == 403 and "authorization" not in request_headers(token):
        return f"the Hub refuses access ({message}); where it needs a token, give --token"
    if status == 403:
        return f"this token may not do that ({message}); give it the permission or take another"
    if status == 429:
        return "the Hub refuses for now: too many requests; wait some minutes and run it again"
    if status >= 500:
        return f"the Hub is in trouble (status {status}: {message}); run it again later"
    return f"the Hub answered with status {status}: {message}"


def without_secrets(text: str, token: str | None) -> str:
    """Return the text on one line, without tokens, passwords in URLs and signed query strings."""
    for secret in _secrets(token):
        text = text.replace(secret, _MASK).replace(quote(secret, safe=""), _MASK)
    for shape, mask in _SECRET_SHAPES:
        text = shape.sub(mask, text)
    text = " ".join(text.split())
    return text if len(text) <= _LONGEST_QUOTE else text[:_LONGEST_QUOTE] + "…"


def _secrets(token: str | None) -> list[str]:
    import huggingface_hub

    known = [token, os.environ.get("HF_TOKEN"), os.environ.get("HUGGING_FACE_HUB_TOKEN")]
    with contextlib.suppress(Exception):
        known.append(huggingface_hub.get_token())
    # The longest first, so that no piece of one is left where another is a part of it.
    return sorted({s.strip() for s in known if s and s.strip()}, key=len, reverse=True)


def _endpoint() -> str:
    from huggingface_hub import constants

    return constants.ENDPOINT
