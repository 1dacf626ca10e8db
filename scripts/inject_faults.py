"""Give real runs real faults: `strace` makes system calls of the whole process tree fail.

    python scripts/inject_faults.py --runs 600 --jobs 2
    python scripts/inject_faults.py --cases convert,dask --runs 50 --seed 7

Each case is first run once under `strace`, to learn which calls touch the source, the output and
what lies beside it. Then each run gets a fault at one of those calls, once or from there on: an
error (ENOSPC, EIO, EDQUOT, EACCES, EROFS, EINTR). Afterwards the source must be
untouched, OUT absent, the complete old or the complete new one, what was said one line, and the
same command, run again, must end with the bytes of an undisturbed run. Needs Linux and `strace`.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(REPOSITORY / "tests" / "support")]

from faults import make_source, names_beside, snapshot, source_state  # noqa: E402

CALLS = "openat,mkdir,rename,renameat2,link,linkat,unlink,unlinkat,rmdir,ftruncate,fsync,write,"
CALLS += "pwrite64,preadv,copy_file_range,ioctl,fallocate,flock,stat,newfstatat,getdents64"
ERRORS = ("ENOSPC", "EIO", "EDQUOT", "EACCES", "EROFS", "EINTR")
CASES = ("new", "overwrite", "hardlink", "convert", "process", "dask", "extract", "apply")

# What a run may end with: done, could not do it.
ENDS = {0, 3}


@dataclass(kw_only=True)
class Counts:
    """What was seen."""

    runs: int = 0
    faults: int = 0
    ends: Counter[str] = field(default_factory=Counter)
    calls: Counter[str] = field(default_factory=Counter)
    faulty: list[str] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class Case:
    """A command in a folder of its own. `worker` is a dask worker that gets the faults instead."""

    name: str
    folder: Path
    command: tuple[str, ...]
    before: object
    wanted: object
    old: Path | None
    places: tuple[tuple[str, int], ...]
    worker: int | None = None

    @property
    def source(self) -> Path:
        return self.folder / "source"

    @property
    def out(self) -> Path:
        return self.folder / "parent" / "out"


def make_case(name: str, folder: Path, scheduler: tuple[str, int] | None) -> Case:
    """Make the source, run the command once undisturbed, and once to learn its calls."""
    source = make_source(folder / "source", dtype="F32" if name == "convert" else "BF16", layers=2)
    out = folder / "parent" / "out"
    out.parent.mkdir()
    command = ["-m", "blockexpand", "--src", str(source), "--out", str(out), "--new-layers", "1"]
    if name in ("extract", "apply"):
        command = make_adapter_command(name, source, folder, out)
    old = None
    if name == "overwrite":
        old = folder / "old"
        old.mkdir()
        (old / "config.json").write_text("{}")
        (old / "model.safetensors").write_bytes(b"the old one" * 1000)
        command.append("--overwrite")
    command += ["--hardlink"] if name == "hardlink" else []
    command += ["--executor", "process:2"] if name == "process" else []
    worker = None
    if name == "dask":
        assert scheduler is not None
        command += ["--executor", scheduler[0]]
        worker = scheduler[1]
    before = state_of(source)
    place(old, out)
    done = run_plainly(command)
    if done.returncode != 0:
        raise SystemExit(f"{name}: the undisturbed run failed: {done.stderr}")
    wanted = snapshot(out)
    place(old, out)
    log = folder / "calls"
    traced(command, worker, log, [f"--trace={CALLS}"])
    return Case(
        name=name,
        folder=folder,
        command=tuple(command),
        before=before,
        wanted=wanted,
        old=old,
        places=find_places(log, folder),
        worker=worker,
    )


def make_adapter_command(name: str, source: Path, folder: Path, out: Path) -> list[str]:
    """Make an expansion whose new block is not neutral any more, and of `apply` its adapter."""
    trained, blocks = folder / "trained", folder / "blocks"
    blockexpand = ["-m", "blockexpand"]
    run_plainly([*blockexpand, "--src", str(source), "--out", str(trained), "--new-layers", "1"])
    for shard in trained.glob("*.safetensors"):
        with shard.open("r+b") as stream:
            length = int.from_bytes(stream.read(8), "little")
            for tensor, entry in json.loads(stream.read(length)).items():
                if ".layers.2." in tensor and tensor.endswith(
                    ("o_proj.weight", "down_proj.weight")
                ):
                    start, end = entry["data_offsets"]
                    stream.seek(8 + length + start)
                    stream.write(b"\x3c" * (end - start))
    extract = [*blockexpand, "extract", str(trained), "--base", str(source), "--out"]
    if name == "extract":
        return [*extract, str(out)]
    run_plainly([*extract, str(blocks)])
    return [*blockexpand, "apply", str(source), str(blocks), "--out", str(out)]


def state_of(source: Path) -> object:
    return source_state(source)


def place(old: Path | None, out: Path) -> None:
    shutil.rmtree(out.parent)
    out.parent.mkdir()
    if old is not None:
        shutil.copytree(old, out)


def run_plainly(command: Sequence[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *command], env=environment(), capture_output=True, text=True
    )


def environment() -> dict[str, str]:
    return os.environ | {
        "PYTHONPATH": str(REPOSITORY),
        "PYTHONDONTWRITEBYTECODE": "1",
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
    }


def traced(
    command: Sequence[str], worker: int | None, log: Path, options: Sequence[str]
) -> subprocess.CompletedProcess[str]:
    """Run a command under strace; where there is a worker, that is traced instead."""
    strace = ["strace", "-f", "-y", "-qq", "-o", str(log), *options]
    if worker is None:
        return subprocess.run(
            [*strace, "--seccomp-bpf", sys.executable, *command],
            env=environment(),
            capture_output=True,
            text=True,
            timeout=300,
        )
    tracer = subprocess.Popen([*strace, "-p", str(worker)], stderr=subprocess.DEVNULL)
    try:
        time.sleep(0.5)
        return run_plainly(command)
    finally:
        tracer.send_signal(signal.SIGINT)
        tracer.wait()


def find_places(log: Path, folder: Path) -> tuple[tuple[str, int], ...]:
    """Return the calls that touch the folder: each one's name and number within its thread."""
    counts: Counter[tuple[str, str]] = Counter()
    places = []
    for line in log.read_text(errors="replace").splitlines():
        match = re.match(r"(\d+) +(\w+)\(", line)
        if match is None:
            continue
        counts[match[1], match[2]] += 1
        if str(folder) in line:
            places.append((match[2], counts[match[1], match[2]]))
    return tuple(places)


def disturb(case: Case, rng: random.Random, counts: Counts) -> None:
    """Run a case with one kind of fault, check what it left, and mend it with a second run."""
    call, number = rng.choice(case.places)
    kind = rng.choice(ERRORS)
    # From there on only what a full or broken disk does; else a retry would never end.
    lasting = "+" if kind in ("ENOSPC", "EIO", "EDQUOT", "EROFS") and rng.random() < 0.4 else ""
    if call in ("write", "stat", "newfstatat", "openat", "getdents64", "ioctl"):
        lasting = ""  # these the interpreter needs for itself
    place(case.old, case.out)
    old = snapshot(case.out)
    log = case.folder / "injected"
    injected = f"inject={call}:error={kind}:when={number}{lasting}"
    try:
        done = traced(case.command, case.worker, log, [f"--trace={call}", "-e", injected])
    except subprocess.TimeoutExpired:
        counts.faulty.append(f"{case.name}: {injected}: did not end")
        return
    hits = find_hits(log.read_text(errors="replace").splitlines())
    mine = [line for line in hits if str(case.folder) in line]
    if not mine or len(mine) != len(hits):
        return  # it met the interpreter's own start
    where = (
        f"{case.name}: {injected}: {mine[0][:200]}: exit {done.returncode}: {done.stderr[-400:]}"
    )
    fault = check(case, done, old)
    if fault is not None:
        counts.faulty.append(f"{fault}: {where}")
        print(f"WRONG: {counts.faulty[-1]}", flush=True)
    counts.runs += 1
    counts.faults += len(mine)
    counts.ends[str(done.returncode)] += 1
    counts.calls[f"{call} {kind}"] += len(mine)


def find_hits(lines: Sequence[str]) -> list[str]:
    """Return the calls that were made to fail."""
    return [line for line in lines if "(INJECTED)" in line]


def check(case: Case, done: subprocess.CompletedProcess[str], old: object) -> str | None:
    """Return what is wrong after a run, and after the same command without faults."""
    if done.returncode not in ENDS:
        return "exit status"
    said = [line for line in done.stderr.splitlines() if not re.match(r"\d\d:\d\d:\d\d ", line)]
    if "Traceback" in done.stderr or (done.returncode == 3 and len(said) != 1):
        return "not one line"
    is_linked = case.name == "hardlink"
    if state_of(case.source) != case.before and not is_linked:
        return "the source was changed"
    left = snapshot(case.out)
    if left not in (old, case.wanted):
        return "OUT is neither the old nor the new one"
    if done.returncode == 0:
        return None if left == case.wanted else "exit 0 without the output"
    again = run_plainly(case.command)
    if again.returncode != 0:
        return f"the second run failed: {again.stderr}"
    if snapshot(case.out) != case.wanted or names_beside(case.out):
        return f"the second run made something else: {names_beside(case.out)}"
    return None


@contextmanager
def dask_cluster(folder: Path) -> Iterator[tuple[str, int]]:
    """Start a scheduler and one worker; give its address and the worker's process."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    address = f"127.0.0.1:{port}"
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    started = []
    dask = [sys.executable, "-m", "distributed.cli"]
    try:
        for words in (
            ["dask_scheduler", "--host", "127.0.0.1", "--port", str(port), "--no-dashboard"],
            ["dask_worker", f"tcp://{address}", "--nthreads", "1", "--no-nanny", "--no-dashboard"],
        ):
            command = [*dask[:2], f"distributed.cli.{words[0]}", *words[1:]]
            started.append(
                subprocess.Popen(command, env=environment(), cwd=folder, **quiet)  # type: ignore[call-overload]
            )
            time.sleep(4)
        yield f"dask://{address}", started[1].pid
    finally:
        for process in reversed(started):
            process.terminate()
            with suppress(subprocess.TimeoutExpired):
                process.wait(20)


def inject(cases: Sequence[str], runs: int, seed: int, jobs: int) -> dict[str, Counts]:
    """Disturb each case so many times; each of the `jobs` has folders of its own."""
    counts = {name: Counts() for name in cases}
    shared = Path("/dev/shm")
    parent = shared if os.access(shared, os.W_OK) else None
    with tempfile.TemporaryDirectory(dir=parent, prefix="blockexpand-") as scratch:

        def work(job: int) -> None:
            for name in cases:
                folder = Path(scratch) / f"{job}-{name}"
                folder.mkdir()
                rng = random.Random(f"{seed} {job} {name}")
                if name == "dask":
                    with dask_cluster(folder) as scheduler:
                        repeat(make_case(name, folder, scheduler), rng, counts[name])
                else:
                    repeat(make_case(name, folder, None), rng, counts[name])

        def repeat(case: Case, rng: random.Random, own: Counts) -> None:
            for _ in range(-(-runs // jobs)):
                disturb(case, rng, own)
            wrong = len(own.faulty)
            print(f"{case.name}: {own.runs} runs, {own.faults} faults, {wrong} wrong", flush=True)

        with ThreadPoolExecutor(jobs) as pool:
            for future in [pool.submit(work, job) for job in range(jobs)]:
                future.result()
    return counts


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--cases", default=",".join(CASES), help="comma list (default: all)")
    parser.add_argument("--runs", type=int, default=200, help="runs of each case")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=1, help="how many at a time")
    options = parser.parse_args()
    if shutil.which("strace") is None:
        parser.error("strace is not installed: apt-get install strace")
    counts = inject(options.cases.split(","), options.runs, options.seed, options.jobs)
    faulty = 0
    for name, own in counts.items():
        ends = ", ".join(f"{n} × exit {end}" for end, n in sorted(own.ends.items()))
        print(f"{name}: {own.runs} runs with {own.faults} faults: {ends}")
        for line in own.faulty:
            print(f"  WRONG: {line}")
        faulty += len(own.faulty)
    runs, faults = (
        sum(getattr(own, what) for own in counts.values()) for what in ("runs", "faults")
    )
    print(f"{runs} runs, {faults} faults, {faulty} wrong, seed {options.seed}")
    return 1 if faulty else 0


if __name__ == "__main__":
    sys.exit(main())
