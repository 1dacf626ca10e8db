"""What a command exits with: one table, as the README has it, so that scripts can rely on it."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from checkpoints import mistral_tensors, write_checkpoint

from blockexpand import errors
from blockexpand.cli.app import main

# What stands in the folder: `source` and `out`, made of it; `changed`, one byte of `out` changed;
# `bert`, an unsupported model; `dangling`, a link to nothing; `full`, a folder that is not empty;
# `jobs.yaml` and others.
COMMANDS = [
    # 0: done
    (0, "--src source --out made --new-layers 1"),
    (0, "--src source --out made --new-layers 1 --dry-run"),
    (0, "--src source --out made --new-layers 1 --verify tensors"),
    (0, "verify source out"),
    (0, "diff source out"),
    (0, "batch jobs.yaml"),
    (0, "train-config out --framework transformers"),
    (0, "--help"),
    (0, "verify --help"),
    (0, "--version"),
    (0, "merge recipe.yaml --out made"),
    (0, "extract out --base source --out made"),
    (0, "show out"),
    (0, "suggest source"),
    (0, "families qwen3"),
    (0, "env"),
    (0, "help train"),
    # 1: something differs
    (1, "verify source changed"),
    (1, "diff source changed"),
    (1, "batch failing.yaml"),
    # 2: wrong usage or values, wherever they are found
    (2, ""),
    (2, "--src source --out made"),
    (2, "--src source --out made --new-layers two"),
    (2, "--src source --out made --new-layers 0"),
    (2, "--src source --out made --new-layers -1"),
    (2, "--src source --out made --new-layers 99999"),
    (2, "--src source --out made --new-layers 1 --max-shard-size 5GiB"),
    (2, "--src source --out made --new-layers 1 --max-shard-size 0"),
    (2, "--src source --out made --new-layers 1 --stream"),
    (2, "--src source --out made --new-layers 4 --position 0,1"),
    (2, "--src source --out made --position 7"),
    (2, "--src source --out made --position -1"),
    (2, "--src source --out made --position middle --new-layers 1"),
    (2, "--src source --out made --new-layers 1 --dtype fp16"),
    (2, "--src source --out made --new-layers 1 --unknown"),
    (2, "--src source --out made --new-layers 1 --private"),
    (2, "--src source --out made --new-layers 1 --push-to-hub a/b/c --token x"),
    (2, "--src o/n@main --out made --new-layers 1 --revision v2"),
    (2, "--recipe bad.yaml --out made"),
    (2, "--recipe jobs.yaml --out made"),
    (2, "batch jobs.yaml --jobs 0"),
    (2, "batch bad.yaml"),
    (2, "batch wrong.yaml"),
    (2, "verify source"),
    (2, "train-config out --framework axoltl"),
    (2, "batch recipe.yaml"),
    (2, "merge jobs.yaml --out made"),
    (2, "train out --out made --progress none"),
    (2, "train out --text text --out made --steps 0 --progress none"),
    (2, "train out --text text --out made --private --progress none"),
    (2, "rank source text --tokens 0"),
    (2, "rank source text --new-layers 99"),
    (2, "rank source text --revision v2"),
    (2, "extract out --out made"),
    (2, "apply source out --out made --scale nan"),
    (2, "apply source out"),
    (2, "--src source --push-to-hub me/made --new-layers 1 --on-hub"),
    (2, "--src o/n --new-layers 1 --on-hub"),
    (2, "--src o/n --out made --push-to-hub me/made --new-layers 1 --on-hub"),
    (2, "apply source out --push-to-hub me/made --on-hub --out made"),
    (2, "help nothing"),
    (2, "completion tcsh"),
    # 3: it could not be done
    (3, "--src ./nowhere --out made --new-layers 1"),
    (3, "--src bert --out made --new-layers 1"),
    (3, "--src source --out full --new-layers 1"),
    (3, "--src source --out source --new-layers 1"),
    (3, "--src source --out jobs.yaml --new-layers 1"),
    (3, "--src source --out made --new-layers 1 --push-to-hub o/n"),
    (3, "--recipe nowhere.yaml --out made"),
    (3, "verify ./nowhere out"),
    (3, "verify source ./nowhere"),
    (0, "verify source source"),
    (3, "diff source ./nowhere"),
    (3, "diff ./nowhere out"),
    (3, "batch nowhere.yaml"),
    (3, "batch missing.yaml"),
    (3, "train-config source --framework peft"),
    (3, "--src dangling --out made --new-layers 1"),
    (3, "verify source dangling"),
    (3, "merge nowhere.yaml --out made"),
    (3, "train source --text text --out made --progress none"),
    (3, "train ./nowhere --text text --out made --progress none"),
    (3, "train out --text nowhere --out made --progress none"),
    (3, "rank ./nowhere text"),
    (3, "extract source --base source --out made"),
    (3, "apply source ./nowhere --out made"),
    (3, "apply source out --out made"),
    (3, "--src o/n --push-to-hub me/made --new-layers 1 --on-hub"),
    (3, "show ./nowhere"),
    (3, "suggest bert"),
]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    write_checkpoint(tmp_path / "source", [mistral_tensors()])
    write_checkpoint(tmp_path / "bert", [mistral_tensors()], {"model_type": "bert"})
    for out in ("out", "changed"):
        assert main(["--src", "source", "--out", out, "--new-layers", "1", "-q"]) == 0
    with (tmp_path / "changed" / "model-00001-of-00002.safetensors").open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        last = file.read(1)
        file.seek(-1, os.SEEK_END)
        file.write(bytes([last[0] ^ 1]))
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("mine")
    for name, src in (("jobs", "source"), ("wrong", "source"), ("missing", "./nowhere")):
        layers = 0 if name == "wrong" else 1
        text = f"jobs: [{{src: {src}, new-layers: {layers}, out: made}}]"
        (tmp_path / f"{name}.yaml").write_text(text)
    (tmp_path / "bad.yaml").write_text("no: [")
    slices = "slices: [{sources: [{model: source, layer_range: [0, 2]}]}]"
    (tmp_path / "recipe.yaml").write_text(f"merge_method: passthrough\n{slices}\n")
    (tmp_path / "text").write_text("A text. " * 200)
    (tmp_path / "dangling").symlink_to("gone")
    # Its tensors are found to be too large for float16 only when they are read.
    huge = {
        n: ("F32", s, b"\0\0\x80\x7e" * (len(d) // 2)) for n, (_, s, d) in mistral_tensors().items()
    }
    write_checkpoint(tmp_path / "huge", [huge])
    (tmp_path / "failing.yaml").write_text(
        "jobs: [{src: huge, new-layers: 1, dtype: float16, out: made}]"
    )
    return tmp_path


@pytest.mark.parametrize(("status", "words"), COMMANDS, ids=lambda value: str(value))
def test_each_command_exits_with_the_status_of_the_table(
    status: int, words: str, folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    capfd.readouterr()
    assert main(shlex.split(words)) == status
    out, err = capfd.readouterr()
    assert "Traceback" not in err
    if status > 1:
        assert out == ""
        assert err.startswith("blockexpand: ") and err.count("\n") == 1, err


@pytest.mark.parametrize(
    ("status", "words"),
    [case for case in COMMANDS if case[0] > 1 and case[1]],
    ids=lambda value: str(value),
)
def test_a_failure_is_one_json_object_on_stdout_too(
    status: int, words: str, folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    capfd.readouterr()
    assert main([*shlex.split(words), "--json"]) == status
    out, err = capfd.readouterr()
    error = json.loads(out)["error"]
    assert error["status"] == status
    assert issubclass(getattr(errors, error["type"]), errors.BlockExpandError)
    assert err == f"blockexpand: {error['message']}\n"


def test_every_error_has_a_status_of_the_table() -> None:
    classes = [errors.BlockExpandError]
    for kind in classes:
        classes += kind.__subclasses__()
    assert {kind.status for kind in classes} == {1, 2, 3}


@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]
)
def test_a_signal_ends_a_run_in_one_line_that_says_how_to_go_on(
    number: signal.Signals, status: int, tmp_path: Path
) -> None:
    source = write_checkpoint(tmp_path / "source", [mistral_tensors(4, "F32", size=1 << 22)])
    command = [sys.executable, "-m", "blockexpand", "--src", str(source)]
    command += ["--out", str(tmp_path / "out"), "--new-layers", "1", "--json", "--no-progress"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob(".*/partial/*")) and time.monotonic() < deadline:
        time.sleep(0.005)
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == status, err
    by = "" if number is signal.SIGINT else f" by {number.name}"
    assert err.startswith(f"blockexpand: interrupted{by}; ")
    assert err.count("\n") == 1
    assert json.loads(out)["error"]["status"] == status
    assert not (tmp_path / "out").exists()
    done = subprocess.run([*command, "-q"], timeout=120)
    assert done.returncode == 0


@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
def test_a_run_under_nohup_survives_its_terminal(tmp_path: Path) -> None:
    source = write_checkpoint(tmp_path / "source", [mistral_tensors(4, "F32", size=1 << 22)])
    command = ["nohup", sys.executable, "-m", "blockexpand", "--src", str(source)]
    command += ["--out", str(tmp_path / "out"), "--new-layers", "1", "-q"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob(".*/partial/*")) and time.monotonic() < deadline:
        time.sleep(0.005)
    process.send_signal(signal.SIGHUP)
    assert process.wait(60) == 0
    assert (tmp_path / "out").is_dir()
