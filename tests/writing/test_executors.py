"""Files written by worker processes: the same bytes, also when a worker is killed meanwhile."""

from __future__ import annotations

import json
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import (
    BrokenExecutor,
    Executor,
    Future,
    ProcessPoolExecutor,
    ThreadPoolExecutor,
)
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest
from checkpoints import mistral_tensors, snapshot, write_checkpoint
from hub_server import read_folder

import blockexpand
from blockexpand.api.batch import expand_batch
from blockexpand.checkpoints.checkpoint import open_checkpoint
from blockexpand.cli.app import main
from blockexpand.errors import OutputError, SourceChangedError
from blockexpand.planning.plan import make_plan
from blockexpand.planning.recipe import Recipe
from blockexpand.writing.executors import open_executor, parse_executor, run_tasks
from blockexpand.writing.staging import Staging
from blockexpand.writing.tasks import do_task_apart, make_tasks

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of 6 shards of about 600 kB, with a side file in a folder of its own."""
    tensors = mistral_tensors(layers=6, size=30_000)
    names = list(tensors)
    folder = write_checkpoint(
        tmp_path_factory.mktemp("cluster") / "source",
        [{name: tensors[name] for name in names[part::6]} for part in range(6)],
    )
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "tool.jinja").write_text("{{ messages }}")
    (folder / "tokenizer.json").write_text("{}")
    return folder


@pytest.fixture(scope="module")
def wanted(source: Path) -> dict[str, bytes]:
    """What a run without an executor makes of it."""
    out = source.with_name("out")
    blockexpand.expand(source, out, new_layers=3, position="interleaved", command="the command")
    return read_folder(out)


def expand(source: Path, out: Path, executor: Executor, **options: Any) -> Any:
    return blockexpand.expand(
        source,
        out,
        new_layers=3,
        position="interleaved",
        command="the command",
        executor=executor,
        **options,
    )


def beside(out: Path) -> list[str]:
    return sorted(path.name for path in out.parent.iterdir() if path != out)


@pytest.mark.parametrize("kind", ["threads", "processes"])
def test_same_bytes(kind: str, source: Path, wanted: dict[str, bytes], tmp_path: Path) -> None:
    before = snapshot(source)
    out = tmp_path / "out"
    pool: Executor = (
        ThreadPoolExecutor(3) if kind == "threads" else ProcessPoolExecutor(2, get_context("spawn"))
    )
    with pool:
        result = expand(source, out, pool)
    assert read_folder(out) == wanted
    assert beside(out) == []
    shards = sum(len(data) for name, data in wanted.items() if name.endswith(".safetensors"))
    moved = result.moved
    assert moved.copied + moved.holes + moved.shared == shards
    assert snapshot(source) == before


def test_converting_on_workers(source: Path, tmp_path: Path) -> None:
    alone, out = tmp_path / "alone", tmp_path / "out"
    blockexpand.expand(source, alone, new_layers=1, dtype="float32", command="c")
    with ThreadPoolExecutor(2) as pool:
        blockexpand.expand(source, out, new_layers=1, dtype="float32", command="c", executor=pool)
    assert read_folder(out) == read_folder(alone)


def test_linked_on_workers(make_tiny: Callable[..., Path], tmp_path: Path) -> None:
    source, out = make_tiny(), tmp_path / "out"
    with ThreadPoolExecutor(2) as pool:
        result = blockexpand.expand(source, out, new_layers=1, hardlink=True, executor=pool)
    linked = [path for path in out.glob("*.safetensors") if path.stat().st_nlink == 2]
    assert sum(path.stat().st_size for path in linked) == result.moved.linked > 0


def test_progress_counts_every_byte_once(source: Path, tmp_path: Path) -> None:
    counted: list[int] = []
    with ThreadPoolExecutor(2) as pool:
        result = expand(
            source,
            tmp_path / "out",
            pool,
            progress=blockexpand.progress.Progress(advance=counted.append),
        )
    assert sum(counted) == result.plan.nbytes


def test_a_task_is_small_and_can_be_pickled(source: Path, tmp_path: Path) -> None:
    """It has what its own file needs, not the whole plan, and works where it was unpickled."""
    plan = make_plan(open_checkpoint(source), Recipe(new_layers=3))
    staging = Staging(folder=tmp_path, identity={}, inode=0)
    for folder in (staging.files, staging.partial, staging.journals, staging.notes):
        folder.mkdir()
    for task in make_tasks(plan, staging, reflink="auto", hardlink=False):
        data = pickle.dumps(task)
        assert len(data) < 20_000
        do_task_apart(pickle.loads(data))
    found = read_folder(staging.files)
    assert {name: len(data) for name, data in found.items()} == {
        file.name: file.nbytes for file in plan.files
    }


# --------------------------------------------------------------- workers that fail


class Flaky(Executor):
    """Does tasks at once; loses the first `losses` results of those that `loses` names."""

    def __init__(self, loses: Callable[[str], bool], losses: int, error: Exception) -> None:
        self.loses, self.losses, self.error = loses, losses, error
        self.done: list[str] = []

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        future.set_running_or_notify_cancel()
        if self.loses(args[0].name) and self.losses:
            self.losses -= 1
            future.set_exception(self.error)
            return future
        try:
            future.set_result(fn(*args, **kwargs))
            self.done.append(args[0].name)
        except Exception as error:
            future.set_exception(error)
        return future


def test_files_of_a_lost_worker_are_written_by_another(
    source: Path, wanted: dict[str, bytes], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    pool = Flaky(lambda name: "-00002-" in name or "-00003-" in name, 2, TimeoutError())
    expand(source, out, pool)
    assert read_folder(out) == wanted
    assert len(pool.done) == len(set(pool.done))


def test_worker_that_is_lost_again_is_one_clear_error_and_a_rerun_goes_on(
    source: Path, wanted: dict[str, bytes], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    pool = Flaky(lambda name: "-00002-" in name, 99, ConnectionResetError("gone"))
    with pytest.raises(OutputError, match=r"model-00002-of-\S+ died or were lost: gone") as caught:
        expand(source, out, pool)
    assert "\n" not in str(caught.value) and "finished parts stay in" in str(caught.value)
    assert not out.exists()
    pool.losses = 0
    pool.done.clear()
    result = expand(source, out, pool)
    assert read_folder(out) == wanted
    assert result.moved.reused > 0


def test_error_of_the_work_itself_is_not_tried_again(source: Path, tmp_path: Path) -> None:
    pool = Flaky(lambda name: "-00002-" in name, 99, SourceChangedError("it changed"))
    with pytest.raises(SourceChangedError, match="it changed"):
        expand(source, tmp_path / "out", pool)
    assert pool.losses == 98


def test_worker_without_the_package(source: Path, tmp_path: Path) -> None:
    pool = Flaky(lambda name: True, 99, ModuleNotFoundError("No module named 'blockexpand'"))
    with pytest.raises(OutputError, match="install the same version of blockexpand"):
        expand(source, tmp_path / "out", pool)
    assert beside(tmp_path / "out") == []


def test_worker_that_does_not_see_the_folder(source: Path, tmp_path: Path) -> None:
    plan = make_plan(open_checkpoint(source), Recipe(new_layers=1))
    staging = Staging(folder=tmp_path / "elsewhere", identity={}, inode=0)
    task = make_tasks(plan, staging, reflink="auto", hardlink=False)[0]
    with pytest.raises(OutputError, match="a file system that all workers share"):
        do_task_apart(task)


def test_worker_that_writes_elsewhere(source: Path, tmp_path: Path) -> None:
    class Elsewhere(Flaky):
        def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
            future = super().submit(fn, *args, **kwargs)
            (args[0].staging.files / args[0].name).unlink()
            return future

    with pytest.raises(OutputError, match="not to be seen here"):
        expand(source, tmp_path / "out", Elsewhere(lambda name: False, 0, TimeoutError()))
    assert not (tmp_path / "out").exists()


def test_two_workers_with_the_same_task_do_no_harm(
    source: Path, wanted: dict[str, bytes], tmp_path: Path
) -> None:
    """A scheduler gives a task away that a slow worker, believed to be dead, still works on."""

    class Twice(ThreadPoolExecutor):
        def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
            super().submit(fn, *args, **kwargs)
            return super().submit(fn, *args, **kwargs)

    for number in range(3):
        out = tmp_path / f"out-{number}"
        with Twice(6) as pool:
            expand(source, out, pool)
        assert read_folder(out) == wanted


class _Named:
    def __init__(self, name: str) -> None:
        self.name = name


def test_broken_pool_is_one_clear_error() -> None:
    class Broken(Executor):
        def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
            raise BrokenProcessPool("a process was terminated abruptly")

    with pytest.raises(OutputError, match=r"one\.safetensors died or were lost: a process was"):
        run_tasks(
            Broken(), lambda task: None, [_Named("one.safetensors")], lambda task, result: None
        )


def _die(task: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_real_worker_process_that_is_killed() -> None:
    with (
        ProcessPoolExecutor(1, get_context("spawn")) as pool,
        pytest.raises(OutputError, match="died or were lost") as caught,
    ):
        run_tasks(pool, _die, [_Named("one.safetensors")], lambda task, result: None)
    assert isinstance(caught.value.__cause__, BrokenExecutor)


# ------------------------------------------------------------------- command line


_IDLE = """
import os, time
from blockexpand.writing.executors import open_executor
if __name__ == "__main__":
    with open_executor("process:2") as executor:
        executor.submit(os.getpid).result()
        print("ready", flush=True)
        time.sleep(600)
"""


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_worker_processes_end_with_a_caller_that_is_killed(
    how: signal.Signals, tmp_path: Path
) -> None:
    caller = subprocess.Popen(
        [sys.executable, "-c", _IDLE],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    assert caller.stdout is not None and caller.stdout.readline() == b"ready\n"
    caller.send_signal(how)
    # What the workers have inherited is only at its end once all of them have ended.
    assert caller.communicate(timeout=30)[0] == b""


def test_processes_from_the_command_line(
    source: Path,
    wanted: dict[str, bytes],
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["--src", str(source), "--new-layers", "3", "--position", "interleaved"]
    assert (
        main([*words, "--out", str(tmp_path / "out"), "--executor", "process:2", "--no-progress"])
        == 0
    )
    found = read_folder(tmp_path / "out")
    for name in ("README.md", "block_expansion.json"):
        assert found.pop(name) != wanted[name]
    assert found == {k: v for k, v in wanted.items() if k in found}
    assert capfd.readouterr().err == ""


def test_batch_on_processes(source: Path, wanted: dict[str, bytes], tmp_path: Path) -> None:
    jobs = tmp_path / "jobs.yaml"
    jobs.write_text(f"""\
defaults: {{src: {source}, out: "{tmp_path}/{{position}}"}}
matrix: {{new-layers: 3, position: [end, interleaved]}}
""")
    with ThreadPoolExecutor(3) as pool:
        results = expand_batch(jobs, executor=pool)
    assert [result.state for result in results] == ["done", "done"]
    shards = {name: data for name, data in wanted.items() if name.endswith(".safetensors")}
    assert shards.items() <= read_folder(tmp_path / "interleaved").items()


@pytest.mark.parametrize(
    "spec",
    [
        "",
        "process",
        "process:0",
        "process:-1",
        "process:x",
        "process:999",
        "threads:2",
        "dask:1",
        "dask://host",
        "dask://host:1/x",
        "dask://user@host:1",
        "tcp://host:1",
    ],
)
def test_malformed_executor_is_wrong_usage(spec: str, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match="expected"):
        parse_executor(spec)
    words = ["--src", "a", "--out", "b", "--new-layers", "1"]
    assert main([*words, "--executor", spec]) == 2
    assert "--executor" in capfd.readouterr().err


def test_without_dask(
    source: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setitem(sys.modules, "distributed", None)
    words = ["--src", str(source), "--out", str(tmp_path / "out"), "--new-layers", "1"]
    assert main([*words, "--executor", "dask://127.0.0.1:1"]) == 3
    assert capfd.readouterr().err == (
        "blockexpand: --executor dask://127.0.0.1:1: dask is not installed; run: "
        "pip install 'blockexpand[dask]'\n"
    )
    assert not (tmp_path / "out").exists()


# ---------------------------------------------------------------------- a cluster


@contextmanager
def scheduler(folder: Path) -> Iterator[tuple[str, Callable[[], None]]]:
    """Start a dask scheduler; yield HOST:PORT and a function that starts one more worker process.

    Each is a command of its own, as on several machines.
    """
    pytest.importorskip("distributed")
    file = folder / "scheduler.json"
    paths = (ROOT, ROOT / "tests" / "writing", ROOT / "tests" / "support")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, paths))}
    processes: list[subprocess.Popen[bytes]] = []
    with (folder / "log").open("w") as log:

        def start(*words: str) -> None:
            command = [sys.executable, "-m", "dask", *words, "--no-dashboard"]
            processes.append(
                subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=log)
            )

        start("scheduler", "--host", "127.0.0.1", "--port", "0", "--scheduler-file", str(file))
        try:
            deadline = time.monotonic() + 60
            while not file.exists():
                assert time.monotonic() < deadline, (folder / "log").read_text()
                time.sleep(0.05)
            address = json.loads(file.read_text())["address"]
            yield (
                address.removeprefix("tcp://"),
                lambda: start("worker", address, "--nthreads", "1", "--no-nanny"),
            )
        finally:
            for process in reversed(processes):
                process.kill()
            for process in processes:
                process.wait(30)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A scheduler with three workers."""
    with scheduler(tmp_path_factory.mktemp("dask")) as (address, start_worker):
        for _ in range(3):
            start_worker()
        yield address


def test_scheduler_without_workers(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    from blockexpand.writing import executors

    monkeypatch.setattr(executors, "_WORKER_WAIT_SECONDS", 0.1)
    with scheduler(tmp_path) as (address, _):
        words = ["--src", str(source), "--out", str(tmp_path / "out"), "--new-layers", "1"]
        assert main([*words, "--executor", f"dask://{address}"]) == 3
    assert "the scheduler has no worker; start one with" in capfd.readouterr().err


def wait_for_workers(address: str, count: int) -> dict[str, int]:
    """Return the workers' process ids by their addresses."""
    from distributed import Client

    with Client(f"tcp://{address}", set_as_default=False) as client:
        client.wait_for_workers(count, timeout=60)
        return dict(client.run(os.getpid))


def test_on_a_dask_cluster_from_the_command_line(
    cluster: str, source: Path, wanted: dict[str, bytes], tmp_path: Path
) -> None:
    from distributed import Client

    wait_for_workers(cluster, 3)
    with Client(f"tcp://{cluster}", set_as_default=False) as client:
        expand(source, tmp_path / "python", client.get_executor(pure=False))
    assert read_folder(tmp_path / "python") == wanted
    out = tmp_path / "out"
    words = ["--src", str(source), "--new-layers", "3", "--position", "interleaved"]
    words += ["--out", str(out), "--executor", f"dask://{cluster}", "--json", "--no-progress"]
    done = subprocess.run(
        [sys.executable, "-m", "blockexpand", *words],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["layers"] == 9
    shards = {name: data for name, data in wanted.items() if name.endswith(".safetensors")}
    assert shards.items() <= read_folder(out).items()
    assert beside(out) == ["python"]


def test_a_worker_is_killed_while_it_writes(
    cluster: str, source: Path, wanted: dict[str, bytes], tmp_path: Path
) -> None:
    from distributed import Client

    out = tmp_path / "out"
    processes = wait_for_workers(cluster, 3)
    hold = tmp_path / "hold"
    hold.touch()
    done: list[Any] = []
    with (
        Client(f"tcp://{cluster}", set_as_default=False) as client,
        open_executor(f"dask://{cluster}") as executor,
    ):
        assert executor is not None
        client.run(_slow_down, str(hold))
        thread = threading.Thread(target=lambda: done.append(expand(source, out, executor)))
        thread.start()
        deadline = time.monotonic() + 60
        at_work: list[Path] = []
        while not at_work:
            assert time.monotonic() < deadline
            time.sleep(0.01)
            at_work = list(tmp_path.glob(".out.blockexpand-*/partial/*.by-*"))
        killed = int(at_work[0].name.rpartition("-")[2])
        assert killed in processes.values()
        os.kill(killed, signal.SIGKILL)
        hold.unlink()
        thread.join(120)
        assert not thread.is_alive() and len(done) == 1
        left = client.run(os.getpid)
        assert killed not in left.values() and len(left) == 2
    assert read_folder(out) == wanted
    assert beside(out) == []


def test_result_that_comes_after_its_task_was_cancelled_is_no_line_of_dask(
    cluster: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The scheduler hears of the cancellation too late, and sends the result all the same."""
    import distributed

    monkeypatch.setattr(distributed.Future, "cancel", lambda future: None)
    with open_executor(f"dask://{cluster}") as executor:
        assert executor is not None
        late, error = executor.submit(time.sleep, 0.3), executor.submit(int, "x")
        assert late.cancel()
        with pytest.raises(ValueError, match="invalid literal"):
            error.result(30)
        assert executor.submit(len, "four").result(30) == 4
        time.sleep(0.6)
    assert caplog.text == ""


def _slow_down(hold: str) -> None:
    """Let this worker wait before each of its files for as long as `hold` exists."""
    from blockexpand.writing import tasks as file_tasks

    write_file = file_tasks.write_file

    def wait_first(file: Any, sources: Any, begun: Any, **rest: Any) -> Any:
        moved = write_file(file, sources, begun, **rest)
        partial = begun.path
        if Path(hold).exists():
            mark = partial.with_name(f"{partial.name}.by-{os.getpid()}")
            mark.touch()
            while Path(hold).exists():
                time.sleep(0.01)
            mark.unlink()
        return moved

    file_tasks.write_file = wait_first


def test_scheduler_that_does_not_answer(
    source: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import distributed

    def refuse(*_: object, **__: object) -> None:
        raise OSError("Timed out trying to connect to tcp://127.0.0.1:9\nafter 10 s")

    monkeypatch.setattr(distributed, "Client", refuse)
    words = ["--src", str(source), "--out", str(tmp_path / "out"), "--new-layers", "1"]
    assert main([*words, "--executor", "dask://127.0.0.1:9"]) == 3
    stderr = capfd.readouterr().err
    assert stderr.count("\n") == 1 and "no dask scheduler answers there" in stderr
