"""What a run loads, and how much memory it takes: nothing heavy where only bytes are copied."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from checkpoints import mistral_tensors, write_checkpoint

HEAVY = (
    "torch",
    "numpy",
    "transformers",
    "huggingface_hub",
    "safetensors",
    "tokenizers",
    "yaml",
    "tqdm",
    "httpx",
    "requests",
)
# Runs the command line in a fresh interpreter; prints its status, what it loaded and its peak.
PROBE = """
import json, pathlib, sys
sys.dont_write_bytecode = True
from blockexpand.cli import main
sys.stdout = open("/dev/null", "w")
status = main(sys.argv[1:])
proc = pathlib.Path("/proc/self/status")
# Of this program alone; ru_maxrss also counts what its parent had when it was started.
peak = int(proc.read_text().partition("VmHWM:")[2].split()[0]) * 1024 if proc.exists() else None
loaded = sorted({name.partition(".")[0] for name in sys.modules})
print(json.dumps({"status": status, "peak": peak, "loaded": loaded}), file=sys.stderr)
"""


def probe(*words: object) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-c", PROBE, *map(str, words)],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    result: dict[str, Any] = json.loads(done.stderr)
    return result


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bfloat16 checkpoint of 600 MB in 3 shards."""
    tensors = mistral_tensors(layers=4, size=8_000_000)
    names = list(tensors)
    third = len(names) // 3 + 1
    shards = [{n: tensors[n] for n in names[i : i + third]} for i in range(0, len(names), third)]
    return write_checkpoint(tmp_path_factory.mktemp("large") / "source", shards)


@pytest.mark.parametrize("option", ["--help", "--version"])
def test_help_and_version_load_nothing_but_python(option: str) -> None:
    found = probe(option)
    assert found["status"] == 0
    assert not set(HEAVY) & set(found["loaded"])
    # Not even what a plan needs.
    assert "fractions" not in found["loaded"]


@pytest.mark.parametrize("module", ["blockexpand", "blockexpand.cli", "blockexpand.__main__"])
def test_importing_loads_and_prints_nothing(module: str) -> None:
    code = (
        f"import sys; before = set(sys.modules); import {module}; print(*set(sys.modules) - before)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr == ""
    assert not set(HEAVY) & {name.partition(".")[0] for name in done.stdout.split()}


def test_every_public_name_is_there() -> None:
    import blockexpand

    for name in blockexpand.__all__:
        assert getattr(blockexpand, name) is not None
    with pytest.raises(AttributeError, match="nonesuch"):
        blockexpand.nonesuch  # noqa: B018 - reading it is the test


COPYING_NEVER_LOADS = {"torch", "numpy", "transformers", "safetensors", "tokenizers"}


def test_a_dry_run_of_a_folder_loads_no_torch_and_opens_no_connection(
    source: Path, tmp_path: Path
) -> None:
    found = probe("--src", source, "--out", tmp_path / "out", "--new-layers", 1, "--dry-run")
    assert found["status"] == 0
    assert not {*COPYING_NEVER_LOADS, "httpx", "requests", "tqdm"} & set(found["loaded"])


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is not told here")
def test_copying_and_verifying_take_less_than_100_mb(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    nbytes = sum(path.stat().st_size for path in source.glob("*.safetensors"))
    assert nbytes > 6 * 100_000_000
    words = [
        "--src",
        source,
        "--out",
        out,
        "--new-layers",
        1,
        "--reflink",
        "never",
        "--no-progress",
    ]
    expanded = probe(*words)
    verified = probe("verify", source, out, "--no-progress")
    for found in (expanded, verified):
        assert found["status"] == 0
        assert not COPYING_NEVER_LOADS & set(found["loaded"])
        assert found["peak"] < 100_000_000, found["peak"]


def test_the_package_runs_without_its_heavy_dependencies(source: Path, tmp_path: Path) -> None:
    """As if they were not installed: a plan of a folder needs Python alone, but for the card."""
    code = f"""
import sys
for name in {tuple(COPYING_NEVER_LOADS)!r}:
    sys.modules[name] = None
from blockexpand.cli import main
sys.exit(main(sys.argv[1:]))
"""
    words = ["--src", str(source), "--out", str(tmp_path / "out"), "--new-layers", "1", "-q"]
    done = subprocess.run(
        [sys.executable, "-c", code, *words, "--verify", "tensors", "--max-shard-size", "200MB"],
        capture_output=True,
        text=True,
        timeout=120,
        env=os.environ | {"PYTHONDONTWRITEBYTECODE": "1"},
    )
    assert (done.returncode, done.stderr) == (0, "")
