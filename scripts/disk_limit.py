"""Measure what a disk gives at best: reading, and reading and writing at once, past the page cache.

    python scripts/disk_limit.py /data/7b --work /data

The best of a few sizes of requests and numbers of threads, with buffers in large pages, is the
limit that programs are held against.
"""

from __future__ import annotations

import argparse
import json
import mmap
import os
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

REQUESTS = (1 << 20, 4 << 20, 16 << 20)
THREADS = (1, 2, 4)
SAMPLE_NBYTES = 1 << 29

_DIRECT = getattr(os, "O_DIRECT", 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Limit:
    """The most bytes that were moved in a second, and with which requests and threads.

    `copied` counts what is read and what is written, at the same time and equally much.
    """

    read: float
    read_with: tuple[int, int]
    copied: float
    copied_with: tuple[int, int]

    def seconds(self, read: int, written: int) -> float:
        """Return the least time in which so many bytes can be read and written."""
        both = min(read, written)
        # What is left is written no faster than it is read.
        return 2 * both / self.copied + (max(read, written) - both) / self.read


def measure_limit(source: Path, work: Path, nbytes: int = SAMPLE_NBYTES) -> Limit:
    """Try all sizes and numbers of threads on a checkpoint's weights; leaves nothing in `work`."""
    files = sorted(source.glob("*.safetensors"))
    read, copied = [], []
    for size in REQUESTS:
        for threads in THREADS:
            read.append((_time(files, None, size, threads, nbytes), (size, threads)))
            with tempfile.NamedTemporaryFile(dir=work) as target:
                rate = _time(files, Path(target.name), size, threads, nbytes)
                copied.append((2 * rate, (size, threads)))
    (best, how), (best_copy, how_copy) = max(read), max(copied)
    return Limit(read=best, read_with=how, copied=best_copy, copied_with=how_copy)


def _time(
    files: Sequence[Path], target: Path | None, size: int, threads: int, nbytes: int
) -> float:
    """Return how many bytes a second are read and, if there is a target, written to it as well."""
    pieces = _cut(files, size, nbytes)
    lock = threading.Lock()
    done = 0
    fds = {file: _open(file, os.O_RDONLY) for file in files}
    out = None if target is None else _open(target, os.O_WRONLY)

    def work() -> None:
        nonlocal done
        memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        with suppress(AttributeError, OSError):
            memory.madvise(mmap.MADV_HUGEPAGE)
        while True:
            with lock:
                piece = next(pieces, None)
            if piece is None:
                return
            file, offset, position = piece
            count = os.preadv(fds[file], [memory], offset)
            if out is not None:
                os.pwritev(out, [memory], position)
            with lock:
                done += count

    started = time.perf_counter()
    try:
        with ThreadPoolExecutor(threads) as pool:
            for running in [pool.submit(work) for _ in range(threads)]:
                running.result()
        if out is not None:
            os.fsync(out)
    finally:
        for fd in (*fds.values(), *(() if out is None else (out,))):
            os.close(fd)
    return done / (time.perf_counter() - started)


def _cut(files: Sequence[Path], size: int, nbytes: int) -> Iterator[tuple[Path, int, int]]:
    position = 0
    for file in files:
        for offset in range(0, file.stat().st_size, size):
            if position >= nbytes:
                return
            yield file, offset, position
            position += size


def _open(path: Path, flags: int) -> int:
    try:
        return os.open(path, flags | _DIRECT)
    except OSError:
        return os.open(path, flags)


def main() -> None:
    """Read the command line, measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("source", type=Path, help="a checkpoint, whose weights are read")
    parser.add_argument("--work", type=Path, required=True, help="where a file is written")
    options = parser.parse_args()
    print(json.dumps(asdict(measure_limit(options.source, options.work)), indent=2))


if __name__ == "__main__":
    main()
