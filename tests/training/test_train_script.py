"""scripts/train_new_blocks.py from end to end, its claims judged with `safetensors` and torch."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from blockexpand import expand

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "scripts" / "train_new_blocks.py"
TEXT = ROOT / "tests" / "data" / "king_james.txt"


def run(*words: str | Path) -> subprocess.CompletedProcess[str]:
    # One thread: many would only wait for each other over matrices this small.
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, "-W", "error", SCRIPT, *words],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


@pytest.fixture(scope="module")
def expanded(tiny_mistral: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("training") / "expanded"
    expand(tiny_mistral, out, new_layers=2, position="interleaved")
    return out


def load(folder: Path) -> dict[str, torch.Tensor]:
    return {k: v for file in folder.glob("*.safetensors") for k, v in load_file(file).items()}


def test_the_loss_falls_and_only_the_new_blocks_change(
    tiny_mistral: Path, expanded: Path, tmp_path: Path
) -> None:
    text = tmp_path / "text.txt"
    text.write_text(TEXT.read_text()[:6000])
    trained = tmp_path / "trained"
    options = ["--steps", "8", "--length", "64", "--batch-size", "4", "--learning-rate", "5e-3"]
    result = run(expanded, text, "--out", trained, "--base", tiny_mistral, *options)
    assert result.returncode == 0, result.stderr
    match = re.search(r"mean loss on the text: ([0-9.]+) before, ([0-9.]+) after", result.stdout)
    assert match is not None and float(match[2]) < float(match[1]) - 0.05
    assert result.stdout.count("all 39 original tensors are bit-identical") == 2

    before, after = load(expanded), load(trained)
    assert set(before) == set(after)
    for name, tensor in before.items():
        is_new = re.match(r"model\.layers\.(2|5)\.", name) is not None
        assert after[name].dtype == tensor.dtype == torch.bfloat16
        assert torch.equal(tensor, after[name]) != is_new, name


def test_a_text_that_is_too_short(expanded: Path, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("Vanity of vanities")
    result = run(expanded, text, "--out", tmp_path / "trained")
    assert result.returncode == 1
    assert re.search(r"the text has \d+ tokens; expected at least 128", result.stderr)


def test_a_model_that_is_no_expansion(tiny_mistral: Path, tmp_path: Path) -> None:
    result = run(tiny_mistral, TEXT, "--out", tmp_path / "trained")
    assert result.returncode == 1
    assert result.stderr.count("\n") == 1 and "no block_expansion.json" in result.stderr
    assert not (tmp_path / "trained").exists()
