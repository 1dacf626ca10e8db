"""Executors: give the files of a plan to worker processes, here or on other machines.

Any `concurrent.futures.Executor` will do. A worker that dies costs its files a second try. It
writes nothing itself, and imports dask only where its scheduler is asked for.
"""

from __future__ import annotations

import importlib
import os
import re
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import BrokenExecutor, CancelledError, Executor, Future, as_completed, wait
from contextlib import contextmanager
from typing import Any, Protocol, TypeVar

from .._search_path import holds_modules
from ..errors import OutputError
from ..messages import one_line


def _try_tasks(
    executor: Executor,
    work: Callable[[_Task], _Result],
    tasks: Sequence[_Task],
    finished: Callable[[_Task, _Result], None],
) -> tuple[list[_Task], Exception | None]:
    """Do tasks once; return those whose worker was lost, and how."""
    futures: dict[Future[_Result], _Task] = {}
    lost: list[_Task] = []
    cause: Exception | None = None
    try:
        for task in tasks:
            try:
                futures[executor.submit(work, task)] = task
            except BrokenExecutor as error:
                lost, cause = [*lost, task], error
        for future in as_completed(futures):
            task = futures[future]
            try:
                result = future.result()
            except Exception as error:
                if not _is_lost(error):
                    raise _explain(error, task) from error
                lost, cause = [*lost, task], error
            else:
                finished(task, result)
    finally:
        # What is not begun is not needed any more. What is at work ends before anybody tidies up
        # its folder; dask's tasks cannot be waited for once they are cancelled.
        wait([future for future in futures if not future.cancel()])
    return lost, cause


_Result = TypeVar("_Result")

_ATTEMPTS = 2

_MOST_PROCESSES = 256

# What starts a cluster and this command together may need a while for the workers.
_WORKER_WAIT_SECONDS = 60


class _Named(Protocol):
    @property
    def name(self) -> str: ...


_Task = TypeVar("_Task", bound=_Named)


def run_tasks(
    executor: Executor,
    work: Callable[[_Task], _Result],
    tasks: Sequence[_Task],
    finished: Callable[[_Task, _Result], None],
) -> None:
    """Let an executor do tasks; `finished` is called here for each, in whatever order they end.

    Raises: what `work` raises, if that is a BlockExpandError; OutputError where workers died, or
    were lost, twice over the same task. No task is begun after that.
    """
    left = list(tasks)
    for attempt in range(_ATTEMPTS):
        left, cause = _try_tasks(executor, work, left, finished)
        if not left:
            return
        assert cause is not None
        is_broken = isinstance(cause, BrokenExecutor)
        if is_broken or attempt == _ATTEMPTS - 1:
            names = ", ".join(task.name for task in left[:3]) + (", …" if len(left) > 3 else "")
            said = one_line(cause, 200) or type(cause).__name__
            raise OutputError(
                f"the workers that wrote {names} died or were lost: {said}; see that they have "
                "memory enough and are not killed, and run the same command again"
            ) from cause


def _is_lost(error: Exception) -> bool:
    """Tell an end of the worker from an error of its work."""
    if isinstance(error, BrokenExecutor | CancelledError | ConnectionError | TimeoutError):
        return True
    return type(error).__module__.partition(".")[0] == "distributed"


def _explain(error: Exception, task: _Named) -> Exception:
    if isinstance(error, ImportError):
        return OutputError(
            f"{task.name}: a worker cannot import what it needs ({error}); install the same "
            "version of blockexpand for every worker"
        )
    return error


@contextmanager
def open_executor(spec: str | None) -> Iterator[Executor | None]:
    """Start or reach what `process:N` or `dask://HOST:PORT` names, for as long as it is needed.

    Raises: OutputError where dask is not installed or no scheduler answers.
    """
    if spec is None:
        yield None
        return
    kind, value = parse_executor(spec)
    if kind == "process":
        import multiprocessing
        from concurrent.futures import ProcessPoolExecutor

        # Not a fork: other threads of this process may hold locks.
        with (
            _safe_search_path(spec),
            ProcessPoolExecutor(
                int(value), multiprocessing.get_context("spawn"), initializer=_begin_worker
            ) as pool,
        ):
            yield pool
        return
    try:
        distributed: Any = importlib.import_module("distributed")
    except ImportError:
        raise OutputError(
            f"--executor {spec}: dask is not installed; run: pip install 'blockexpand[dask]'"
        ) from None
    try:
        client = distributed.Client(f"tcp://{value}", timeout=10, set_as_default=False)
    except (OSError, ValueError) as error:
        said = one_line(error, 200)
        raise OutputError(
            f"--executor {spec}: no dask scheduler answers there: {said}; start one with "
            "`dask scheduler`, and workers with `dask worker`"
        ) from error
    with client:
        try:
            client.wait_for_workers(1, timeout=_WORKER_WAIT_SECONDS)
        except (TimeoutError, distributed.TimeoutError):
            raise OutputError(
                f"--executor {spec}: the scheduler has no worker; start one with `dask worker "
                f"tcp://{value}`"
            ) from None
        yield _OnDask(client)


class _OnDask(Executor):
    """The workers of a dask cluster.

    Dask's own executor logs an error of its own where a result comes for what was cancelled
    meanwhile.
    """

    def __init__(self, client: Any) -> None:
        self._client = client

    def submit(
        self, work: Callable[..., _Result], /, *arguments: Any, **keywords: Any
    ) -> Future[_Result]:
        there = self._client.submit(work, *arguments, pure=False, **keywords)
        here: Future[_Result] = Future()

        def cancel(future: Future[_Result]) -> None:
            if future.cancelled():
                there.cancel()

        def take_over(_: object) -> None:
            if not here.set_running_or_notify_cancel():
                return
            try:
                here.set_result(there.result())
            except BaseException as error:
                here.set_exception(error)

        here.add_done_callback(cancel)
        there.add_done_callback(take_over)
        return here


@contextmanager
def _safe_search_path(spec: str) -> Iterator[None]:
    """Keep worker processes from running modules of the current folder, maybe a checkpoint's.

    Raises: OutputError where this Python cannot.
    """
    name = "PYTHONSAFEPATH"
    if sys.version_info < (3, 11) and holds_modules("."):
        raise OutputError(
            f"--executor {spec}: the current folder holds Python files, which the workers of this "
            "Python would run; change to another folder, or use Python 3.11"
        )
    before = os.environ.get(name)
    os.environ[name] = "1"
    try:
        yield
    finally:
        os.environ.pop(name)
        if before is not None:
            os.environ[name] = before


def parse_executor(spec: str) -> tuple[str, str]:
    """Return `process` and a number, or `dask` and HOST:PORT. Raises: ValueError."""
    if match := re.fullmatch(r"process:([0-9]{1,4})", spec):
        if not 1 <= int(match[1]) <= _MOST_PROCESSES:
            raise ValueError(f"{spec}: expected from 1 to {_MOST_PROCESSES} processes")
        return "process", match[1]
    if match := re.fullmatch(r"dask://([^\s/:@]+|\[[0-9a-fA-F:]+\]):([0-9]{1,5})/?", spec):
        return "dask", f"{match[1]}:{match[2]}"
    raise ValueError(f"{spec}: expected process:N or dask://HOST:PORT")


def _begin_worker() -> None:
    """Let a worker process end as its caller does, however that ends."""
    import multiprocessing
    import threading

    # Ctrl-C reaches the workers too: the caller says what has to be said.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    caller = multiprocessing.parent_process()
    assert caller is not None

    def follow() -> None:
        # A caller that was killed cannot tell anybody, and a worker without one waits for ever.
        caller.join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()
