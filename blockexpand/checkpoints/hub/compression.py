"""Answers that come compressed are unpacked up to a limit: a stranger's MB may be many GB of zeros.

It touches nothing of an answer that comes as it is, and sends nothing.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from typing import Any

from ...errors import HubError
from ...formats.json_object import MOST_JSON_NBYTES
from ...messages import format_size
from .client import http_library

_STEP_NBYTES = 1 << 20

# Windows of zlib: gzip or zlib by what the data begin with.
_GZIP_OR_ZLIB = 47


def limit_unpacked(response: Any) -> None:
    """Have an answer that is compressed with gzip or deflate unpacked here, within the limit.

    Other encodings are asked for only where their libraries are installed, and are left alone; so
    are the answers of clients before 1.0, whose library has no such place to stand in.
    """
    encoding = response.headers.get("Content-Encoding", "").strip().lower()
    if encoding not in ("gzip", "x-gzip", "deflate") or not hasattr(response, "iter_raw"):
        return
    host = str(response.url.host)
    base: Any = http_library().SyncByteStream
    packed = response.stream

    class Unpacked(base):  # type: ignore[misc]
        def __iter__(self) -> Iterator[bytes]:
            return _unpack(packed, host)

        def close(self) -> None:
            packed.close()

    response.stream = Unpacked()
    del response.headers["Content-Encoding"]
    # The length is that of what was sent.
    response.headers.pop("Content-Length", None)


def _unpack(packed: Any, host: str) -> Iterator[bytes]:
    unpacker, nbytes = zlib.decompressobj(_GZIP_OR_ZLIB), 0
    try:
        for piece in packed:
            left = piece
            while left:
                part = unpacker.decompress(left, _STEP_NBYTES)
                nbytes += len(part)
                if nbytes > MOST_JSON_NBYTES:
                    raise HubError(
                        f"{host}: an answer of a few bytes unpacks to more than "
                        f"{format_size(MOST_JSON_NBYTES)}; does HF_ENDPOINT name a Hub?"
                    )
                yield part
                left = unpacker.unconsumed_tail
        yield unpacker.flush()
    except zlib.error:
        raise HubError(
            f"{host}: an answer says that it is compressed, and is not; is there a proxy between?"
        ) from None
