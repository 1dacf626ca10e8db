"""Read a byte range of a file on the Hub, at one commit, and go on where a connection broke.

It keeps nothing and writes nothing: the bytes go to the caller's sink, in order, each once.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Generator
from contextlib import closing
from typing import Any

from ...errors import HubError
from .answers import RETRIED_STATUSES, parse_wait_s
from .client import client_utils, network_errors, open_stream, request_headers

# As `huggingface_hub` waits: 1, 2, 4, 8, 8 seconds, counted anew when bytes came.
_MOST_FAILURES = 5

_LONGEST_WAIT_S = 8.0


def read_range(
    repo_id: str,
    commit: str,
    name: str,
    nbytes: int,
    *,
    start: int,
    stop: int,
    sink: Callable[[bytes], object],
    token: str | None,
    stopped: threading.Event | None = None,
) -> None:
    """Send the bytes `start` to `stop` of a file of `nbytes` to `sink`, retrying what may pass.

    Returns early, without an error, when `stopped` is set.
    Raises: HubError where the file has another length; the client's own errors as they are.
    """
    from huggingface_hub.errors import HfHubHTTPError

    transport_errors = network_errors()
    stopped = stopped or threading.Event()
    failures = 0
    while start < stop:
        reached, asked_wait = start, None
        error: Exception = HubError(f"{repo_id}: {name}: the Hub sends nothing after byte {start}")
        try:
            with closing(_open_range(repo_id, commit, name, nbytes, start, stop, token)) as pieces:
                for piece in pieces:
                    if stopped.is_set():
                        return
                    sink(piece)
                    start += len(piece)
        except HfHubHTTPError as answer:
            if answer.response.status_code not in RETRIED_STATUSES:
                raise
            error, asked_wait = answer, answer.response.headers.get("Retry-After")
        except transport_errors as broken:
            error = broken
        failures = 1 if start > reached else failures + 1
        if start < stop and failures > _MOST_FAILURES:
            raise error
        if start < stop and stopped.wait(_wait_s(failures, asked_wait)):
            return


def _wait_s(failures: int, asked: str | None) -> float:
    asked_s = parse_wait_s(asked)
    return float(asked_s) if asked_s is not None else min(2.0 ** (failures - 1), _LONGEST_WAIT_S)


def _open_range(
    repo_id: str,
    commit: str,
    name: str,
    nbytes: int,
    start: int,
    stop: int,
    token: str | None,
    *,
    whole: bool = False,
) -> Generator[bytes, None, None]:
    """Ask once and yield the pieces that come; fewer than were asked for may come.

    A server that refuses every range is asked a second time, for the `whole` file.
    """
    from huggingface_hub import hf_hub_url

    headers = request_headers(token)
    headers |= {} if whole else {"Range": f"bytes={start}-{stop - 1}"}
    headers |= {"Accept-Encoding": "identity"}
    url = hf_hub_url(repo_id, name, revision=commit)
    # The session follows the redirect to the storage and takes the token out of the headers then.
    with open_stream(url, headers) as (response, pieces):
        refused = response.status_code == 416 and not whole
        if not refused:
            client_utils().hf_raise_for_status(response)
        found = _file_nbytes(response)
        if found is not None and found != nbytes:
            raise HubError(
                f"{repo_id}: {name} has {found} bytes; expected {nbytes} as the Hub lists: the "
                "storage does not hold what was uploaded; tell its owner, or try again later"
            )
        if refused:
            rest = _open_range(repo_id, commit, name, nbytes, start, stop, token, whole=True)
            with closing(rest):
                yield from rest
            return
        begin = _first_byte(response)
        if response.status_code == 206 and begin not in (None, start):
            raise HubError(
                f"{repo_id}: {name}: asked for bytes from {start} on, the storage answers with "
                f"those from {begin} on; try again later, or without a proxy between"
            )
        left = stop - start
        # A server without ranges sends the file from its beginning.
        skip = start if response.status_code == 200 else 0
        # Pieces as they come: gathered ones would be lost where the connection breaks.
        for piece in pieces:
            wanted = piece[skip : skip + left]
            skip = max(0, skip - len(piece))
            left -= len(wanted)
            yield wanted
            if left == 0:
                return


def _first_byte(response: Any) -> int | None:
    """Return where the range begins that an answer says it holds."""
    place = re.match(r"\s*bytes\s+(\d+)-", response.headers.get("Content-Range", ""))
    return None if place is None else int(place[1])


def _file_nbytes(response: Any) -> int | None:
    """Return the length of the whole file, as an answer to a range request tells it."""
    place = re.search(r"/(\d+)\s*$", response.headers.get("Content-Range", ""))
    if place is not None:
        return int(place[1])
    length = response.headers.get("Content-Length", "")
    return int(length) if response.status_code == 200 and length.isdecimal() else None
