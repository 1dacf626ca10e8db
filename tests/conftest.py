"""Real tiny checkpoints, written by `transformers`. Tests only read them; to damage one, copy it.

Each is a Mistral model of 4 layers with a trained tokenizer, a chat template, a generation config
and a model card. Every parameter is random, norms too, so that no two tensors are equal.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hub_server import HubServer, close_session, use_hub
from older import take_new_names

take_new_names()


@pytest.fixture(scope="session")
def make_tiny(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Return a function that makes a tiny checkpoint: `make_tiny(shards=2, dtype="float16")`.

    It takes what `make_checkpoint` of `scripts/make_checkpoint.py` takes.
    """
    from make_checkpoint import make_checkpoint

    def make(**options: Any) -> Path:
        folder = tmp_path_factory.mktemp("tiny") / "source"
        make_checkpoint(folder, **({"shape": "tiny"} | options))
        return folder

    return make


@pytest.fixture(scope="session")
def tiny_mistral(make_tiny: Callable[..., Path]) -> Path:
    """A bfloat16 checkpoint in 3 shards."""
    return make_tiny()


@pytest.fixture(scope="session")
def tiny_mistral_single(make_tiny: Callable[..., Path]) -> Path:
    """The same weights in one `model.safetensors`, without an index."""
    return make_tiny(shards=1)


@pytest.fixture(scope="session")
def tiny_mistral_f32(make_tiny: Callable[..., Path]) -> Path:
    """A float32 checkpoint in 3 shards."""
    return make_tiny(dtype="float32")


@pytest.fixture
def hub() -> Iterator[HubServer]:
    """A Hub on this machine, without a repository yet."""
    with HubServer() as server:
        yield server
    close_session()


@pytest.fixture
def hub_cache(hub: HubServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Point this process's Hub client at `hub`; return its cache folder, which is empty."""
    return use_hub(monkeypatch, hub, tmp_path / "home")
