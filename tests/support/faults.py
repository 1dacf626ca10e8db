"""Runs of the command line that break off or go wrong at a chosen system call, for the tests.

A `Nursery` is one warm Python process; every run is a fork of it, so that hundreds of runs take
seconds. In the fork the calls that reach the file system are wrapped: each is counted and noted,
and at the wanted one the process is killed, interrupted, given an error or a short count, made to
wait, or a file is changed behind its back. Nothing is really forced onto the disk, for a killed
process loses nothing that the system has taken from it; that it would be, and in which order, is
told from the calls. Run as a script this file is the nursery.
"""

from __future__ import annotations

import builtins
import ctypes
import errno
import fcntl
import hashlib
import importlib
import io
import json
import os
import pathlib
import random
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[2]

# Small enough that a tiny checkpoint goes every way that a large one does: several chunks per
# file, direct I/O, several lines of the journal. One thread, so that a call has a fixed number.
SMALL = {
    "blockexpand.writing.chunks._CHUNK_NBYTES": 32 << 10,
    "blockexpand.writing.chunks._JOURNAL_NBYTES": 64 << 10,
    "blockexpand.writing.chunks.THREADS": 1,
    "blockexpand.writing.chunks.WORTH_DIRECT_NBYTES": 4096,
    "blockexpand.fs.reading.WORTH_DIRECT_NBYTES": 4096,
}

# The calls after which the disk, or what the run knows of it, is another than before.
WRITES = ("pwrite", "write", "copy_file_range", "ioctl", "ftruncate")
ENTRIES = ("rename", "replace", "link", "mkdir", "renameat2")
STEPS = (*WRITES, *ENTRIES, "open", "file", "preadv", "read", "fsync", "rmdir", "unlink", "flock")
# Those that only look.
LOOKS = ("stat", "lstat", "statvfs", "listdir", "scandir")


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One wrapped call; `inode` is that of the file, or of the folder that a name is entered in.

    `nbytes` is what a read, a write or a copy moved.
    """

    name: str
    path: str
    inode: int
    writes: bool = False
    enters: bool = False
    nbytes: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How a run ended; `code` is the exit status, negative for a signal."""

    code: int
    out: str
    err: str
    calls: tuple[Call, ...]


class Nursery:
    """A warm process that forks one child per run."""

    def __init__(self, folder: Path, *, preload: Iterable[str] = ()) -> None:
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self._process = subprocess.Popen(
            [sys.executable, __file__, *preload],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=os.environ
            | {"PYTHONPATH": str(REPOSITORY), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
            text=True,
        )
        self._jobs = 0

    def __enter__(self) -> Nursery:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate()

    def run(self, arguments: Sequence[object], **options: Any) -> Outcome:
        """Run the command line to its end; the options are those of `start`."""
        return self.wait(self.start(arguments, **options))

    def start(
        self,
        arguments: Sequence[object],
        *,
        do: str = "nothing",
        at: int | None = None,
        among: Sequence[str] = STEPS,
        argument: object = None,
        settings: Mapping[str, object] = SMALL,
        lacks: Sequence[str] = (),
        cwd: Path | None = None,
    ) -> int:
        """Begin a run in which `do` happens at the `at`-th call of those `among`, or at each.

        What can be done: `kill`; `tear`: write half, then kill; `interrupt`; `fail` with the
        error number `argument`; `fail-on` with it at this and every later call; `stutter`: every
        call is broken by a signal at first; `shorten` a read, write or copy; `wait` until the file
        `argument` exists, after making it with `.here`; `append`, `touch` or `replace` the file
        `argument`. `lacks` names the means that the system is to be without: each of their calls
        is refused as such a system refuses it.
        """
        self._jobs += 1
        job = {
            "number": self._jobs,
            "folder": str(self._folder),
            # What is looked at here is how a run ends, not what it tells meanwhile.
            "arguments": [*(str(argument) for argument in arguments), "--no-progress"],
            "do": do,
            "at": at,
            "among": list(among),
            "argument": argument if isinstance(argument, int) else str(argument),
            "settings": dict(settings),
            "lacks": list(lacks),
            "cwd": str(cwd or self._folder),
        }
        self._ask(job)
        return self._jobs

    def wait(self, number: int) -> Outcome:
        """Wait for the end of a run that was started."""
        answer = self._ask({"wait": number})
        texts = {}
        for kind in ("out", "err", "calls"):
            path = self._folder / f"{number}.{kind}"
            texts[kind] = path.read_text()
            path.unlink()
        calls = tuple(Call(**json.loads(line)) for line in texts["calls"].splitlines())
        return Outcome(code=answer["code"], out=texts["out"], err=texts["err"], calls=calls)

    def _ask(self, question: dict[str, Any]) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(question) + "\n")
        self._process.stdin.flush()
        answer = json.loads(self._process.stdout.readline())
        assert isinstance(answer, dict)
        return answer


def wait_for(path: Path, seconds: float = 60) -> None:
    """Wait until a file exists."""
    end = time.monotonic() + seconds
    while not path.exists():
        assert time.monotonic() < end, f"{path} never came to be"
        time.sleep(0.002)


def snapshot(folder: Path) -> dict[str, tuple[object, ...]] | None:
    """Return what a folder holds, each file with its mode and hash; None if there is no folder."""
    if not os.path.lexists(folder):
        return None
    found: dict[str, tuple[object, ...]] = {}
    for path in [folder, *sorted(folder.rglob("*"))]:
        status = path.lstat()
        name = path.relative_to(folder).as_posix()
        if path.is_file():
            found[name] = status.st_mode, hashlib.sha256(path.read_bytes()).hexdigest()
        else:
            found[name] = (status.st_mode,)
    return found


def source_state(folder: Path) -> dict[str, tuple[object, ...]]:
    """Return what a source holds, also its times and inodes."""
    found = snapshot(folder)
    assert found is not None
    for name in found:
        status = (folder / name).stat()
        found[name] += (status.st_mtime_ns, status.st_ino, status.st_size)
    return found


@contextmanager
def scratch(fallback: Path) -> Iterator[Path]:
    """Give a folder in memory where the system has such, for what is fast there and as good."""
    memory = Path("/dev/shm")
    if not (memory.is_dir() and os.access(memory, os.W_OK)):
        yield fallback
        return
    with tempfile.TemporaryDirectory(dir=memory, prefix="blockexpand-") as folder:
        yield Path(folder)


def names_beside(out: Path) -> list[str]:
    """Return what else there is in the output's parent folder, hidden or not."""
    return sorted(path.name for path in out.parent.iterdir() if path != out)


def make_source(
    folder: Path,
    *,
    shards: int = 3,
    dtype: str = "BF16",
    layers: int = 4,
    hidden: int = 64,
    intermediate: int = 128,
    vocabulary: int = 256,
    seed: int = 0,
) -> Path:
    """Write a Mistral checkpoint by hand, with random finite weights and a few side files."""
    folder.mkdir(parents=True)
    key_value = hidden // 2
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (vocabulary, hidden)}
    for layer in range(layers):
        prefix = f"model.layers.{layer}."
        shapes |= {
            prefix + "input_layernorm.weight": (hidden,),
            prefix + "mlp.down_proj.weight": (hidden, intermediate),
            prefix + "mlp.gate_proj.weight": (intermediate, hidden),
            prefix + "mlp.up_proj.weight": (intermediate, hidden),
            prefix + "post_attention_layernorm.weight": (hidden,),
            prefix + "self_attn.k_proj.weight": (key_value, hidden),
            prefix + "self_attn.o_proj.weight": (hidden, hidden),
            prefix + "self_attn.q_proj.weight": (hidden, hidden),
            prefix + "self_attn.v_proj.weight": (key_value, hidden),
        }
    shapes |= {"model.norm.weight": (hidden,), "lm_head.weight": (vocabulary, hidden)}
    config = {
        "architectures": ["MistralForCausalLM"],
        "model_type": "mistral",
        "hidden_size": hidden,
        "intermediate_size": intermediate,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": hidden // 4,
        "vocab_size": vocabulary,
        "max_position_embeddings": 128,
        "rms_norm_eps": 1e-05,
        "rope_theta": 10000.0,
        "hidden_act": "silu",
        "sliding_window": None,
        "tie_word_embeddings": False,
        "torch_dtype": {"BF16": "bfloat16", "F16": "float16", "F32": "float32"}[dtype],
    }
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    (folder / "generation_config.json").write_text('{"eos_token_id": 2}')
    (folder / "tokenizer.json").write_text(json.dumps({"model": ["a"] * 5000}))
    (folder / "README.md").write_text("---\nlicense: apache-2.0\n---\n\n# A model\n")
    (folder / "extra").mkdir()
    (folder / "extra" / "notes.txt").write_text("kept\n")
    names = list(shapes)
    per_shard = -(-len(names) // shards)
    weight_map = {}
    generator = random.Random(seed)
    for index in range(shards):
        file = f"model-{index + 1:05d}-of-{shards:05d}.safetensors"
        file = "model.safetensors" if shards == 1 else file
        mine = names[index * per_shard : (index + 1) * per_shard]
        weight_map |= dict.fromkeys(mine, file)
        _write_shard(folder / file, {name: shapes[name] for name in mine}, dtype, generator)
    if shards > 1:
        index_text = json.dumps({"metadata": {}, "weight_map": weight_map}, indent=2)
        (folder / "model.safetensors.index.json").write_text(index_text)
    for path in folder.rglob("*"):
        os.utime(path, (1_600_000_000, 1_600_000_000))
    return folder


def _write_shard(
    path: Path, shapes: Mapping[str, tuple[int, ...]], dtype: str, generator: random.Random
) -> None:
    width = 4 if dtype == "F32" else 2
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape in shapes.items():
        nbytes = width
        for size in shape:
            nbytes *= size
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [end, end + nbytes]}
        end += nbytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    # Pieces: Python makes no more than 256 MB at once.
    pieces = (generator.randbytes(min(1 << 24, end - at)) for at in range(0, end, 1 << 24))
    data = bytearray().join(pieces)
    # The highest byte of each number holds the sign and the first bits of the exponent: 0x3e or
    # 0xbe make it a number near 0.2, and never an infinite one.
    highest = bytes([0x3E, 0xBE]) * 128
    data[width - 1 :: width] = data[width - 1 :: width].translate(highest)
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


Tree = dict[str, tuple[object, ...]] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A command; `old` is what lay at OUT before it."""

    source: Path
    out: Path
    command: tuple[object, ...]
    old: Path | None
    lacks: tuple[str, ...]
    before: dict[str, tuple[object, ...]]
    wanted: Tree
    steps: tuple[str, ...]

    @property
    def calls(self) -> int:
        return len(self.steps)


def prepare(
    nursery: Nursery,
    folder: Path,
    *options: str,
    overwrite: bool = False,
    lacks: Sequence[str] = (),
    **source: object,
) -> Case:
    """Make a source, and learn from an undisturbed run what is wanted and how many calls it is."""
    root = make_source(folder / "source", **source)  # type: ignore[arg-type]
    out = folder / "parent" / "out"
    out.parent.mkdir()
    old = None
    if overwrite:
        old = folder / "old"
        old.mkdir()
        (old / "model.safetensors").write_bytes(b"the old one" * 1000)
        (old / "config.json").write_text("{}")
        (old / "extra").mkdir()
        (old / "extra" / "notes.txt").write_text("an older text")
        options = (*options, "--overwrite")
    command = ("--src", root, "--out", out, "--new-layers", "2", *options)
    before = source_state(root)
    place(old, out)
    done = nursery.run(command, lacks=lacks)
    assert (done.code, done.err) == (0, ""), done
    assert source_state(root) == before or "--hardlink" in options
    assert names_beside(out) == []
    return Case(
        source=root,
        out=out,
        command=command,
        old=old,
        lacks=tuple(lacks),
        before=before,
        wanted=snapshot(out),
        steps=tuple(call.name for call in done.calls),
    )


def place(old: Path | None, out: Path) -> None:
    """Bring OUT and its parent to the state before the run."""
    shutil.rmtree(out.parent)
    out.parent.mkdir()
    if old is not None:
        shutil.copytree(old, out)


def spread(calls: int, count: int) -> list[int]:
    """Return numbers of calls: the last 40, where all is published, and others evenly before."""
    late = list(range(max(1, calls - 40), calls + 1))
    step = max(1, (calls - 40) // max(1, count - 40))
    return sorted({*range(1, calls - 40, step), *late})


@contextmanager
def mounted(kind: str, folder: Path, nbytes: int, *options: str) -> Iterator[Path]:
    """Make a file system of this kind and size and mount it; `options` go to its mkfs, or mount.

    Of the kind `bind` the option is a folder, which is mounted a second time.
    Skips the test where that is not permitted or not installed.
    """
    import pytest

    if sys.platform != "linux" or os.geteuid() != 0:
        pytest.skip("mounting needs Linux and root")
    if kind not in ("bind", "tmpfs") and shutil.which(f"mkfs.{kind}") is None:
        pytest.skip(f"mkfs.{kind} is not installed")
    point = folder / f"mount-{kind}"
    point.mkdir(parents=True)
    image = folder / f"image-{kind}"
    if kind == "bind":
        command = ["mount", "--bind", *options]
    elif kind == "tmpfs":
        command = ["mount", "-t", "tmpfs", "-o", ",".join([f"size={nbytes}", *options]), "none"]
    else:
        with image.open("xb") as stream:
            stream.truncate(nbytes)
        quiet = ["-F", "-q"] if kind == "ext4" else ["-q"]
        subprocess.run([f"mkfs.{kind}", *quiet, *options, image], check=True, capture_output=True)
        command = ["mount", "-o", "loop", str(image)]
    done = subprocess.run([*command, str(point)], capture_output=True, text=True)
    if done.returncode != 0:
        pytest.skip(f"mounting is not permitted here: {done.stderr.strip()}")
    try:
        yield point
    finally:
        subprocess.run(["umount", point], check=True)
        image.unlink(missing_ok=True)


# What follows runs in the nursery and its forks.


class _Faults:
    """Counts and notes the calls of one run, and does at one of them what the test wants."""

    def __init__(self, job: Mapping[str, Any], log: int) -> None:
        self._do = job["do"]
        self._at = job["at"]
        self._among = frozenset(job["among"])
        self._argument = job["argument"]
        self._lacks = frozenset(job["lacks"])
        self._log = log
        self._count = 0
        self._met: set[tuple[object, ...]] = set()
        self._real = {
            name: getattr(os, name) for name in (*STEPS, *LOOKS, "fstat") if hasattr(os, name)
        }

    def meet(self, name: str, arguments: tuple[Any, ...]) -> bool:
        """Stand before a call; returns whether it is to be cut short."""
        if name in self._lacks or self._lacks_direct(name, arguments):
            code = {"copy_file_range": errno.EXDEV, "ioctl": errno.ENOTTY}.get(name, errno.EINVAL)
            raise OSError(code, os.strerror(code))
        if name not in self._among:
            return False
        self._count += 1
        here = self._at is None or self._count == self._at
        if self._do == "fail-on" and self._count >= (self._at or 0):
            raise OSError(self._argument, os.strerror(self._argument), _named(arguments))
        if self._do == "stutter" and self._is_new(name, arguments):
            raise InterruptedError(errno.EINTR, os.strerror(errno.EINTR))
        if not here or self._do == "nothing":
            return False
        return self._act(arguments)

    def _is_new(self, name: str, arguments: tuple[Any, ...]) -> bool:
        key = (name, *(each for each in arguments if isinstance(each, int | str | Path)))
        if key in self._met:
            return False
        self._met.add(key)
        return True

    def _act(self, arguments: tuple[Any, ...]) -> bool:
        match self._do:
            case "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            case "interrupt":
                os.kill(os.getpid(), signal.SIGINT)
            case "fail":
                raise OSError(self._argument, os.strerror(self._argument), _named(arguments))
            case "append":
                with _REAL_OPEN(self._argument, "ab") as stream:
                    stream.write(b"\0" * 8)
            case "touch":
                os.utime(self._argument, (1_700_000_000, 1_700_000_000))
            case "replace":
                with _REAL_OPEN(self._argument, "rb") as stream:
                    data = stream.read()
                with _REAL_OPEN(self._argument + ".new", "wb") as stream:
                    stream.write(data[:-1] + bytes([data[-1] ^ 1]))
                self._real["rename"](self._argument + ".new", self._argument)
            case "wait":
                with _REAL_OPEN(self._argument + ".here", "w"):
                    pass
                wait_for(Path(self._argument))
            case "tear" | "shorten":
                return True
        return False

    def _lacks_direct(self, name: str, arguments: tuple[Any, ...]) -> bool:
        """Tell of direct I/O that is to be refused, at the opening or only at the transfer."""
        if name == "open":
            return "direct" in self._lacks and bool(arguments[1] & os.O_DIRECT)
        if name in ("preadv", "pwrite") and "direct transfer" in self._lacks:
            return bool(fcntl.fcntl(arguments[0], fcntl.F_GETFL) & os.O_DIRECT)
        return False

    def tear(self) -> None:
        if self._do == "tear":
            os.kill(os.getpid(), signal.SIGKILL)

    def note(
        self,
        name: str,
        arguments: tuple[Any, ...],
        keywords: Mapping[str, Any],
        nbytes: int = 0,
    ) -> None:
        if name in LOOKS:
            return
        path, inode = self._locate(name, arguments, keywords)
        writes = name in WRITES or (name == "open" and bool(arguments[1] & os.O_TRUNC))
        enters = name in ENTRIES or (name == "open" and bool(arguments[1] & os.O_CREAT))
        call = {"name": name, "path": path, "inode": inode, "writes": writes, "enters": enters}
        call["nbytes"] = nbytes
        self._real["write"](self._log, json.dumps(call).encode() + b"\n")

    def _locate(
        self, name: str, arguments: tuple[Any, ...], keywords: Mapping[str, Any]
    ) -> tuple[str, int]:
        """Return a call's file with its inode; for a call that enters a name, that of its folder.

        Of two files, the target.
        """
        index = 1 if name in ("copy_file_range", "rename", "replace", "link") else 0
        if name == "renameat2":
            index = 3
        target = arguments[index] if arguments else ""
        if isinstance(target, int):
            return str(_path_of(target)), self._real["fstat"](target).st_ino
        folder = keywords.get("dir_fd")
        path = os.fsdecode(target)
        if folder is not None:
            path = str(_path_of(folder) / path)
        try:
            entered = Path(path).parent if name != "file" else Path(path)
            return path, self._real["stat"](entered).st_ino
        except OSError:
            return path, 0


_REAL_OPEN = builtins.open


def _path_of(fd: int) -> Path:
    return Path(f"/proc/self/fd/{fd}").readlink()


def _named(arguments: tuple[Any, ...]) -> str | None:
    first = arguments[0] if arguments else None
    return os.fsdecode(first) if isinstance(first, str | bytes | os.PathLike) else None


def _shorter(name: str, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return the arguments of a read, write or copy of half the bytes, at least one."""

    def half(nbytes: int) -> int:
        return nbytes // 2 // 4096 * 4096 or nbytes // 2 or nbytes

    match name, arguments:
        case "preadv", (fd, [buffer], offset):
            return fd, [buffer[: half(len(buffer))]], offset
        case "pwrite", (fd, buffer, offset):
            return fd, buffer[: half(len(buffer))], offset
        case "write", (fd, buffer):
            return fd, buffer[: half(len(buffer))]
        case "read", (fd, nbytes):
            return fd, half(nbytes)
        case "copy_file_range", (source, target, nbytes, *offsets):
            return source, target, half(nbytes), *offsets
    return arguments


def _install(faults: _Faults) -> None:
    def wrap(module: Any, attribute: str, name: str) -> Callable[..., Any]:
        real = getattr(module, attribute)

        def wrapped(*arguments: Any, **keywords: Any) -> Any:
            cut = faults.meet(name, arguments)
            if name == "fsync":
                faults.note(name, arguments, keywords)
                return None
            # A name is looked up before the call changes it; of a write or a read its end counts.
            after = name in WRITES or name in ("preadv", "read")
            if not after:
                faults.note(name, arguments, keywords)
            moved = 0
            try:
                result = real(*(_shorter(name, arguments) if cut else arguments), **keywords)
                if after:
                    moved = result if isinstance(result, int) else len(result or b"")
            finally:
                if after:
                    faults.note(name, arguments, keywords, moved)
            if cut:
                faults.tear()
            return result

        setattr(module, attribute, wrapped)
        return wrapped

    # In Python 3.10 pathlib has taken the functions of os for itself.
    taken = getattr(pathlib, "_NormalAccessor", None)
    for name in STEPS + LOOKS:
        if hasattr(os, name):
            wrapped = wrap(os, name, name)
            if hasattr(taken, name) and name != "open":
                setattr(taken, name, staticmethod(wrapped))
    wrap(fcntl, "ioctl", "ioctl")
    wrap(fcntl, "flock", "flock")
    wrap(io, "open", "file")
    _wrap_renameat2(faults)


def _wrap_renameat2(faults: _Faults) -> None:
    real = ctypes.CDLL(None, use_errno=True).renameat2

    class Library:
        @staticmethod
        def renameat2(*arguments: Any) -> int:
            try:
                faults.meet("renameat2", arguments)
            except OSError as error:
                ctypes.set_errno(error.errno or 0)
                return -1
            faults.note("renameat2", arguments, {})
            return int(real(*arguments))

    ctypes.CDLL = lambda *_, **__: Library()  # type: ignore[assignment,misc]


def _run(job: Mapping[str, Any]) -> int:
    """Be the child: run the command line with the faults that were ordered."""
    folder = Path(job["folder"])
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
    log = os.open(folder / f"{job['number']}.calls", flags, 0o666)
    for fd, kind in ((1, "out"), (2, "err")):
        os.dup2(os.open(folder / f"{job['number']}.{kind}", flags, 0o666), fd)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    sys.stdout = _REAL_OPEN(1, "w", closefd=False)
    sys.stderr = _REAL_OPEN(2, "w", closefd=False)
    os.chdir(job["cwd"])
    for name, value in job["settings"].items():
        module, attribute = name.rsplit(".", 1)
        assert hasattr(sys.modules[module], attribute), (
            f"{name} is gone: mend tests/support/faults.py"
        )
        setattr(sys.modules[module], attribute, value)
    from blockexpand.cli.app import main

    _install(_Faults(job, log))
    code = main(job["arguments"])
    sys.stdout.flush()
    sys.stderr.flush()
    return code


def _fork(job: Mapping[str, Any]) -> int:
    pid = os.fork()
    if pid == 0:
        try:
            code = _run(job)
        except BaseException:
            traceback.print_exc()
            sys.stderr.flush()
            code = 99
        os._exit(code)
    return pid


def _serve() -> None:
    for module in (
        "cli",
        "api.expansion",
        "cli.text",
        "writing.shard",
        "fs.reading",
        "verification.output",
    ):
        importlib.import_module(f"blockexpand.{module}")
    for module in ("huggingface_hub.repocard_data", "yaml", "tempfile", *sys.argv[1:]):
        importlib.import_module(module)
    pids: dict[int, int] = {}
    for line in sys.stdin:
        job = json.loads(line)
        answer: dict[str, Any] = {}
        if "wait" in job:
            _, status = os.waitpid(pids.pop(job["wait"]), 0)
            answer["code"] = os.waitstatus_to_exitcode(status)
        else:
            pids[job["number"]] = _fork(job)
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    _serve()
