"""`--on-hub` killed at its requests: nobody sees half a model, and a rerun goes on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hub_server import HubServer, hub_environment, read_folder

import blockexpand

TOKEN = "hf_abcdefghijklmnopqrstuvwxyz012345"
WORDS = ["--new-layers", "2", "--position", "interleaved", "--dtype", "source"]


@pytest.fixture
def start(
    tiny_mistral: Path, hub: HubServer, tmp_path: Path
) -> Callable[..., subprocess.Popen[str]]:
    hub.allow(TOKEN)
    hub.add_repo("org/name", tiny_mistral)

    def run(*more: str) -> subprocess.Popen[str]:
        words = ["--src", "org/name", "--push-to-hub", "user/grown", "--on-hub", *WORDS, *more]
        return subprocess.Popen(
            [sys.executable, "-m", "blockexpand", *words],
            env=hub_environment(hub, tmp_path / "home", HF_TOKEN=TOKEN),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    return run


@pytest.mark.parametrize(
    ("request_", "number"),
    [
        ("GET /org/name/resolve", 4),
        ("POST /api/models/user/grown/preupload", 1),
        ("PUT /upload/", 1),
        ("PUT /upload/", 2),
        ("POST /api/models/user/grown/commit/", 1),
    ],
)
def test_a_killed_run_leaves_nothing_half_and_is_gone_on_with(
    start: Callable[..., subprocess.Popen[str]],
    hub: HubServer,
    tiny_mistral: Path,
    tmp_path: Path,
    request_: str,
    number: int,
) -> None:
    killed: list[subprocess.Popen[str]] = []
    seen = 0

    def kill() -> None:
        nonlocal seen
        seen += 1
        if seen == number:
            os.kill(killed[0].pid, signal.SIGKILL)
            killed[0].wait(30)

    fault = hub.fail(request_, times=10**6, then=kill)
    killed.append(start())
    killed[0].communicate(timeout=120)
    assert killed[0].returncode == -signal.SIGKILL
    fault.times = 0

    committed = "commit" in request_
    until = time.monotonic() + 30
    # The server is still at work on the request whose maker has gone.
    while committed and not hub.files("user/grown") and time.monotonic() < until:
        time.sleep(0.05)
    if "user/grown" in hub.repos:
        assert ("config.json" in hub.files("user/grown")) == committed
        assert committed or set(hub.files("user/grown")) == set()
    again = start()
    _, error = again.communicate(timeout=120)
    if committed:
        # The commit was made, its maker never heard of it: it is whole, and is not replaced.
        assert again.returncode == 3 and "the repository has files" in error
        assert "verify" in error
    else:
        assert again.returncode == 0, error
        # At most what was on its way is sent twice.
        made = [
            name
            for name, data in hub.files("user/grown").items()
            if name.endswith(".safetensors") and data not in hub.files("org/name").values()
        ]
        assert len(made) > 1
        assert len(made) <= len(hub.seen("/upload/", "PUT")) <= len(made) + 1
    blockexpand.expand(
        tiny_mistral, tmp_path / "out", new_layers=2, position="interleaved", dtype="source"
    )
    for name, data in read_folder(tmp_path / "out").items():
        if not name.startswith(("README", "block_")):
            assert hub.files("user/grown")[name] == data, name
