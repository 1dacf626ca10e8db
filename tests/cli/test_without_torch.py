"""Where torch and transformers are missing, what does not need them works, and the rest says so."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

# As after `pip install --no-deps`: the import fails as it does for what is not there.
MISSING = """
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {names}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
        return None

sys.meta_path.insert(0, Absent())
from blockexpand.cli import main
sys.exit(main(sys.argv[1:]))
"""

LARGE = ("torch", "transformers", "numpy", "tokenizers", "safetensors")


def run(*words: object, missing: tuple[str, ...] = LARGE) -> subprocess.CompletedProcess[str]:
    code = MISSING.format(names=set(missing))
    command = [sys.executable, "-c", code, *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def problems(done: subprocess.CompletedProcess[str]) -> list[str]:
    """Return what stderr says but for progress."""
    return [line for line in done.stderr.splitlines() if not re.match(r"\d\d:\d\d:\d\d ", line)]


def test_copying_verifying_and_comparing_need_neither(tiny_mistral: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    words = ("--src", tiny_mistral, "--out", out, "--new-layers", 2)
    for command in (
        (*words, "--dry-run", "--json"),
        ("expand", *words, "--verify", "tensors"),
        ("verify", tiny_mistral, out),
        ("diff", tiny_mistral, out),
        ("show", out),
        ("train-config", out, "--framework", "transformers"),
        ("env",),
    ):
        done = run(*command)
        assert (done.returncode, problems(done)) == (0, []), (command, done)


@pytest.mark.parametrize("missing", [LARGE, (*LARGE, "huggingface_hub", "tqdm", "httpx", "httpx2")])
def test_a_folder_is_expanded_with_nothing_but_yaml(
    missing: tuple[str, ...], tiny_mistral: Path, tmp_path: Path
) -> None:
    words = ("--src", tiny_mistral, "--out", tmp_path / "out", "--new-layers", 2)
    done = run(*words, missing=missing)
    assert (done.returncode, problems(done)) == (0, []), done


def test_what_needs_them_says_in_one_line_how_to_install_them(
    tiny_mistral_f32: Path, tiny_mistral: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    words = ("--out", out, "--new-layers", 1)
    done = run("--src", tiny_mistral_f32, *words)
    said = "blockexpand: torch is needed for this, and is not installed: pip install torch"
    assert (done.returncode, problems(done)) == (3, [said])
    assert not out.exists()
    assert run("--src", tiny_mistral, *words).returncode == 0
    done = run("verify", tiny_mistral, out, "--logits", "--json")
    assert done.returncode == 3
    assert json.loads(done.stdout)["error"]["message"].endswith("pip install torch")
    done = run("diff", tiny_mistral, out, "--stats")
    assert (done.returncode, problems(done)) == (3, [said])
