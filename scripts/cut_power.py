"""Cut the power of a busy file system at random moments of real runs, and see what is left.

    python scripts/cut_power.py --cuts 100

An ext4 of its own, in a file, is told to go down without writing out its journal
(FS_IOC_SHUTDOWN), while a run makes an output on it and another process keeps it busy: what was not
forced onto the disk is lost, as with the power. It is then mounted again. The source must be
untouched, OUT absent, the complete old or the complete new one, and the same command must end with
the bytes of an undisturbed run. Needs Linux and root.
"""

from __future__ import annotations

import argparse
import fcntl
import os
import random
import shutil
import struct
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(REPOSITORY / "tests" / "support")]

from faults import make_source, names_beside, snapshot, source_state  # noqa: E402

_FS_IOC_SHUTDOWN = 0x8004587D
_WITHOUT_JOURNAL = 2

BUSY = """
import os, sys
folder = sys.argv[1]
number = 0
while True:
    number += 1
    path = os.path.join(folder, f"busy-{number % 20}")
    with open(path, "wb") as stream:
        stream.write(os.urandom(50_000))
        if number % 3 == 0:
            stream.flush()
            os.fsync(stream.fileno())
    os.rename(path, path + ".renamed")
"""


class Disk:
    """An ext4 in a file, mounted or not."""

    def __init__(self, folder: Path, nbytes: int) -> None:
        self._image = folder / "image"
        self.point = folder / "point"
        self.point.mkdir()
        with self._image.open("xb") as stream:
            stream.truncate(nbytes)
        quiet = {"check": True, "capture_output": True}
        subprocess.run(["mkfs.ext4", "-F", "-q", self._image], **quiet)  # type: ignore[call-overload]
        self.mount()

    def mount(self) -> None:
        subprocess.run(["mount", "-o", "loop", self._image, self.point], check=True)

    def cut(self) -> None:
        """Take the file system down as it is; everything that goes on fails from here."""
        fd = os.open(self.point, os.O_RDONLY)
        fcntl.ioctl(fd, _FS_IOC_SHUTDOWN, struct.pack("I", _WITHOUT_JOURNAL))
        os.close(fd)

    def unmount(self) -> None:
        for _ in range(100):
            if subprocess.run(["umount", self.point], capture_output=True).returncode == 0:
                return
            time.sleep(0.1)
        subprocess.run(["umount", self.point], check=True)

    def is_sound(self) -> bool:
        """Tell whether the file system itself is without a fault, once its journal is replayed."""
        subprocess.run(["e2fsck", "-p", self._image], capture_output=True)
        return subprocess.run(["e2fsck", "-fn", self._image], capture_output=True).returncode == 0


def run(command: list[str]) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, *command], env=environment, capture_output=True, text=True
    )


def cut_power(cuts: int, seed: int) -> tuple[Counter[str], list[str]]:
    """Return how each run was left (`absent`, `old`, `new`), and what was wrong."""
    left: Counter[str] = Counter()
    wrong: list[str] = []
    rng = random.Random(seed)
    with tempfile.TemporaryDirectory() as scratch:
        disk = Disk(Path(scratch), 256 << 20)
        try:
            source = make_source(
                disk.point / "source", layers=4, hidden=256, intermediate=1024, vocabulary=2048
            )
            (disk.point / "busy").mkdir()
            out = disk.point / "parent" / "out"
            out.parent.mkdir()
            command = ["-m", "blockexpand", "--src", str(source), "--out", str(out), "-q"]
            command += ["--reflink", "never", "--overwrite", "--new-layers"]
            seconds, trees = [], []
            for layers in ("1", "2"):
                began = time.monotonic()
                done = run([*command, layers])
                assert done.returncode == 0, done.stderr
                seconds.append(time.monotonic() - began)
                trees.append(snapshot(out))
                shutil.move(out, disk.point / f"kept-{layers}")
            os.sync()
            before = source_state(source)
            for number in range(cuts):
                old = None
                if number % 2:
                    shutil.copytree(disk.point / "kept-1", out)
                    old = trees[0]
                os.sync()
                words = [*command, "2"]
                fault = cut_once(disk, words, rng.uniform(0.2, 1.2) * max(seconds))
                now = snapshot(out)
                state = "absent" if now is None else "old" if now == old else "new"
                left[state] += 1
                if now not in (old, trees[1]):
                    fault = "OUT is neither the old nor the new one"
                if source_state(source) != before:
                    fault = "the source was changed"
                again = run(words)
                if again.returncode != 0:
                    fault = f"the second run failed: {again.stderr}"
                elif snapshot(out) != trees[1] or names_beside(out):
                    fault = f"the second run made something else: {names_beside(out)}"
                if fault:
                    wrong.append(f"cut {number} ({state}): {fault}")
                shutil.rmtree(out.parent)
                out.parent.mkdir()
        finally:
            disk.unmount()
    return left, wrong


def cut_once(disk: Disk, words: list[str], seconds: float) -> str | None:
    """Run a command and cut the power after so many seconds; return what is wrong with the disk."""
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    nowhere = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    busy = subprocess.Popen([sys.executable, "-c", BUSY, str(disk.point / "busy")], **nowhere)  # type: ignore[call-overload]
    running = subprocess.Popen([sys.executable, *words], env=environment, **nowhere)  # type: ignore[call-overload]
    with suppress(subprocess.TimeoutExpired):
        running.wait(seconds)
    disk.cut()
    for process in (running, busy):
        process.kill()
        process.wait()
    disk.unmount()
    sound = disk.is_sound()
    disk.mount()
    return None if sound else "the file system itself is damaged"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--cuts", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    left, wrong = cut_power(options.cuts, options.seed)
    for line in wrong:
        print(f"WRONG: {line}")
    states = ", ".join(f"{count} × OUT {state}" for state, count in sorted(left.items()))
    print(f"{sum(left.values())} cuts: {states}; {len(wrong)} wrong, seed {options.seed}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
