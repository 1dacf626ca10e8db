"""The parts of `huggingface_hub` that its own typing does not export, and a silent progress bar.

It sends nothing. The client is imported inside, so that a local run never does.
"""

from __future__ import annotations

import importlib
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..._version import __version__
from ...fs.paths import expand_home


def client_utils() -> Any:
    """Return `huggingface_hub.utils`, which is public but lazily filled, so untyped."""
    return importlib.import_module("huggingface_hub.utils")


def http_library() -> Any:
    """Return what the Hub's client speaks with: requests in 0.x, httpx in 1.x, httpx2 in 2.x."""
    from huggingface_hub.errors import HfHubHTTPError

    return sys.modules[HfHubHTTPError.__bases__[0].__module__.partition(".")[0]]


def request_errors() -> type[Exception]:
    """Return what every error of a request derives from."""
    library = http_library()
    error: type[Exception] = getattr(library, "RequestException", None) or library.HTTPError
    return error


def network_errors() -> tuple[type[Exception], ...]:
    """Return the errors of a connection, as against an answer that is an error."""
    library = http_library()
    if hasattr(library, "TransportError"):
        return (library.TransportError,)
    errors = library.exceptions
    return (
        errors.ConnectionError,
        errors.Timeout,
        errors.ChunkedEncodingError,
        errors.ContentDecodingError,
        errors.InvalidSchema,
        errors.TooManyRedirects,
    )


def is_unreachable(error: Exception) -> bool:
    """Tell whether nobody answers at all, which waiting would not change."""
    library = http_library()
    if hasattr(library, "TransportError"):
        return isinstance(
            error,
            library.ConnectError
            | library.ConnectTimeout
            | library.ProxyError
            | library.UnsupportedProtocol,
        )
    errors = library.exceptions
    if isinstance(error, (errors.ConnectTimeout, errors.ProxyError, errors.InvalidSchema)):
        return True
    # A connection that was never made, and not one that broke.
    cause = error.args[0] if error.args else None
    return isinstance(error, errors.ConnectionError) and type(cause).__name__ == "MaxRetryError"


@contextmanager
def watching_answers(look: Callable[[Any], None]) -> Iterator[None]:
    """Show `look` every answer that the client's sessions get inside, in whatever thread."""
    utils = client_utils()
    hooks = getattr(utils.get_session(), "event_hooks", None)
    if hooks is not None:
        hooks["response"].append(look)
        try:
            yield
        finally:
            hooks["response"].remove(look)
        return
    # Before 1.0 each thread has a session of its own, and all come from one factory.
    make = importlib.import_module("huggingface_hub.utils._http")._GLOBAL_BACKEND_FACTORY

    def make_watched() -> Any:
        session = make()
        session.hooks["response"].append(lambda response, **_: look(response))
        return session

    utils.configure_http_backend(make_watched)
    try:
        yield
    finally:
        utils.configure_http_backend(make)


@contextmanager
def open_stream(url: str, headers: Mapping[str, str]) -> Iterator[tuple[Any, Iterator[bytes]]]:
    """Ask for a file; yield the answer and its bytes as they come, redirects followed."""
    from huggingface_hub import constants

    session, timeout = client_utils().get_session(), constants.HF_HUB_DOWNLOAD_TIMEOUT
    if hasattr(session, "stream") and callable(session.stream):
        with session.stream("GET", url, headers=headers, timeout=timeout) as response:
            yield response, response.iter_bytes()
        return
    with session.get(url, headers=headers, timeout=timeout, stream=True) as response:
        yield response, response.iter_content(1 << 16)


def request_headers(token: str | None) -> dict[str, str]:
    """Return a request's headers; a token of None stands for HF_TOKEN or a stored login."""
    headers: dict[str, str] = client_utils().build_hf_headers(
        token=token, library_name="blockexpand", library_version=__version__
    )
    return headers


def find_cached(repo_id: str, name: str, revision: str, cache_dir: Path | None) -> Path | None:
    """Return a file's path in the Hub's cache, if it is there."""
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(repo_id, name, expand(cache_dir), revision)
    return Path(found) if isinstance(found, str) else None


def cache_folder(cache_dir: Path | None) -> Path:
    """Return the Hub's cache, whether it exists or not."""
    from huggingface_hub import constants

    return expand(cache_dir) or Path(constants.HF_HUB_CACHE)


def expand(cache_dir: Path | None) -> Path | None:
    """Expand `~`, which not every function of the client does."""
    return None if cache_dir is None else expand_home(cache_dir)


class StoppedError(Exception):
    """A download that is no longer wanted; what it has stays, to go on from."""


def make_silent_bar(
    progress: Callable[[int], object] | None, stopped: threading.Event | None = None
) -> type[Any]:
    """Return a progress bar class that shows nothing and reports bytes to `progress`.

    A download has one bar for received bytes and, with Xet, another for written ones: what is
    reported is the one that is further. Once `stopped` is set it ends the download that it counts.
    """
    from tqdm import tqdm

    counts: dict[int, float] = {}
    lock = threading.Lock()

    class SilentBar(tqdm):  # type: ignore[type-arg]
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            kwargs.pop("name", None)
            self._counts_bytes = kwargs.get("unit") == "B"
            super().__init__(*args, **{**kwargs, "disable": True})

        def update(self, n: float | None = 1) -> bool | None:
            if stopped is not None and stopped.is_set():
                raise StoppedError
            if progress is not None and self._counts_bytes and n:
                with lock:
                    before = max(counts.values(), default=0)
                    counts[id(self)] = counts.get(id(self), 0) + n
                    after = max(counts.values())
                if after != before:
                    progress(int(after - before))
            return None

    return SilentBar
