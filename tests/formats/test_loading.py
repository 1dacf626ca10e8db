"""Tests of loading torch beside other work."""

from __future__ import annotations

import sys
import threading

import pytest

from blockexpand.formats import elements


def test_torch_is_loaded_beside_other_work(monkeypatch: pytest.MonkeyPatch) -> None:
    begun, go_on = threading.Event(), threading.Event()

    def load(name: str) -> None:
        assert name == "torch"
        begun.set()
        go_on.wait(60)

    monkeypatch.delitem(sys.modules, "torch", raising=False)
    monkeypatch.setattr(elements, "find_spec", lambda name: name)
    monkeypatch.setattr(elements, "import_module", load)
    elements.load_beside()
    assert begun.wait(60), "loading was not begun"
    go_on.set()


def test_a_missing_torch_is_told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(ModuleNotFoundError, match="torch"):
        elements.load_beside()


def test_a_torch_that_cannot_be_loaded_is_told_by_what_needs_it(
    monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder
) -> None:
    def load(name: str) -> None:
        raise OSError("libtorch.so: cannot open shared object file")

    monkeypatch.delitem(sys.modules, "torch", raising=False)
    monkeypatch.setattr(elements, "find_spec", lambda name: name)
    monkeypatch.setattr(elements, "import_module", load)
    elements.load_beside()
    for thread in threading.enumerate():
        if thread is not threading.current_thread() and not thread.daemon:
            thread.join(60)
    assert not [w for w in recwarn if issubclass(w.category, pytest.PytestWarning)]
