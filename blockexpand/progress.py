"""How a caller is told of progress: callbacks that count bytes. The library itself never prints."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

Report = Callable[[int], None]


def _ignore(*_: object) -> None:
    return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """What a run tells of itself while it is at work; every callback is optional.

    `begin` is called with what begins and its bytes; `advance` with the bytes of each part. `stage`
    names what goes on where no bytes can be counted: loading torch, comparing logits. `begin_file`
    and `end_file` are called with the name of a shard, `begin_job` with a job's output, `end_job`
    also with how it ended. `tell` is called with one line on what is waited for.
    All but `begin` are called from any thread. `is_shown` says that somebody watches: the Hub's
    client may then draw its own bars on stderr.
    """

    begin: Callable[[str, int], None] = _ignore
    advance: Report = _ignore
    stage: Callable[[str], None] = _ignore
    begin_file: Callable[[str], None] = _ignore
    end_file: Callable[[str], None] = _ignore
    begin_job: Callable[[str], None] = _ignore
    end_job: Callable[[str, str], None] = _ignore
    tell: Callable[[str], None] = _ignore
    is_shown: bool = False


SILENT = Progress()
