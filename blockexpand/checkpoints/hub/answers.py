"""Every answer of the Hub on its way to its client: waits are capped and told, paths refused.

The client waits as long as an answer asks it to, and makes paths of what some headers say. Both are
a stranger's words. It reads headers only, and sends nothing.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import urlsplit

from ...errors import HubError
from ...messages import show
from .client import watching_answers
from .compression import limit_unpacked

RETRIED_STATUSES = frozenset({408, 429, 500, 502, 503, 504})

LONGEST_ASKED_WAIT_S = 300

# Of these the client makes names of files and folders in its cache.
_NAMING_HEADERS = ("etag", "x-linked-etag", "x-repo-commit", "x-xet-hash")

Tell = Callable[[str], object]


def tell_nobody(line: str) -> None:
    """Take no notice of what is waited for."""


def parse_wait_s(asked: str | None) -> int | None:
    """Return the seconds that a Retry-After header asks for, at most those that are borne."""
    if asked is None or not re.fullmatch(r"[0-9]+", asked.strip()):
        return None
    digits = asked.strip().lstrip("0") or "0"
    return LONGEST_ASKED_WAIT_S if len(digits) > 9 else min(int(digits), LONGEST_ASKED_WAIT_S)


def describe_wait(status: int, asked: str, wait_s: float) -> str:
    """Say what is waited for, in one line."""
    why = "too many requests" if status == 429 else f"status {status}"
    asked = asked.strip()[:12]
    shortened = "" if asked == f"{wait_s:g}" else f", of which {wait_s:g} s are waited"
    return f"the Hub asks to wait {asked} s ({why}){shortened}"


@contextlib.contextmanager
def guarding_answers(tell: Tell = tell_nobody) -> Iterator[None]:
    """Look at every answer that the client's session gets inside, before the client does.

    Raises: HubError, where an answer would have the client write outside its cache.
    """

    def look(response: Any) -> None:
        # Threads that ask at the same time share the session, and each has put its hook there.
        if vars(response).setdefault("blockexpand_seen", look) is not look:
            return
        headers = response.headers
        for name in _NAMING_HEADERS:
            value = headers.get(name, "")
            if not _is_plain(value):
                host = urlsplit(str(response.url)).hostname
                raise HubError(
                    f"{host}: an answer has {show(value)} as its {name}, which leads "
                    "out of the cache; expected a digest: does HF_ENDPOINT name a Hub?"
                )
        limit_unpacked(response)
        if response.status_code in RETRIED_STATUSES:
            _cap_wait(response, tell)

    with watching_answers(look):
        yield


def _is_plain(value: str) -> bool:
    """Tell whether a header's value, as the client unquotes it, is a plain name or nothing."""
    text = value.strip().removeprefix("W/").strip().strip('"')
    return text not in (".", "..") and not any(c in text for c in "/\\\0")


def _cap_wait(response: Any, tell: Tell) -> None:
    asked = response.headers.get("Retry-After", "")
    # What the client prefers to Retry-After: `"api";r=0;t=55`.
    reset = re.search(r";\s*t\s*=\s*([0-9]+)", response.headers.get("RateLimit", ""))
    if response.status_code == 429 and reset is not None:
        asked = reset[1]
        del response.headers["RateLimit"]
    wait_s = parse_wait_s(asked)
    if wait_s is None:
        return
    response.headers["Retry-After"] = str(wait_s)
    if wait_s:
        tell(describe_wait(response.status_code, asked, wait_s))
