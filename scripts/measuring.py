"""Run a command as a process of its own and count what it costs; give it a file system to run on.

Standard library only, and little of it: a started process inherits its parent's peak memory.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

MAXRSS_UNIT = 1 if sys.platform == "darwin" else 1024
MKFS = {"xfs": ["mkfs.xfs", "-q", "-m", "reflink=1"], "btrfs": ["mkfs.btrfs", "-q"]}


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """One run. `flush_s` is what a `sync` takes after the process has ended; `disk_nbytes` is the
    change of the file system's used blocks.
    """

    wall_s: float
    flush_s: float
    cpu_s: float
    peak_nbytes: int
    disk_nbytes: int


def measure(command: Sequence[str], folder: Path, log: Path) -> Measurement:
    """Run a command to its end. `folder` lies on the file system whose blocks are counted.

    Raises: SystemExit with the command's last words when it fails.
    """
    free_nbytes = settle(folder)
    started = time.perf_counter()
    pid = os.posix_spawnp(
        command[0],
        command,
        os.environ,
        file_actions=[
            (os.POSIX_SPAWN_OPEN, 1, log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644),
            (os.POSIX_SPAWN_DUP2, 1, 2),
        ],
    )
    try:
        _, status, usage = os.wait4(pid, 0)
    except BaseException:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        raise
    ended = time.perf_counter()
    os.sync()
    flushed = time.perf_counter()
    if status:
        code = os.waitstatus_to_exitcode(status)
        words = log.read_text(errors="replace")[-2000:]
        raise SystemExit(f"{words}\n{' '.join(command)}: failed with status {code}")
    return Measurement(
        wall_s=ended - started,
        flush_s=flushed - ended,
        cpu_s=usage.ru_utime + usage.ru_stime,
        peak_nbytes=usage.ru_maxrss * MAXRSS_UNIT,
        disk_nbytes=free_nbytes - settle(folder),
    )


def settle(folder: Path) -> int:
    """Flush, wait until deletions and delayed allocations are through, return the free bytes."""
    os.sync()
    deadline = time.monotonic() + 5
    free_nbytes, previous = count_free_nbytes(folder), -1
    while free_nbytes != previous and time.monotonic() < deadline:
        time.sleep(0.2)
        free_nbytes, previous = count_free_nbytes(folder), free_nbytes
    return free_nbytes


def count_free_nbytes(folder: Path) -> int:
    """Return the free space of the file system that holds `folder`."""
    state = os.statvfs(folder)
    return state.f_bfree * state.f_frsize


def drop_cache(source: Path) -> str:
    """Drop the page cache, or the part of it that may be dropped, and say which."""
    os.sync()
    try:
        Path("/proc/sys/vm/drop_caches").write_text("3")
    except OSError:
        if not hasattr(os, "posix_fadvise"):
            return "warm cache: it cannot be dropped here"
        for file in source.glob("*.safetensors"):
            with file.open("rb") as stream:
                os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        return "only the source dropped from the cache: all of it may not be dropped"
    return "cold cache"


def find_file_system(folder: Path) -> str:
    """Return the type of the file system that holds `folder`."""
    longest, kind = "", "unknown file system"
    mounts = Path("/proc/self/mounts")
    for line in mounts.read_text().splitlines() if mounts.exists() else ():
        _, point, found, *_ = line.split()
        point = point.replace("\\040", " ")
        if folder.resolve().is_relative_to(point) and len(point) >= len(longest):
            longest, kind = point, found
    return kind


@contextmanager
def loop_mount(kind: str, image: Path, nbytes: int) -> Iterator[Path]:
    """Make a file system in a new image file, mount it for the time being and remove it again.

    Raises: SystemExit where that is not permitted, not installed, or the disk has no room.
    """
    tool = MKFS[kind][0]
    if os.geteuid() != 0:
        raise SystemExit(f"--make-fs {kind}: mounting needs root; run as root or leave it out")
    if shutil.which(tool) is None:
        raise SystemExit(f"--make-fs {kind}: {tool} is not installed")
    if shutil.disk_usage(image.parent).free < nbytes:
        raise SystemExit(f"{image}: the disk has no room for {nbytes / 1e9:g} GB; give --size")
    with image.open("xb") as stream:
        stream.truncate(nbytes)
    try:
        subprocess.run([*MKFS[kind], image], check=True, stdout=sys.stderr)
        with tempfile.TemporaryDirectory(prefix="blockexpand-") as point:
            subprocess.run(["mount", "-o", "loop", image, point], check=True)
            try:
                # Else all goes through the page cache of the file system below, a second time.
                words = ["findmnt", "-n", "-o", "SOURCE", point]
                found = subprocess.run(words, capture_output=True, text=True, check=True)
                subprocess.run(["losetup", "--direct-io=on", found.stdout.strip()], check=False)
                yield Path(point)
            finally:
                subprocess.run(["umount", point], check=True)
    finally:
        image.unlink()
