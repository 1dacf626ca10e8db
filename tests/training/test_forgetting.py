"""scripts/forgetting.py on a tiny model: every method, resumed, and its claim about the base."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import forgetting
import pytest
import torch

TEXT = Path(__file__).resolve().parents[1] / "data" / "king_james.txt"
METHODS = ["all", "lora-2", "end-1", "interleaved-2", "after-0,2", "end-1+fixed-norms"]


@pytest.fixture
def do(tiny_mistral: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    def call(*words: str) -> int:
        text = tmp_path / "text.txt"
        text.write_text(TEXT.read_text()[:6000])
        fixed = ["--out", tmp_path / "out", "--new-text", text, "--length", "32"]
        small = ["--batch-size", "2", "--evaluated", "2", "--seeds", "0", "--steps", "2"]
        command = ["forgetting.py", tiny_mistral, *fixed, *small, *words]
        monkeypatch.setattr(sys, "argv", [str(word) for word in command])
        return forgetting.main()

    return call


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
def test_every_method_runs_once_and_says_whether_the_base_is_inside(
    do: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--methods", *METHODS, "--learning-rates", "1e-3", "--replay-shares", "0.5"]
    assert do(*words) == 0
    file = tmp_path / "out" / "runs.jsonl"
    results = forgetting.read_results(file)
    assert [result["run"]["method"] for result in results] == METHODS
    assert [result["gives_base_back"] for result in results] == [False, *[True] * 5]
    first = [result["losses"][0] for result in results]
    assert all(losses == first[0] for losses in first)
    assert all(len(result["losses"]) == 3 for result in results)
    assert results[2]["trained"] > results[5]["trained"]  # the norms

    # A run that a kill cut off in its line is done again, the others are not.
    whole = file.read_text()
    file.write_text(whole[:-40])
    capsys.readouterr()
    assert do(*words) == 0
    assert capsys.readouterr().out.count(" of 6: ") == 1
    again = forgetting.read_results(file)
    assert [result["run"] for result in again] == [result["run"] for result in results]
    assert again[-1]["losses"] == results[-1]["losses"]

    assert do("--report", str(tmp_path / "figure.svg")) == 0
    table = capsys.readouterr().out
    assert table.count("| yes |") == 5 and table.count("| no |") == 1


def test_a_base_that_changed_is_told(do: Any, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(forgetting.blockexpand, "freeze_original_layers", all_parameters)
    assert do("--methods", "end-1", "--learning-rates", "1e-2") == 0
    (result,) = forgetting.read_results(tmp_path / "out" / "runs.jsonl")
    assert result["gives_base_back"] is False


def all_parameters(model: torch.nn.Module, _: Path) -> tuple[str, ...]:
    return tuple(name for name, _ in model.named_parameters())


def test_seeds_choose_the_tokens_and_methods_share_them(do: Any, tmp_path: Path) -> None:
    shown = [([number], [number]) for number in range(5)]
    general = [([100 + number], [100 + number]) for number in range(50)]
    experiment = object.__new__(forgetting.Experiment)
    experiment.options = type("Options", (), {"batch_size": 4})()
    experiment.shown = {"new": shown, "prose": general, "code": []}

    def tokens(method: str, seed: int, share: float) -> list[int]:
        run = forgetting.Run(method, 1e-3, seed, 5, share)
        batches = experiment._batches(run)
        return [ids[0] for _ in range(50) for ids, _ in next(batches)]

    assert tokens("all", 0, 0.0) == tokens("lora-2", 0, 0.0)
    assert tokens("all", 0, 0.0) != tokens("all", 1, 0.0)
    assert sorted(tokens("all", 0, 0.0)[:5]) == [0, 1, 2, 3, 4]
    replayed = sum(token >= 100 for token in tokens("all", 0, 0.25))
    assert 25 < replayed < 75


def test_no_result_yet(do: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "runs.jsonl").write_text(json.dumps({})[:1] + "\n")
    assert do("--report", str(tmp_path / "figure.svg")) == 3
    assert "no finished run" in capsys.readouterr().err
