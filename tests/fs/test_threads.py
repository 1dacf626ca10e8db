"""Work that is shared out: every item handled once, and no failure that goes unnoticed."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from checkpoints import mistral_tensors, write_checkpoint

from blockexpand.cli.app import main
from blockexpand.fs.threads import work_through
from blockexpand.verification import comparison as tensor_comparison
from blockexpand.writing import chunks as chunk_moving


@pytest.mark.parametrize("threads", [1, 3])
def test_every_item_is_handled_once(threads: int) -> None:
    handled: list[int] = []
    work_through(range(1000), lambda: handled.append, threads)
    assert sorted(handled) == list(range(1000))


@pytest.mark.parametrize("threads", [1, 3])
def test_a_failure_ends_the_work_and_is_raised(threads: int) -> None:
    handled: list[int] = []

    def handle(item: int) -> None:
        if item == 5:
            raise ValueError("five")
        handled.append(item)

    with pytest.raises(ValueError, match="five"):
        work_through(range(10_000_000), lambda: handle, threads)
    assert len(handled) < 10_000_000


@pytest.mark.parametrize("threads", [1, 3])
def test_a_failure_to_begin_is_raised(threads: int) -> None:
    def begin() -> Callable[[int], None]:
        raise MemoryError

    with pytest.raises(MemoryError):
        work_through([1, 2, 3], begin, threads)


@pytest.mark.parametrize("allowed", [0, 1])
def test_where_no_more_threads_can_be_had_the_work_is_done_all_the_same(
    allowed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    starts: list[threading.Thread] = []
    start = threading.Thread.start

    def refuse(thread: threading.Thread) -> None:
        if len(starts) == allowed:
            raise RuntimeError("can't start new thread")
        starts.append(thread)
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", refuse)
    handled: list[int] = []
    work_through(range(100), lambda: handled.append)
    assert sorted(handled) == list(range(100))


def test_nothing_is_worked_on_once_ctrl_c_has_ended_the_work(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    start = threading.Thread.start
    threads: list[threading.Thread] = []

    def interrupt(thread: threading.Thread) -> None:
        start(thread)
        threads.append(thread)
        if len(threads) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(threading.Thread, "start", interrupt)
    begun: list[int] = []
    handled: list[int] = []

    def begin() -> Callable[[int], None]:
        begun.append(0)
        pause = 0.3 if len(begun) == 2 else 0

        def handle(item: int) -> None:
            time.sleep(pause)
            handled.append(item)

        return handle

    with pytest.raises(KeyboardInterrupt):
        work_through(range(10_000_000), begin)
    # Files are closed by now, and their numbers given to others.
    count = len(handled)
    for thread in threads:
        thread.join()
    assert len(handled) == count


def _refuse_memory(nbytes: int) -> memoryview:
    raise MemoryError


def test_without_memory_nothing_is_made_and_nothing_is_called_proved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source, out = tmp_path / "source", tmp_path / "out"
    # More than one chunk, so that threads do the work.
    write_checkpoint(source, [mistral_tensors(2, size=1 << 20)])
    expand = ["--src", str(source), "--out", str(out), "--new-layers", "1", "--quiet"]
    with monkeypatch.context() as patch:
        patch.setattr(chunk_moving, "make_buffer", _refuse_memory)
        assert main([*expand, "--reflink", "never"]) == 3
    assert capsys.readouterr().err.startswith("blockexpand: not enough memory")
    assert not out.exists()
    assert main(expand) == 0
    with monkeypatch.context() as patch:
        patch.setattr(tensor_comparison, "make_buffer", _refuse_memory)
        assert main(["verify", str(source), str(out)]) == 3
    captured = capsys.readouterr()
    assert "verified" not in captured.out
    assert "not enough memory" in captured.err
