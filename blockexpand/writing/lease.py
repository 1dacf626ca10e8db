"""A lease for file systems without locks: a file that says who works, and is renewed meanwhile.

It is taken over only where its holder is provably gone: a process of this very system that is no
more, or one that has not renewed it for as long as two minutes by our own clock. No two machines'
clocks are compared.
Source: proc_pid_stat(5), pid_namespaces(7).
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from ..errors import OutputBusyError, OutputError, TransferError
from ..fs.io import attempt, sync_file, write_from

_RENEW_SECONDS = 15.0

# Several renewals may be late, on a busy network file system, before anybody takes a lease over.
_STALE_SECONDS = 120.0

_POLL_SECONDS = 1.0

# Every record has this size, so that a renewal never makes the file shorter for a moment.
_RECORD_NBYTES = 512


@contextmanager
def hold_lease(path: Path, out: Path) -> Iterator[Callable[[], None]]:
    """Hold the lease of an output; gives a function that raises OutputError once it is lost.

    Raises: OutputBusyError where another run holds it, which may take up to two minutes to tell.
    """
    lease = _Lease(path, out)
    while not lease.create():
        _wait_for(path, out)
    lease.start()
    try:
        yield lease.check
    finally:
        lease.end()


class _Lease:
    """A lease of ours; a thread renews it until its end."""

    def __init__(self, path: Path, out: Path) -> None:
        self._path = path
        self._out = out
        self._record = {"token": uuid.uuid4().hex, **_describe_process()}
        self._count = 0
        self._fd = -1
        self._renewed = time.monotonic()
        self._is_lost = False
        self._over = threading.Event()
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._keep, daemon=True)

    def create(self) -> bool:
        """Make the file; False where there is one."""
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL
        try:
            self._fd = attempt("create", self._path, os.open, self._path, flags, 0o644)
        except TransferError as error:
            if isinstance(error.__cause__, FileExistsError):
                return False
            raise
        try:
            self._write()
        except BaseException:
            os.close(self._fd)
            self._path.unlink(missing_ok=True)
            raise
        return True

    def start(self) -> None:
        self._thread.start()

    def check(self) -> None:
        """Raises: OutputError where another run may have taken the lease over."""
        self._renew()
        late = time.monotonic() - self._renewed > _STALE_SECONDS * 2 / 3
        if self._is_lost or late:
            raise OutputError(
                f"{self._path}: this run was held up for so long that another one may have taken "
                f"over {self._out}; run the same command again"
            )

    def end(self) -> None:
        self._over.set()
        self._thread.join()
        with suppress(OSError):
            if self._is_ours():
                self._path.unlink()
        os.close(self._fd)

    def _keep(self) -> None:
        while not self._over.wait(_RENEW_SECONDS):
            self._renew()

    def _renew(self) -> None:
        with self._lock, suppress(OSError, TransferError):
            if not self._is_ours():
                self._is_lost = True
            if not self._is_lost:
                self._count += 1
                self._write()
                self._renewed = time.monotonic()

    def _write(self) -> None:
        now = datetime.now(timezone.utc).isoformat(timespec="seconds")
        record = self._record | {"renewed": now, "count": self._count}
        data = json.dumps(record).encode().ljust(_RECORD_NBYTES)
        write_from(self._fd, memoryview(data), 0, self._path)
        sync_file(self._fd, self._path)

    def _is_ours(self) -> bool:
        try:
            return _parse(self._path.read_bytes()).get("token") == self._record["token"]
        except FileNotFoundError:
            return False


def _wait_for(path: Path, out: Path) -> None:
    """Return once a lease that was there is gone. Raises: OutputBusyError where it is renewed."""
    first = _read(path)
    began = time.monotonic()
    while not _is_gone(_parse(first)) and time.monotonic() - began < _STALE_SECONDS:
        time.sleep(_POLL_SECONDS)
        now = _read(path)
        if now is None:
            return
        if now != first:
            holder = _parse(now)
            raise OutputBusyError(
                f"{out}: another run is writing it (process {holder.get('pid')} on "
                f"{holder.get('host')}); wait until it ends"
            )
    if first is not None:
        _remove_stale(path, out, first)


def _remove_stale(path: Path, out: Path, content: bytes) -> None:
    """Remove a lease that nobody renews, unless another run has done so and made its own."""
    claim = path.with_suffix(".takeover")
    try:
        fd = attempt("create", claim, os.open, claim, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    except TransferError as error:
        if isinstance(error.__cause__, FileExistsError):
            raise OutputBusyError(
                f"{out}: another run is about to write it; if there is none, remove {claim}"
            ) from None
        raise
    try:
        if _read(path) == content:
            attempt("remove", path, os.unlink, path)
    finally:
        os.close(fd)
        with suppress(OSError):
            claim.unlink()


def _read(path: Path) -> bytes | None:
    with suppress(FileNotFoundError):
        return path.read_bytes()
    return None


def _parse(content: bytes | None) -> dict[str, Any]:
    with suppress(ValueError):
        record = json.loads(content or b"{}")
        return record if isinstance(record, dict) else {}
    return {}


def _describe_process() -> dict[str, object]:
    """Return what tells this process from every other, also from one of another container."""
    return {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "system": _name_system(),
        "start": _start_of(os.getpid()),
    }


def _is_gone(record: dict[str, Any]) -> bool:
    """Tell whether a process is known not to run: it was one of this system, and is no more."""
    system, pid = record.get("system"), record.get("pid")
    if system is None or system != _name_system() or type(pid) is not int:
        return False
    return _start_of(pid) != record.get("start")


def _name_system() -> str | None:
    """Name this boot of this machine, and the processes that can be seen: containers have their
    own."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return None


def _start_of(pid: int) -> str | None:
    """Return when a process began, as the system counts; None where there is no such process."""
    with suppress(OSError):
        # The name of a program, in parentheses, may hold anything.
        return Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()[19]
    return None
